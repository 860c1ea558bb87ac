"""What `prune` leaves: the sparse weights, every number, a page, and its last words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from woodbury.cli.common import note, say
from woodbury.io.sparse_files import save_sparse
from woodbury.reporting import plots
from woodbury.reporting.files import versions, write_json
from woodbury.reporting.per_layer import TensorSummary
from woodbury.reporting.tables import Grid, embedded, facts, layers, write_page


def write_results(
    folder: Path,
    model: nn.Module,
    stays: Sequence[TensorSummary],
    *,
    title: str,
    line: str,
    settings: Mapping[str, Any],
    numbers: Mapping[str, Any],
    grids: Sequence[Grid] = (),
) -> None:
    """weights.safetensors, report.json and report.html; `grids` go before the numbers, which may hold lists for JSON."""
    save_sparse(folder / "weights.safetensors", model.state_dict(), [layer.name for layer in stays])
    rows = [{**asdict(layer), "sparsity": layer.sparsity} for layer in stays]
    report = {
        "command": "prune",
        "settings": settings,
        "versions": versions(),
        **numbers,
        "layers": rows,
    }
    write_json(folder / "report.json", report)
    short = {name: value for name, value in numbers.items() if not isinstance(value, (list, tuple))}
    folded = (facts("Settings", settings), facts("Versions", versions()))
    tables = (layers(stays), *grids, facts("Numbers", short))
    parts = [
        *_pictured(stays),
        *(grid.html() for grid in tables),
        *(grid.html(folded=True) for grid in folded),
    ]
    write_page(folder / "report.html", title, line, parts)


def show_results(
    stays: Sequence[TensorSummary],
    line: str,
    out: Path,
    grids: Sequence[Grid] = (),
    remark: str = "",
) -> None:
    """The tables, the result in one line, what to look at, and how to load the weights."""
    for grid in (layers(stays), *grids):
        say(grid.rich())
    say(line)
    for layer in stays:
        if not layer.kept:
            note(
                f"{layer.name} lost all its weights: take --ceiling 0.99, or leave it out with --exclude."
            )
    if remark:
        note(remark)
    say(
        f'Load it with  model.load_state_dict(woodbury.load_sparse("{out / "weights.safetensors"}"))',
        plain=True,
    )


def _pictured(stays: Sequence[TensorSummary]) -> list[str]:
    """The picture of what stays for the page; none where matplotlib is missing."""
    try:
        light, dark = (plots.layers(stays, dark=dark) for dark in (False, True))
    except plots.NoMatplotlib:
        return []
    return [
        embedded(
            light, dark, "What stays of each tensor, and its saliencies before the first step."
        )
    ]
