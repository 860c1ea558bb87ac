"""A confidence interval for a mean, from groups of samples, also where they are skewed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

CONFIDENCE = 0.95
"""How often an interval holds the mean of the distribution."""

BISECTIONS = 60
"""Halvings of an interval of angles: more than a float64 has digits."""


class MeanInterval(NamedTuple):
    """A mean and an interval that holds the mean of the distribution.

    Attributes:
        low: The lower end.
        mean: Of the samples.
        high: The upper end.
    """

    low: float
    mean: float
    high: float


def mean_interval(
    means: Sequence[float], sizes: Sequence[int], confidence: float = CONFIDENCE
) -> MeanInterval:
    """A mean over groups of samples, with a confidence interval  (eq. 71).

    Args:
        means: Of each group; at least two groups.
        sizes: Samples in each group.
        confidence: How often the interval is to hold the mean of the distribution, in (0, 1).

    Returns:
        The mean over all samples, and the ends. All are infinite if a mean is not finite.

    Example:
        >>> low, mean, high = mean_interval([1.0, 2.0, 3.0, 4.0], [8, 8, 8, 8])
        >>> round(low, 3), mean, round(high, 3)
        (0.446, 2.5, 4.554)

    Source:
        Hall 1992, "On the removal of skewness by transformation"; Student 1908.
    """
    if not all(map(math.isfinite, means)):
        return MeanInterval(math.inf, math.inf, math.inf)
    groups, samples = len(means), sum(sizes)
    mean = sum(size * each for size, each in zip(sizes, means, strict=True)) / samples
    spreads = [
        groups * size * (each - mean) / samples for size, each in zip(sizes, means, strict=True)
    ]
    deviation = math.sqrt(sum(spread**2 for spread in spreads) / (groups - 1))
    if not deviation:
        return MeanInterval(mean, mean, mean)
    third = sum((spread / deviation) ** 3 for spread in spreads) / groups
    skewness = third / (6 * math.sqrt(groups))
    t = student_quantile(0.5 + confidence / 2, groups - 1)
    error = deviation / math.sqrt(groups)
    low = mean - error * _without_skewness(t, skewness)
    high = mean - error * _without_skewness(-t, skewness)
    return MeanInterval(low, mean, high)


def student_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t distribution.

    Args:
        probability: In (0.5, 1).
        freedom: Degrees of freedom, at least 1.

    Returns:
        t, of which so much probability lies below.

    Example:
        >>> [round(student_quantile(0.975, freedom), 3) for freedom in (1, 4, 31)]
        [12.706, 2.776, 2.04]

    Source:
        Abramowitz & Stegun 1964, 26.7.3 and 26.7.4, for the distribution.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(BISECTIONS):
        angle = (low + high) / 2
        if 0.5 + _share_within(angle, freedom) / 2 < probability:
            low = angle
        else:
            high = angle
    return math.sqrt(freedom) * math.tan(low)


def _share_within(angle: float, freedom: int) -> float:
    """The probability that |t| is below √freedom tan(angle)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = freedom % 2
    term = cosine if is_odd else 1.0
    total = 0.0
    for index in range(1 + is_odd, freedom, 2):
        total += term
        term *= cosine**2 * index / (index + 1)
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total


def _without_skewness(t: float, a: float) -> float:
    """The inverse of Hall's transformation x + 2ax² + 4a²x³/3 + a, at t."""
    if not a:
        return t
    cube = 1 + 6 * a * (t - a)
    return (math.copysign(abs(cube) ** (1 / 3), cube) - 1) / (2 * a)
