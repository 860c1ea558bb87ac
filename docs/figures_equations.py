"""The picture of error against seconds, as SVG: python docs/figures_equations.py

The curves are read from their table in docs/results/optimizer.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from figures import DOCS, GRID, QUIET, STATIC, Picture

PAGE = DOCS / "results" / "optimizer.md"
HEADING = "### Error against seconds"
COLOURS = (
    "#0b6bcb",
    "#c2410c",
    "#15803d",
    "#7e22ce",
    "#b45309",
    "#be185d",
    "#0f766e",
    "#6b7280",
)
LEFT, RIGHT, TOP, BOTTOM = 70, 520, 56, 340


def rows() -> Iterator[list[str]]:
    """The cells of the table below the heading, its head first."""
    page = PAGE.read_text("utf-8")
    begun = False
    for line in page[page.index(HEADING) :].splitlines():
        if line.startswith("|"):
            begun = True
            if not line.startswith("|--"):
                yield [cell.strip(" *`") for cell in line.strip("|").split("|")]
        elif begun:
            return


def picture() -> str:
    """Both axes are logarithmic; methods in the order of the table."""
    head, *methods = rows()
    seconds = [float(cell.split()[0]) for cell in head[1:]]
    curves = [(cells[0], [float(cell) for cell in cells[1:]]) for cells in methods]
    errors = [error for _, values in curves for error in values]
    low, high = math.floor(math.log10(min(errors))), math.ceil(math.log10(max(errors)))
    drawn = Picture(800, 400, "Relative error of a Poisson equation against seconds")

    def x(second: float) -> float:
        share = math.log(second / seconds[0]) / math.log(seconds[-1] / seconds[0])
        return LEFT + (RIGHT - LEFT) * share

    def y(error: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (math.log10(error) - low) / (high - low)

    title = "Poisson equation in two dimensions, 257 weights, one thread"
    drawn.text(20, 28, title, size=16, weight=600)
    for power in range(low, high + 1):
        drawn.line([(LEFT, y(10.0**power)), (RIGHT, y(10.0**power))], GRID, 1)
        label = f"1e{power}"
        drawn.text(LEFT - 10, y(10.0**power) + 4, label, anchor="end", size=12, fill=QUIET)
    for second in (seconds[0], seconds[3], seconds[-1]):
        drawn.text(x(second), BOTTOM + 20, f"{second:g}", anchor="middle", size=12, fill=QUIET)
    drawn.text((LEFT + RIGHT) / 2, BOTTOM + 40, "seconds", anchor="middle", fill=QUIET)
    drawn.text(20, TOP - 12, "relative error", size=12, fill=QUIET)
    places: list[float] = []
    ends = sorted(zip(curves, COLOURS, strict=False), key=lambda each: -each[0][1][-1])
    for (name, values), colour in ends:
        points = [(x(second), y(value)) for second, value in zip(seconds, values, strict=True)]
        drawn.line(points, colour, 2.5)
        for point in points:
            drawn.dot(*point, colour, 2.5)
        place = max([points[-1][1] + 4, *(other + 17 for other in places)])
        places.append(place)
        drawn.text(RIGHT + 12, place, f"{name} {values[-1]:.0e}", fill=colour, weight=600)
    return drawn.svg()


if __name__ == "__main__":
    (STATIC / "equations.svg").write_text(picture(), "utf-8")
