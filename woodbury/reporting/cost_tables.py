"""What methods cost and what they promise, as tables: losses, seconds, memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

from woodbury.evaluation.results import Result, Summary, summary
from woodbury.reporting.grid import MISSING, Grid, aligned, percent, with_minus


def losses_and_resources(results: Sequence[Result]) -> Grid:
    """The predicted and measured increase of the loss, seconds and memory: means over the seeds.

    Args:
        results: What `compare` gave.
    """
    cells = summary(results)
    increases = zip(
        aligned([cell.predicted for cell in cells]),
        aligned([cell.measured for cell in cells]),
        aligned([cell.removed for cell in cells]),
        strict=True,
    )
    with_intervals = any(cell.held_back is not None for cell in cells)
    rows = []
    keys = []
    for cell, of_loss in zip(cells, increases, strict=True):
        of_cell = [
            result
            for result in results
            if (result.method, result.sparsity) == (cell.method, cell.sparsity)
        ]
        dampings = dict.fromkeys(_number(result.damping, "g") for result in of_cell)
        resources = (f"{cell.seconds:.2f}", f"{cell.memory:,.0f}")
        texts = (cell.method, percent(cell.sparsity), ", ".join(dampings))
        held_back = (_ends(cell),) if with_intervals else ()
        rows.append((*texts, *of_loss, *held_back, *resources))
        known = (of_cell[0].damping, cell.predicted, cell.measured, cell.removed)
        order = (cell.held_back,) if with_intervals else ()
        keys.append((cell.method, cell.sparsity, *known, *order, cell.seconds, cell.memory))
    return Grid(
        title="Loss on the calibration set, seconds and memory",
        header=(
            "method",
            "sparsity",
            "damping",
            "predicted increase",
            "measured",
            "before the update",
            *(("held back",) if with_intervals else ()),
            "seconds",
            "peak MiB",
        ),
        cells=tuple(rows),
        note="The quadratic predicts the increase of the loss; magnitude predicts none. Before the "
        "update the same weights are zero and the others as in the dense network. Seconds include "
        f"the Fisher.{_of_intervals(cells) if with_intervals else ''}",
        keys=tuple(keys),
    )


def _ends(cell: Summary) -> str:
    """The interval of the increase on samples held back."""
    if cell.held_back_low is None or cell.held_back_high is None:
        return MISSING
    if not math.isfinite(cell.held_back_high):
        return "not finite"
    return with_minus(f"{cell.held_back_low:.3g}") + f" to {cell.held_back_high:.3g}"


def _of_intervals(cells: Sequence[Summary]) -> str:
    """What the column of the samples held back is, and how many predictions do not hold."""
    predicting = sum(cell.seeds for cell in cells if cell.predicted is not None)
    warned = sum(cell.warnings for cell in cells)
    text = (
        " Held back: where the increase lies on training data that no method has seen, with 95 % "
    )
    text += "confidence."
    if warned:
        text += f" Of {predicting} predictions {warned} are no forecast of it."
    return text


def resources(results: Sequence[Result]) -> Grid:
    """Methods × sparsities: seconds and peak memory, means over the seeds.

    Args:
        results: What `compare` gave, at least one.
    """
    cells = {(cell.method, cell.sparsity): cell for cell in summary(results)}
    sparsities = list(dict.fromkeys(sparsity for _, sparsity in cells))
    return Grid(
        title="Seconds, peak MB",
        header=("method", *map(percent, sparsities)),
        cells=tuple(
            (method, *(_seconds_and_memory(cells[method, at]) for at in sparsities))
            for method in dict.fromkeys(method for method, _ in cells)
        ),
        note="Of a Fisher that serves all sparsities, in each of them.",
        tight=True,
    )


def _seconds_and_memory(cell: Summary) -> str:
    digits = 1 if cell.seconds < 10 else 0
    return f"{cell.seconds:.{digits}f}, {cell.memory:.0f}"


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else f"{value:{form}}"
