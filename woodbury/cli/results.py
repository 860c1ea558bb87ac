"""What `prune` leaves: the sparse weights, every number, a page, and its last words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from woodbury.cli.common import note, say
from woodbury.export import save_sparse
from woodbury.records import versions, write_json
from woodbury.report import Grid, facts, layers, write_page
from woodbury.space import ParameterSpace


def write_results(
    folder: Path,
    model: nn.Module,
    space: ParameterSpace,
    *,
    title: str,
    line: str,
    settings: Mapping[str, Any],
    numbers: Mapping[str, Any],
    grids: Sequence[Grid] = (),
) -> None:
    """weights.safetensors, report.json and report.html; `grids` go before the numbers, which may hold lists for JSON."""
    save_sparse(folder / "weights.safetensors", model.state_dict(), space.shapes)
    report = {"command": "prune", "settings": settings, "versions": versions(), **numbers, "layers": _layers(space)}
    write_json(folder / "report.json", report)
    short = {name: value for name, value in numbers.items() if not isinstance(value, (list, tuple))}
    folded = (facts("Settings", settings), facts("Versions", versions()))
    tables = (layers(space), *grids, facts("Numbers", short))
    parts = [*(grid.html() for grid in tables), *(grid.html(folded=True) for grid in folded)]
    write_page(folder / "report.html", title, line, parts)


def show_results(space: ParameterSpace, line: str, out: Path, grids: Sequence[Grid] = (), remark: str = "") -> None:
    """The tables, the result in one line, what to look at, and how to load the weights."""
    for grid in (layers(space), *grids):
        say(grid.rich())
    say(line)
    for layer in _layers(space):
        if not layer["kept"]:
            note(f"{layer['name']} lost all its weights: leave it out with --exclude, or take --scope global.")
    if remark:
        note(remark)
    say(f'Load it with  model.load_state_dict(woodbury.load_sparse("{out / "weights.safetensors"}"))', plain=True)


def _layers(space: ParameterSpace) -> list[dict[str, Any]]:
    kept = {name: int(space.keep[part].sum()) for name, part in space.slices.items()}
    return [
        {"name": name, "weights": shape.numel(), "kept": kept[name], "sparsity": 1 - kept[name] / shape.numel()}
        for name, shape in space.shapes.items()
    ]
