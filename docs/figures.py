"""The pictures of the site and of the README, as SVG: python docs/figures.py

The curves are read from the tables of docs/results; the drawings are computed here. Each picture
has a background of its own, so that it reads on light and on dark pages.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).parent
STATIC = DOCS / "_static"
PRUNING = DOCS / "results" / "pruning.md"

INK, QUIET, GRID = "#1f2933", "#52606d", "#e4e7eb"
COLOURS = {
    "woodbury": "#0b6bcb",
    "staged": "#c2410c",
    "woodfisher": "#15803d",
    "mfac": "#7e22ce",
    "magnitude": "#6b7280",
}
METHODS = {
    "**the same, `Refit` from 2 GGN samples per input with `Reconstruction`**": (
        "woodbury",
        "woodbury, in stages",
    ),
    "iterative hard thresholding from the magnitude mask, stages, damping chosen at each": (
        "staged",
        "best baseline in stages",
    ),
    "WoodFisher, independent update, one step": ("woodfisher", "WoodFisher"),
    "M-FAC, independent update, one step": ("mfac", "M-FAC"),
    "magnitude": ("magnitude", "magnitude"),
}
"""Rows of the table -> colour and name in the picture."""

DENSE = 88.64


class Picture:
    """An SVG that is written line by line.

    Args:
        width: In pixels.
        height: In pixels.
        title: What a screen reader says.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self.lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" '
            'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">',
            f"<title>{html.escape(title)}</title>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
        ]

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        anchor: str = "start",
        size: int = 13,
        fill: str = INK,
        weight: int = 400,
    ) -> None:
        """Words with their baseline at (x, y)."""
        self.lines.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
            f'fill="{fill}" font-weight="{weight}">{html.escape(words)}</text>'
        )

    def line(
        self, points: list[tuple[float, float]], colour: str, width: float = 2, dash: str = ""
    ) -> None:
        """Straight lines through the points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.lines.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" '
            f'stroke-linejoin="round"{dashed}/>'
        )

    def dot(self, x: float, y: float, colour: str, radius: float = 3.5) -> None:
        """A filled circle."""
        self.lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}"/>')

    def square(self, x: float, y: float, side: float, colour: str) -> None:
        """A filled square, (x, y) its upper left corner."""
        self.lines.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}" '
            f'fill="{colour}"/>'
        )

    def svg(self) -> str:
        """The picture."""
        return "\n".join([*self.lines, "</svg>"]) + "\n"


def curves() -> Iterator[tuple[str, str, list[float]]]:
    """Colour, name and accuracies at .5 … .9 of the methods, from the page of results."""
    page = PRUNING.read_text("utf-8")
    section = page[page.index("### The 18 block convolutions") :]
    for row, (colour, name) in METHODS.items():
        line = next(
            line
            for line in section.splitlines()
            if re.split(r" \(| \|", line.removeprefix("| "))[0] == row
        )
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")][1:6]
        yield colour, name, [float(cell.split()[0]) for cell in cells]


def accuracy() -> str:
    """Test accuracy of ResNet-20 at the sparsities, one curve a method."""
    picture = Picture(800, 380, "Accuracy of a pruned ResNet-20 by sparsity, five methods")
    left, right, top, bottom = 60, 560, 56, 330
    low, high = 0.0, 100.0

    def x(index: float) -> float:
        return left + (right - left) * index / 4

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    picture.text(20, 28, "ResNet-20 on CIFAR-10, pruned without training", size=16, weight=600)
    for value in range(0, 101, 20):
        picture.line([(left, y(value)), (right, y(value))], GRID, 1)
        picture.text(left - 10, y(value) + 4, f"{value}", anchor="end", size=12, fill=QUIET)
    for index in range(5):
        picture.text(
            x(index), bottom + 20, f"{50 + 10 * index} %", anchor="middle", size=12, fill=QUIET
        )
    middle = (left + right) / 2
    picture.text(middle, bottom + 40, "of the weights removed", anchor="middle", fill=QUIET)
    picture.text(left - 40, top - 12, "test accuracy, %", size=12, fill=QUIET)
    picture.line([(left, y(DENSE)), (right, y(DENSE))], INK, 1, "4 4")
    picture.text(right + 12, y(DENSE) - 8, f"dense {DENSE}", size=12, fill=QUIET)
    places: list[float] = []
    for key, name, values in sorted(curves(), key=lambda curve: curve[2][-1]):
        colour = COLOURS[key]
        picture.line([(x(i), y(value)) for i, value in enumerate(values)], colour, 2.5)
        for index, value in enumerate(values):
            picture.dot(x(index), y(value), colour)
        place = y(values[-1]) + 4
        while any(abs(place - other) < 17 for other in places):
            place -= 1
        places.append(place)
        picture.text(right + 12, place, f"{name} {values[-1]:.1f}", fill=colour, weight=600)
    return picture.svg()


F = ((2.0, -1.3), (-1.3, 1.2))
"""The curvature of the picture of one removal."""
DENSE_WEIGHTS = (1.0, 0.6)


def removal() -> str:
    """Two weights, the contours of the loss, and where each method ends that removes one."""
    picture = Picture(560, 330, "Removing a weight: without an update and with the exact one")
    scale, left, floor = 170, 130, 260
    (a, b), (_, c) = F
    first, second = DENSE_WEIGHTS

    def place(u: float, v: float) -> tuple[float, float]:
        return left + scale * u, floor - scale * v

    def ellipse(level: float) -> list[tuple[float, float]]:
        # F = L Lᵀ: the points w + √(2·level) L⁻ᵀ (cos t, sin t) have the loss `level`.
        l11, l21 = math.sqrt(a), b / math.sqrt(a)
        l22 = math.sqrt(c - l21**2)
        points = []
        for step in range(121):
            p, q = math.cos(step * math.pi / 60), math.sin(step * math.pi / 60)
            v = q / l22
            u = (p - l21 * v) / l11
            radius = math.sqrt(2 * level)
            points.append(place(first + radius * u, second + radius * v))
        return points

    shift = b * second / a
    unmoved, moved = 0.5 * c * second**2, 0.5 * (c - b * b / a) * second**2
    for level, colour in ((unmoved, COLOURS["magnitude"]), (moved, COLOURS["woodbury"])):
        picture.line(ellipse(level), colour, 1.5)
    picture.line([place(-0.6, 0), place(2.3, 0)], INK, 1.5)
    picture.text(*place(1.62, 0.04), "second weight = 0", size=12, fill=QUIET)
    picture.line([place(first, second), place(first, 0)], COLOURS["magnitude"], 2, "5 4")
    picture.line([place(first, second), place(first + shift, 0)], COLOURS["woodbury"], 2)
    picture.dot(*place(first, second), INK, 5)
    picture.dot(*place(first, 0), COLOURS["magnitude"], 5)
    picture.dot(*place(first + shift, 0), COLOURS["woodbury"], 5)
    picture.text(place(first, second)[0] + 12, place(first, second)[1] + 4, "dense weights")
    picture.text(
        place(first, 0)[0] + 4,
        floor + 42,
        f"set to zero: +{unmoved:.3f}",
        fill=COLOURS["magnitude"],
        weight=600,
    )
    picture.text(
        place(first + shift, 0)[0] + 20,
        floor + 42,
        f"the other moves: +{moved:.3f}",
        anchor="end",
        fill=COLOURS["woodbury"],
        weight=600,
    )
    return picture.svg()


LAYERS, OUT, IN, ROWS = 2, 2, 4, 5
"""Of the picture of structures: two layers of 2 × 4 weights, and five samples."""


def structures() -> str:
    """What of the Fisher matrix each structure keeps, on two tiny layers."""
    size = LAYERS * OUT * IN
    inputs = [
        [[math.sin(1 + 1.7 * r + 2.3 * k + 0.9 * j) for j in range(IN)] for k in range(LAYERS)]
        for r in range(ROWS)
    ]
    slopes = [
        [[math.cos(0.4 + 2.9 * r + 1.3 * k + 1.9 * i) for i in range(OUT)] for k in range(LAYERS)]
        for r in range(ROWS)
    ]
    rows = [
        [
            slopes[r][k][i] * inputs[r][k][j]
            for k in range(LAYERS)
            for i in range(OUT)
            for j in range(IN)
        ]
        for r in range(ROWS)
    ]

    def whole(p: int, q: int) -> float:
        return sum(row[p] * row[q] for row in rows) / ROWS

    def blocks(p: int, q: int) -> float:
        return whole(p, q) if p // IN == q // IN else 0.0

    def diagonal(p: int, q: int) -> float:
        return whole(p, q) if p == q else 0.0

    def kronecker(p: int, q: int) -> float:
        (k, i, j), (m, n, o) = ((w // (OUT * IN), w // IN % OUT, w % IN) for w in (p, q))
        if k != m:
            return 0.0
        outer = sum(slope[k][i] * slope[k][n] for slope in slopes) / ROWS
        return outer * sum(value[k][j] * value[k][o] for value in inputs) / ROWS

    panels = {
        "LowRank": ("M-FAC: all pairs", whole),
        "Dense": ("WoodFisher: blocks", blocks),
        "Kronecker": ("K-FAC: by layer, B ⊗ A", kronecker),
        "Diagonal": ("OBD: no pairs", diagonal),
    }
    picture = Picture(760, 260, "Four structures of the same Fisher matrix")
    most = max(abs(whole(p, q)) for p in range(size) for q in range(size))
    side = 10
    for index, (title, (words, entry)) in enumerate(panels.items()):
        left = 20 + index * 185
        picture.text(left, 30, title, size=15, weight=600)
        picture.text(left, 50, words, size=12, fill=QUIET)
        for p in range(size):
            for q in range(size):
                shade = min(8, round(8 * math.sqrt(abs(entry(p, q)) / most)))
                mix = [round(245 - (245 - full) * shade / 8) for full in (11, 107, 203)]
                colour = "#" + "".join(f"{channel:02x}" for channel in mix)
                picture.square(left + q * side, 64 + p * side, side - 0.5, colour)
    picture.text(20, 248, "Darker: larger. 16 weights in two layers, five samples.", fill=QUIET)
    return picture.svg()


PICTURES = {"resnet20.svg": accuracy, "removal.svg": removal, "structures.svg": structures}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (STATIC / name).write_text(draw(), "utf-8")
