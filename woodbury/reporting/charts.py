"""Charts as data: lines and points, as fractions of the axes, which the page draws as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from woodbury.reporting.axes import Axis

STYLES = 8
"""Colours and markers that templates/style.css and templates/chart.svg.j2 have."""
FIRST_STYLES = {"magnitude": 0}
"""Names with a style of their own: grey is the baseline on every page."""
LABEL_CHARACTERS = 18
"""Of a name beside the chart, where all charts leave the same room."""
LABEL_HEIGHT = 0.058
"""The least distance of two labels, as a fraction of the chart's height."""


@dataclass(frozen=True)
class Point:
    """A point of a line.

    Attributes:
        x: Its place on the x-axis, from 0 to 1.
        y: Its place on the y-axis.
        words: Its values in words.
        low: Where its error bar begins; None for none.
        high: Where its error bar ends.
    """

    x: float
    y: float
    words: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """Points of one kind.

    Attributes:
        name: What they are.
        style: The number of their colour and marker.
        points: From left to right.
        joined: Whether a line joins them.
    """

    name: str
    style: int
    points: tuple[Point, ...]
    joined: bool = True


@dataclass(frozen=True)
class Rule:
    """A dashed reference from one side to the other.

    Attributes:
        name: What it is; empty for none.
        left: Its place on the y-axis at the left.
        right: Its place on the y-axis at the right.
    """

    name: str
    left: float
    right: float


@dataclass(frozen=True)
class Label:
    """A name at the right side.

    Attributes:
        place: On the y-axis, where it does not touch another.
        name: The text.
        style: That of its line; None for a reference.
    """

    place: float
    name: str
    style: int | None


@dataclass(frozen=True)
class Chart:
    """A chart with two axes.

    Attributes:
        title: What it shows.
        words: The same in a sentence, for its caption and for those who cannot see it.
        x: The x-axis.
        y: The y-axis.
        lines: What it shows.
        rules: References.
    """

    title: str
    words: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    rules: tuple[Rule, ...] = ()

    @property
    def labels(self) -> list[Label]:
        """The names of lines and references at their right ends, moved apart where they touch."""
        ends = [(line.points[-1].y, line.name, line.style) for line in self.lines if line.points]
        ends += [(rule.right, rule.name, None) for rule in self.rules if rule.name]
        places = spread_out([place for place, _, _ in ends], LABEL_HEIGHT, 0.0, 1.0)
        return [
            Label(place, _shortened(name), style)
            for place, (_, name, style) in zip(places, ends, strict=True)
        ]


def styles(names: Sequence[str]) -> dict[str, int]:
    """A style for each name, in the order of first appearance.

    Args:
        names: Names, which may be repeated.

    Example:
        >>> styles(["woodfisher", "magnitude", "mfac", "mfac"])
        {'woodfisher': 1, 'magnitude': 0, 'mfac': 2}
    """
    chosen: dict[str, int] = {}
    free = 1
    for name in dict.fromkeys(names):
        if name in FIRST_STYLES:
            chosen[name] = FIRST_STYLES[name]
        else:
            chosen[name] = 1 + (free - 1) % (STYLES - 1)
            free += 1
    return chosen


def _shortened(name: str) -> str:
    """A name that has room beside the chart; the table has it in full."""
    return name if len(name) <= LABEL_CHARACTERS else name[: LABEL_CHARACTERS - 1] + "…"


def spread_out(
    values: Sequence[float], gap: float, low: float = -math.inf, high: float = math.inf
) -> list[float]:
    """Move values apart as little as needed for neighbours to be `gap` apart.

    Values that would touch form a crowd, which is centred on its mean.

    Args:
        values: In any order.
        gap: The least distance of two neighbours.
        low: No crowd begins below it.
        high: No crowd ends above it, if it has room.

    Returns:
        The places, in the order of the values.

    Example:
        >>> spread_out([10.0, 10.0, 50.0], gap=4.0)
        [8.0, 12.0, 50.0]
        >>> spread_out([10.0, 10.0], gap=4.0, low=10.0)
        [10.0, 14.0]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    crowds: list[list[int]] = []

    def start(crowd: list[int]) -> float:
        mean = sum(values[index] for index in crowd) / len(crowd)
        length = gap * (len(crowd) - 1)
        return max(low, min(mean - length / 2, high - length))

    for index in order:
        crowds.append([index])
        # A crowd that has grown may now touch the one below it.
        while len(crowds) > 1 and start(crowds[-2]) + gap * len(crowds[-2]) > start(crowds[-1]):
            crowds[-2:] = [crowds[-2] + crowds[-1]]
    places = {
        index: start(crowd) + gap * position
        for crowd in crowds
        for position, index in enumerate(crowd)
    }
    return [places[index] for index in range(len(values))]
