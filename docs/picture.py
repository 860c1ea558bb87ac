"""The picture of the packages in architecture.md, drawn from the imports: python docs/picture.py

Lines go down from a package to those it imports; one that a longer path implies is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean

import grimp
from figures import INK, QUIET, STATIC, Picture

FILE = "packages.svg"
WIDTH, ROW, BOX, GAP = 640, 60, 26, 24
"""Pixels: of the picture, from row to row, the height of a box, and between two of a row."""
BEND = 4.0
"""The room of a line that passes a row."""
SWEEPS = 24

Node = str | tuple[str, str, int]
"""A package, or where the line from one package to another passes a row."""


def packages() -> dict[str, set[str]]:
    """Each package or module at the root of woodbury, and those that its modules import."""
    graph = grimp.build_graph("woodbury")
    imports: dict[str, set[str]] = {}
    for module in graph.modules - {"woodbury"}:
        package = module.split(".")[1]
        imported = graph.find_modules_directly_imported_by(module)
        others = {name.split(".")[1] for name in imported if "." in name}
        imports.setdefault(package, set()).update(others - {package})
    return imports


def reduced(imports: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Without the arrows that a longer path implies."""

    def reached(package: str) -> set[str]:
        direct = imports[package]
        return direct.union(*(reached(other) for other in direct))

    return {
        package: direct - set().union(*(reached(other) for other in direct))
        for package, direct in imports.items()
    }


def rows_of(arrows: Mapping[str, set[str]]) -> dict[str, int]:
    """The row of each package: one below the lowest of those that import it."""
    importers = {each: [one for one in arrows if each in arrows[one]] for each in arrows}

    def row(package: str) -> int:
        return max((row(other) + 1 for other in importers[package]), default=0)

    found = {package: row(package) for package in arrows}
    for package in arrows:  # one that nothing imports stands right above what it imports
        if not importers[package]:
            found[package] = min((found[other] for other in arrows[package]), default=1) - 1
    return found


def lines_of(arrows: Mapping[str, set[str]], rows: Mapping[str, int]) -> list[list[Node]]:
    """Each line as what it passes, one node a row."""
    return [
        [package, *((package, other, row) for row in range(rows[package] + 1, rows[other])), other]
        for package in sorted(arrows)
        for other in sorted(arrows[package])
    ]


def width_of(node: Node) -> float:
    """The room of a node in its row."""
    return 7.6 * len(node) + 20 if isinstance(node, str) else BEND


def spread(row: Iterable[Node], wanted: Mapping[Node, float]) -> dict[Node, float]:
    """Places in a row, in the order of the wanted ones and near to them, without overlap."""
    order = sorted(row, key=lambda node: (wanted[node], str(node)))
    pairs = itertools.pairwise(order)
    apart = [(width_of(left) + width_of(right)) / 2 + GAP for left, right in pairs]
    to_right = [wanted[order[0]]]
    for node, distance in zip(order[1:], apart, strict=True):
        to_right.append(max(wanted[node], to_right[-1] + distance))
    to_left = [wanted[order[-1]]]
    for node, distance in zip(order[-2::-1], apart[::-1], strict=True):
        to_left.append(min(wanted[node], to_left[-1] - distance))
    means = map(fmean, zip(to_right, to_left[::-1], strict=True))
    return dict(zip(order, means, strict=True))


def places_of(lines: list[list[Node]], rows: Mapping[str, int]) -> dict[Node, float]:
    """Where each node stands in its row, near to what it is joined with."""
    joined: dict[Node, list[Node]] = {package: [] for package in rows}
    layers: dict[int, dict[Node, None]] = {}
    for package, row in sorted(rows.items()):
        layers.setdefault(row, {})[package] = None
    for line in lines:
        for upper, lower in itertools.pairwise(line):
            joined.setdefault(upper, []).append(lower)
            joined.setdefault(lower, []).append(upper)
        for node in line[1:-1]:
            layers.setdefault(node[2], {})[node] = None  # type: ignore[index, arg-type]
    places: dict[Node, float] = {}
    for layer in layers.values():
        places |= {node: WIDTH * (i + 1) / (len(layer) + 1) for i, node in enumerate(layer)}
    for sweep in range(SWEEPS):
        for row in sorted(layers, reverse=bool(sweep % 2)):
            wanted = {
                node: fmean(places[other] for other in joined[node]) if joined[node] else WIDTH / 2
                for node in layers[row]
            }
            places |= spread(layers[row], wanted)
    left = min(place - width_of(node) / 2 for node, place in places.items())
    right = max(place + width_of(node) / 2 for node, place in places.items())
    return {node: place + (WIDTH - left - right) / 2 for node, place in places.items()}


def svg() -> str:
    """The picture."""
    arrows = reduced(packages())
    joined = {each for package, others in arrows.items() if others for each in (package, *others)}
    arrows = {package: others for package, others in arrows.items() if package in joined}
    rows = rows_of(arrows)
    lines = lines_of(arrows, rows)
    places = places_of(lines, rows)
    height = ROW * max(rows.values()) + BOX + 40
    picture = Picture(WIDTH, height, "The packages of woodbury and what each imports")

    def top(row: int) -> float:
        return 20.0 + ROW * row

    for line in lines:
        first, last = str(line[0]), str(line[-1])
        points = [(places[first], top(rows[first]) + BOX)]
        for node in line[1:-1]:
            above = top(node[2])  # type: ignore[arg-type]
            points += [(places[node], above), (places[node], above + BOX)]
        points.append((places[last], top(rows[last])))
        picture.line(points, "#9aa5b1", 1.3)
    for package, row in sorted(rows.items()):
        box = width_of(package)
        left = places[package] - box / 2
        picture.lines.append(
            f'<rect x="{left:.1f}" y="{top(row):.1f}" width="{box:.1f}" height="{BOX}" rx="5" '
            f'fill="#eef4fb" stroke="{QUIET}"/>'
        )
        picture.text(places[package], top(row) + 17, package, anchor="middle", fill=INK)
    return picture.svg()


if __name__ == "__main__":
    Path(STATIC, FILE).write_text(svg(), "utf-8")
