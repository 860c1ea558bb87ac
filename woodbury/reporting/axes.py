"""Axes of charts: where a value is, as a fraction of the axis, and what is written below it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from woodbury.reporting.grid import percent, with_minus

STEPS = (1, 2, 2.5, 5, 10)
"""The distances of ticks that are easy to read, within a decade."""
SMALLEST_WITH_DECIMALS = 1e-4
"""The end of an axis up to which its ticks have decimals, no power of ten."""
MOST_EPOCHS = 8
"""Ticks on an axis of epochs."""
MOST_DECADES = 7
"""Ticks on a logarithmic axis; with more decades some have none."""
HARDLY = 0.02
"""Of the distance of two ticks: a value that is no farther beyond one has its place at it."""
NEAR = 0.06
"""Ticks of sparsities that are closer, as a fraction of the axis, share one text."""
NEAR_ON_A_PHONE = 0.16
"""The same where the axis is as long as five or six texts."""


class Tick(NamedTuple):
    """A place on an axis with its text.

    Attributes:
        place: From 0 to 1.
        text: What is written there.
        is_minor: Whether it is left out where the page is narrow.
    """

    place: float
    text: str
    is_minor: bool = False


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        title: What it shows, with its unit.
        low: The value at its beginning.
        high: The value at its end.
        ticks: What is written beside it.
        scale: The function that makes it linear.
    """

    title: str
    low: float
    high: float
    ticks: tuple[Tick, ...]
    scale: Callable[[float], float] = float

    def place(self, value: float) -> float:
        """Where a value is, from 0 to 1; what is beyond an end is at it."""
        return _place(value, self.low, self.high, self.scale)


def percentages(title: str) -> Axis:
    """From 0 to 100 %, for fractions: the same on every page."""
    ticks = tuple(Tick(tenths / 10, f"{10 * tenths}") for tenths in range(0, 11, 2))
    return Axis(title, 0.0, 1.0, ticks)


def linear(title: str, values: Iterable[float], unit: float = 1.0) -> Axis:
    """An axis around values, which begins and ends at a round number.

    Args:
        title: What it shows.
        values: What must have a place on it; what is not finite has none.
        unit: What its texts are counted in, such as 0.01 for percent.

    Example:
        >>> axis = linear("loss", [0.0, 0.83])
        >>> axis.high, [tick.text for tick in axis.ticks]
        (1.0, ['0', '0.25', '0.5', '0.75', '1'])
    """
    shown = [value / unit for value in values if math.isfinite(value)] or [0.0]
    low, high = min(shown), max(shown)
    if low == high:
        low, high = min(low, 0.0), max(high, 0.0) or 1.0
    step = _step((high - low) / 4)
    first, last = math.floor(low / step + HARDLY), math.ceil(high / step - HARDLY)
    places = range(first, last + 1)
    texts = _tick_texts([number * step for number in places])
    ticks = tuple(
        Tick((number - first) / (last - first), text)
        for number, text in zip(places, texts, strict=True)
    )
    return Axis(title, first * step * unit, last * step * unit, ticks)


def epochs(values: Iterable[float]) -> Axis:
    """An axis from the beginning of a training to its last value.

    Args:
        values: Epochs; some may be fractions.

    Example:
        >>> [tick.text for tick in epochs([1.0, 2.5]).ticks]
        ['0', '1', '2']
    """
    last = max(values, default=0.0) or 1.0
    step = max(1, round(_step(last / MOST_EPOCHS)))
    ticks = tuple(Tick(number / last, f"{number}") for number in range(0, int(last) + 1, step))
    return Axis("epoch", 0.0, last, ticks)


def up_to_the_last(title: str, values: Iterable[float]) -> Axis:
    """An axis from the first value to the last, with ticks at round numbers between them.

    Args:
        title: What it shows.
        values: What must have a place on it, at least two.

    Example:
        >>> [tick.text for tick in up_to_the_last("share", [0.0, 0.5, 1.25]).ticks]
        ['0', '0.25', '0.5', '0.75', '1', '1.25']
    """
    low, high = min(values := list(values)), max(values)
    step = _step((high - low) / 6)
    places = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    texts = _tick_texts([number * step for number in places])
    ticks = tuple(
        Tick((number * step - low) / (high - low), text)
        for number, text in zip(places, texts, strict=True)
    )
    return Axis(title, low, high, ticks)


def decades(title: str, values: Iterable[float]) -> Axis:
    """A logarithmic axis of whole decades around positive values.

    Args:
        title: What it shows.
        values: What must have a place on it, at least one.

    Example:
        >>> [tick.text for tick in decades("loss", [0.003, 0.2]).ticks]
        ['10⁻³', '10⁻²', '10⁻¹', '10⁰']
    """
    logs = [math.log10(value) for value in values]
    first, last = math.floor(min(logs)), math.ceil(max(logs))
    last = max(last, first + 1)
    every = math.ceil((last - first) / MOST_DECADES)
    ticks = tuple(
        Tick((exponent - first) / (last - first), f"10{_raised(exponent)}")
        for exponent in range(first, last + 1, every)
    )
    return Axis(title, 10.0**first, 10.0**last, ticks, math.log10)


def sparsities(values: Iterable[float]) -> Axis:
    """An axis of sparsities, wide near 1: logarithmic in the kept weights.

    Args:
        values: What must have a place on it, at least one; each has a tick where there is room.

    Example:
        >>> axis = sparsities([0.5, 0.9, 0.99])
        >>> [tick.text for tick in axis.ticks], axis.place(0.9) > 0.4
        (['50 %', '90 %', '99 %'], True)
    """
    known = sorted(set(values))
    low, high = known[0], known[-1]
    if low == high:
        low = 0.0
    ticks: list[Tick] = []
    major = 2.0
    for value in reversed(known):
        place = _place(value, low, high, kept_scale)
        if ticks and ticks[-1].place - place < NEAR:
            continue
        is_minor = major - place < NEAR_ON_A_PHONE
        major = major if is_minor else place
        ticks.append(Tick(place, percent(round(value, 3)), is_minor))
    title = "sparsity (logarithmic in the kept weights)"
    return Axis(title, low, high, tuple(reversed(ticks)), kept_scale)


def kept_scale(sparsity: float) -> float:
    """−log₁₀ of the kept fraction.

    Example:
        >>> kept_scale(0.9)
        1.0
    """
    return -math.log10(max(1 - sparsity, 1e-9))


def _place(value: float, low: float, high: float, scale: Callable[[float], float]) -> float:
    if high == low:
        return 0.5
    value = min(max(value, low), high)
    return (scale(value) - scale(low)) / (scale(high) - scale(low))


def _step(least: float) -> float:
    """The least round number that is no smaller."""
    decade = 10.0 ** math.floor(math.log10(least))
    return next(factor * decade for factor in STEPS if factor * decade >= least * (1 - 1e-9))


def _tick_texts(numbers: Sequence[float]) -> list[str]:
    """All with decimals, or all with a power of ten where decimals would be long."""
    texts = [f"{number:.6g}" for number in numbers]
    if any("e" in text for text in texts):
        largest = max(map(abs, numbers))
        if SMALLEST_WITH_DECIMALS <= largest < 1:
            texts = [f"{number:.6f}".rstrip("0").rstrip(".") for number in numbers]
        else:
            exponent = math.floor(math.log10(largest))
            power = f"·10{_raised(exponent)}"
            texts = [
                f"{number / 10.0**exponent:.4g}{power}" if number else "0" for number in numbers
            ]
    return [with_minus(text) for text in texts]


def _raised(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
