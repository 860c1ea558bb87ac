"""The picture of error against seconds, as SVG: python docs/figures_equations.py

A panel for each equation, whose curves are read from its table in docs/results/optimizer.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from figures import DOCS, GRID, QUIET, STATIC, Picture

PAGE = DOCS / "results" / "optimizer.md"
HEADING = "#### Error against seconds: "
COLOURS = {
    "woodbury.least_squares": "#0b6bcb",
    "dense Gauss–Newton (ENGD)": "#c2410c",
    "torch-levenberg-marquardt": "#15803d",
    "torch L-BFGS": "#7e22ce",
    "SOAP": "#b45309",
    "Shampoo": "#be185d",
    "K-FAC before SGD": "#0f766e",
    "Adam": "#6b7280",
    "AdamW": "#111827",
}
WIDTH, HEIGHT = 400, 280
LEFT, RIGHT, TOP, BOTTOM = 60, 380, 50, 220
"""Of a panel, and of the axes in it."""


class Curves(NamedTuple):
    """One table: seconds, and each method's errors there."""

    equation: str
    seconds: list[float]
    errors: dict[str, list[float]]


def tables() -> Iterator[Curves]:
    """The tables below the headings."""
    for section in PAGE.read_text("utf-8").split(HEADING)[1:]:
        equation, *lines = section.splitlines()
        first = next(place for place, line in enumerate(lines) if line.startswith("|"))
        rows = []
        for line in lines[first:]:
            if not line.startswith("|"):
                break
            if not line.startswith("|--"):
                rows.append([cell.strip(" *`") for cell in line.strip("|").split("|")])
        head, *methods = rows
        seconds = [float(cell.split()[0]) for cell in head[1:]]
        errors = {name: [float(cell) for cell in cells] for name, *cells in methods}
        yield Curves(equation, seconds, errors)


def panel(drawn: Picture, curves: Curves, across: int, down: int) -> None:
    """One equation; both axes are logarithmic."""
    every = [error for errors in curves.errors.values() for error in errors]
    finite = [error for error in every if math.isfinite(error)]
    low, high = math.floor(math.log10(min(finite))), math.ceil(math.log10(max(finite)))
    high = min(high, 1)
    seconds = curves.seconds

    def x(second: float) -> float:
        share = math.log(second / seconds[0]) / math.log(seconds[-1] / seconds[0])
        return across + LEFT + (RIGHT - LEFT) * share

    def y(error: float) -> float:
        power = min(math.log10(error), high) if math.isfinite(error) else high
        return down + BOTTOM - (BOTTOM - TOP) * (power - low) / (high - low)

    drawn.text(across + 20, down + 28, curves.equation, size=15, weight=600)
    for power in range(low, high + 1):
        height = y(10.0**power)
        drawn.line([(across + LEFT, height), (across + RIGHT, height)], GRID, 1)
        place = across + LEFT - 8
        drawn.text(place, height + 4, f"1e{power}", anchor="end", size=11, fill=QUIET)
    for second in (seconds[0], seconds[2], seconds[5], seconds[-1]):
        label = f"{second:.2g} s"
        drawn.text(x(second), down + BOTTOM + 18, label, anchor="middle", size=11, fill=QUIET)
    for name, errors in reversed(curves.errors.items()):
        points = [(x(second), y(error)) for second, error in zip(seconds, errors, strict=True)]
        drawn.line(points, COLOURS[name], 2.2)
        for point in points:
            drawn.dot(*point, COLOURS[name], 2.2)


def picture() -> str:
    """Two panels in a row, and the names of the methods below."""
    found = list(tables())
    high = (len(found) + 1) // 2 * HEIGHT
    drawn = Picture(2 * WIDTH, high + 60, "Relative error of equations against seconds")
    for place, curves in enumerate(found):
        panel(drawn, curves, place % 2 * WIDTH, place // 2 * HEIGHT)
    drawn_names = {name for curves in found for name in curves.errors}
    for place, name in enumerate(name for name in COLOURS if name in drawn_names):
        left, line = 20 + place % 3 * 260, high + place // 3 * 24
        drawn.text(left, line, name, fill=COLOURS[name], weight=600)
    return drawn.svg()


if __name__ == "__main__":
    (STATIC / "equations.svg").write_text(picture(), "utf-8")
