"""largest_between(): where a function of one number is largest, by golden sections."""

from __future__ import annotations

from collections.abc import Callable

GOLDEN = (5**0.5 - 1) / 2
STEPS = 30
"""An interval of two decades becomes one of a millionth."""


def largest_between(value: Callable[[float], float], low: float, high: float) -> float:
    """Where a function is largest between two numbers, if it has one maximum there.

    Args:
        value: The function.
        low: The lower end.
        high: The upper end.

    Returns:
        The place of the maximum.

    Example:
        >>> round(largest_between(lambda x: -((x - 0.3) ** 2), -1.0, 1.0), 4)
        0.3
    """
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = value(left), value(right)
    for _ in range(STEPS):
        if at_left >= at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = value(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = value(right)
    return (low + high) / 2
