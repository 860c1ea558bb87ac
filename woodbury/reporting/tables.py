"""Results as tables of text, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from woodbury.evaluation.results import Result, Summary, summary
from woodbury.reporting.axes import decades
from woodbury.reporting.grid import MISSING, Grid, Mark, aligned, percent, with_unit
from woodbury.reporting.per_layer import TensorSummary, total

FLOPS_LEFT = (
    "FLOPs left are those of the kept weights. Dense kernels compute with zeros too: `woodbury "
    "speed` measures what is gained."
)
"""What a count of FLOPs does not say."""


def accuracies(
    results: Sequence[Result],
    *,
    dense: float | None = None,
    measure: str = "accuracy",
    digits: int = 1,
    error: str = "",
) -> Grid:
    """Methods × sparsities: mean ± spread over the seeds, the best mean of each column bold.

    Args:
        results: What `compare` gave, at least one.
        dense: The score of the dense network, for the title; None to leave it out.
        measure: What the scores are.
        digits: Decimals of the percentages; one, as the spread is seldom smaller.
        error: A sentence about the error of a score that the test data makes; empty for none.
    """
    cells = {(cell.method, cell.sparsity): cell for cell in summary(results)}
    methods = list(dict.fromkeys(method for method, _ in cells))
    sparsities = list(dict.fromkeys(sparsity for _, sparsity in cells))
    best = set()
    for column, sparsity in enumerate(sparsities, 1):
        scores = [cells[method, sparsity].accuracy for method in methods]
        best |= {(row, column) for row, score in enumerate(scores) if score == max(scores)}
    seeds = max(cell.seeds for cell in cells.values())
    notes = ["The best of each column is bold."]
    if seeds > 1:
        notes.insert(0, f"Mean ± population standard deviation over {seeds} calibration sets.")
    if error:
        notes.append(error)
    reference = "" if dense is None else f" (dense {100 * dense:.{digits}f})"
    return Grid(
        title=f"{measure.capitalize()} in % at each sparsity{reference}",
        header=("method", *map(percent, sparsities)),
        cells=tuple(
            (method, *(_mean_and_spread(cells[method, at], digits) for at in sparsities))
            for method in methods
        ),
        best=frozenset(best),
        note=" ".join(notes),
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


def perplexities(results: Sequence[Result]) -> Grid | None:
    """Methods × sparsities: the mean perplexity on the calibration set, the least one bold.

    Args:
        results: What `compare` gave, at least one.

    Returns:
        None where the network is no causal language model.
    """
    cells = {(cell.method, cell.sparsity): cell for cell in summary(results)}
    if any(cell.perplexity_after is None for cell in cells.values()):
        return None
    methods = list(dict.fromkeys(method for method, _ in cells))
    sparsities = list(dict.fromkeys(sparsity for _, sparsity in cells))
    best = set()
    columns = []
    for column, sparsity in enumerate(sparsities, 1):
        values = [cells[method, sparsity].perplexity_after or 0.0 for method in methods]
        best |= {(row, column) for row, value in enumerate(values) if value == min(values)}
        columns.append(aligned(values))
    dense = next(iter(cells.values())).perplexity_before
    return Grid(
        title=f"Perplexity on the calibration set (dense {aligned([dense])[0]})",
        header=("method", *map(percent, sparsities)),
        cells=tuple(zip(methods, *columns, strict=True)),
        best=frozenset(best),
        note="exp(loss ÷ predicted tokens of a sample). The calibration set is what the methods "
        "fit, so that other text has a higher one.",
        tight=True,
    )


def per_tensor(tensors: Sequence[TensorSummary]) -> Grid:
    """Layer-wise sparsity: one row for each parameter tensor, and one for all of them.

    Args:
        tensors: From `summarize_tensors`. The columns of FLOPs and saliencies are left out where
            there are none.
    """
    with_flops = all(tensor.flops is not None for tensor in tensors)
    with_saliencies = any(tensor.saliencies for tensor in tensors)
    header = ["parameter", "sparsity", "weights", "kept"]
    if with_flops:
        header += ["FLOPs", "FLOPs left"]
    if with_saliencies:
        header += ["median saliency"]
    rows = []
    keys = []
    shown = [*tensors, total(tensors)]
    for tensor in shown:
        row = [tensor.name, percent(tensor.sparsity, 2), f"{tensor.weights:,}", f"{tensor.kept:,}"]
        key = [tensor.name, tensor.sparsity, tensor.weights, tensor.kept]
        if with_flops:
            row += [with_unit(tensor.flops or 0), with_unit(tensor.flops_left or 0)]
            key += [tensor.flops, tensor.flops_left]
        if with_saliencies:
            median = tensor.saliencies.median if tensor.saliencies else None
            row += ["" if median is None else f"{median:.1e}"]
            key += [median]
        rows.append(tuple(row))
        keys.append(tuple(key))
    marks: dict[int, Sequence[Mark | None]] = {1: [_sparsity_bar(tensor) for tensor in shown]}
    if with_saliencies:
        marks[len(header) - 1] = _saliency_ranges(shown)
    return Grid(
        "Sparsity of each parameter",
        tuple(header),
        tuple(rows),
        note=FLOPS_LEFT if with_flops else "",
        keys=tuple(keys),
        has_sum=True,
        has_names=True,
        marks=marks,
    )


def facts(title: str, values: Mapping[str, Any]) -> Grid:
    """Settings, versions or single numbers, one to a row.

    Args:
        title: What they are.
        values: Name -> value.
    """
    rows = ((str(name), _text(value)) for name, value in values.items())
    return Grid(title, ("setting", "value"), tuple(rows))


def _mean_and_spread(cell: Summary, digits: int) -> str:
    spread = f" ± {100 * cell.spread:.{digits}f}" if cell.seeds > 1 else ""
    return f"{100 * cell.accuracy:.{digits}f}{spread}"


def _percentage(score: float | None) -> str:
    return MISSING if score is None else f"{100 * score:.1f}"


def _sparsity_bar(tensor: TensorSummary) -> Mark:
    removed = tensor.weights - tensor.kept
    words = f"{tensor.name}: {removed:,} of {tensor.weights:,} weights removed"
    return Mark(0.0, tensor.sparsity, words)


def _saliency_ranges(tensors: Sequence[TensorSummary]) -> list[Mark | None]:
    """From 10 to 90 % of the saliencies with their median, on one logarithmic axis."""
    known = [tensor.saliencies for tensor in tensors if tensor.saliencies]
    values = [value for each in known for value in (each.q10, each.median, each.q90)]
    positive = [value for value in values if value > 0]
    if not positive:
        return [None] * len(tensors)
    axis = decades("", positive)
    marks: list[Mark | None] = []
    for tensor in tensors:
        if tensor.saliencies is None or tensor.saliencies.q90 <= 0:
            marks.append(None)
            continue
        quantiles = tensor.saliencies
        q10, median, q90 = (
            axis.place(max(value, axis.low))
            for value in (quantiles.q10, quantiles.median, quantiles.q90)
        )
        words = (
            f"{tensor.name}: 10 % below {quantiles.q10:.1e}, half below {quantiles.median:.1e}, "
            f"90 % below {quantiles.q90:.1e}"
        )
        marks.append(Mark(q10, q90, words, dot=median))
    return marks


def _text(value: Any) -> str:
    if value is None or value == [] or value == ():
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_text(each)}" for name, each in value.items())
    return ", ".join(map(_text, value)) if isinstance(value, (list, tuple)) else str(value)
