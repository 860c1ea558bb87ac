"""Results as tables of text, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from woodbury.evaluation.results import Result, Summary, summary
from woodbury.reporting.per_layer import TensorSummary, total

MISSING = "–"
"""The cell of a number that there is none of."""
UNITS = (("G", 1e9), ("M", 1e6), ("k", 1e3))


@dataclass(frozen=True)
class Grid:
    """A table as text. `rich` prints it; `woodbury.reporting.page` puts it on a page.

    Attributes:
        title: What it shows.
        header: The names of the columns.
        cells: The rows, each as long as the header; the first cell says what the row is.
        best: The (row, column) of the cells to print bold, from 0.
        note: A remark below it, may be empty.
        tight: Less space between the columns in a terminal, so that seven sparsities with their
            spreads fit into 80 characters.

    Example:
        >>> grid = Grid("Accuracy in %", ("method", "90 %"), (("joint", "97.1"),))
        >>> [column.header for column in grid.rich().columns]
        ['method', '90 %']
    """

    title: str
    header: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]] = frozenset()
    note: str = ""
    tight: bool = False

    def rich(self) -> Table:
        """The table for the terminal; text that looks like markup stays text."""
        table = Table(
            title=self.title,
            title_justify="left",
            title_style="bold",
            caption=self.note or None,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 0) if self.tight else (0, 1),
        )
        for column, name in enumerate(self.header):
            table.add_column(name, justify="right" if column else "left", overflow="fold")
        for row, cells in enumerate(self.cells):
            table.add_row(*(self._marked(row, column, cell) for column, cell in enumerate(cells)))
        return table

    def _marked(self, row: int, column: int, cell: str) -> str:
        text = escape(cell).replace(" ± ", "±")
        return f"[bold]{text}[/]" if (row, column) in self.best else text


def accuracies(
    results: Sequence[Result],
    *,
    dense: float | None = None,
    measure: str = "accuracy",
    digits: int = 1,
) -> Grid:
    """Methods × sparsities: mean ± spread over the seeds, the best mean of each column bold.

    Args:
        results: What `compare` gave, at least one.
        dense: The score of the dense network, for the title; None to leave it out.
        measure: What the scores are.
        digits: Decimals of the percentages; one, as the spread is seldom smaller.
    """
    cells = {(cell.method, cell.sparsity): cell for cell in summary(results)}
    methods = list(dict.fromkeys(method for method, _ in cells))
    sparsities = list(dict.fromkeys(sparsity for _, sparsity in cells))
    best = set()
    for column, sparsity in enumerate(sparsities, 1):
        scores = [cells[method, sparsity].accuracy for method in methods]
        best |= {(row, column) for row, score in enumerate(scores) if score == max(scores)}
    seeds = max(cell.seeds for cell in cells.values())
    note = f"Mean ± population standard deviation over {seeds} calibration sets; the best is bold."
    reference = "" if dense is None else f" (dense {100 * dense:.{digits}f})"
    return Grid(
        title=f"{measure.capitalize()} in % at each sparsity{reference}",
        header=("method", *map(percent, sparsities)),
        cells=tuple(
            (method, *(_mean_and_spread(cells[method, at], digits) for at in sparsities))
            for method in methods
        ),
        best=frozenset(best),
        note=note if seeds > 1 else "",
        tight=True,
    )


def accuracies_before_update(results: Sequence[Result], *, measure: str = "accuracy") -> Grid:
    """Methods × sparsities: the mean score after the removal and before the update.

    Args:
        results: What `compare` gave, at least one.
        measure: What the scores are.
    """
    scores = {(cell.method, cell.sparsity): cell.accuracy_removed for cell in summary(results)}
    methods = list(dict.fromkeys(method for method, _ in scores))
    sparsities = list(dict.fromkeys(sparsity for _, sparsity in scores))
    return Grid(
        title=f"{measure.capitalize()} in % after the removal, before the update",
        header=("method", *map(percent, sparsities)),
        cells=tuple(
            (method, *(_percentage(scores[method, at]) for at in sparsities)) for method in methods
        ),
        note="The removed weights are zero, all others as in the dense network.",
    )


def losses_and_resources(results: Sequence[Result]) -> Grid:
    """The predicted and measured increase of the loss, seconds and memory: means over the seeds.

    Args:
        results: What `compare` gave.
    """
    rows = []
    above = None
    for cell in summary(results):
        of_cell = [
            result
            for result in results
            if (result.method, result.sparsity) == (cell.method, cell.sparsity)
        ]
        dampings = dict.fromkeys(_number(result.damping, "g") for result in of_cell)
        rows.append(
            (
                "" if cell.method == above else cell.method,
                percent(cell.sparsity),
                ", ".join(dampings),
                _number(cell.predicted, ".3g"),
                _number(cell.measured, ".3g"),
                _number(cell.removed, ".3g"),
                f"{cell.seconds:.2f}",
                f"{cell.memory:.0f}",
            )
        )
        above = cell.method
    return Grid(
        title="Loss on the calibration set, seconds and memory",
        header=(
            "method",
            "sparsity",
            "damping",
            "predicted increase",
            "measured",
            "before the update",
            "seconds",
            "peak MB",
        ),
        cells=tuple(rows),
        note="The quadratic predicts the increase of the loss; magnitude predicts none. Before the "
        "update the same weights are zero and the others as in the dense network. Seconds include "
        "the Fisher.",
    )


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


def per_tensor(tensors: Sequence[TensorSummary]) -> Grid:
    """Layer-wise sparsity: one row for each parameter tensor, and one for all of them.

    Args:
        tensors: From `summarize_tensors`. The columns of FLOPs and saliencies are left out where
            there are none.
    """
    with_flops = all(tensor.flops is not None for tensor in tensors)
    with_saliencies = any(tensor.saliencies for tensor in tensors)
    header = ["parameter", "weights", "kept", "sparsity"]
    if with_flops:
        header += ["FLOPs", "FLOPs kept"]
    if with_saliencies:
        header += ["median saliency"]
    rows = []
    for tensor in [*tensors, total(tensors)]:
        row = [
            tensor.name,
            f"{tensor.weights:,}",
            f"{tensor.kept:,}",
            percent(tensor.sparsity, 2),
        ]
        if with_flops:
            row += [_with_unit(tensor.flops or 0), _with_unit(tensor.flops_left or 0)]
        if with_saliencies:
            row += [f"{tensor.saliencies.median:.1e}" if tensor.saliencies else ""]
        rows.append(tuple(row))
    return Grid("Kept weights", tuple(header), tuple(rows))


def facts(title: str, values: Mapping[str, Any]) -> Grid:
    """Settings, versions or single numbers, one to a row.

    Args:
        title: What they are.
        values: Name -> value.
    """
    rows = ((str(name), _text(value)) for name, value in values.items())
    return Grid(title, ("setting", "value"), tuple(rows))


def percent(fraction: float, digits: int | None = None) -> str:
    """A fraction in percent.

    Args:
        fraction: Such as 0.975.
        digits: Decimals; None for as many as it needs, at most six.

    Example:
        >>> percent(0.975), percent(0.5, 2)
        ('97.5 %', '50.00 %')
    """
    if digits is None:
        return f"{round(100 * fraction, 6):g} %"
    return f"{100 * fraction:.{digits}f} %"


def _mean_and_spread(cell: Summary, digits: int) -> str:
    spread = f" ± {100 * cell.spread:.{digits}f}" if cell.seeds > 1 else ""
    return f"{100 * cell.accuracy:.{digits}f}{spread}"


def _percentage(score: float | None) -> str:
    return MISSING if score is None else f"{100 * score:.1f}"


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else f"{value:{form}}"


def _with_unit(number: float) -> str:
    """1,234,567 as “1.23 M”."""
    for unit, size in UNITS:
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(_text, value)) if isinstance(value, (list, tuple)) else str(value)
