"""Plots of results as PNGs, in a light and a dark version, by matplotlib, which is optional."""

from __future__ import annotations

import math
from collections.abc import Sequence

from woodbury.evaluation.results import Result, summary
from woodbury.pruning.pruner import Quantiles
from woodbury.reporting.figures import COLOURS, DASHES, Label, Sheet, label_ends, styles
from woodbury.reporting.per_layer import TensorSummary
from woodbury.reporting.tables import percent


def accuracies(
    results: Sequence[Result],
    *,
    dense: float | None = None,
    measure: str = "accuracy",
    dark: bool = False,
) -> bytes:
    """Plot the score over the sparsity, one line for each method, the spread over seeds as bars.

    Args:
        results: What `compare` gave, at least one.
        dense: The score of the dense network, as a dashed line; None to leave it out.
        measure: What the scores are.
        dark: For a dark page.

    Returns:
        A PNG. The x-axis is logarithmic in the kept fraction.

    Raises:
        MissingDependency: If matplotlib is not installed.
    """
    sheet = Sheet.of(dark)
    (panel,) = sheet.axes
    cells = summary(results)
    ends = []
    for method, colour, marker in styles([cell.method for cell in cells]):
        line = [cell for cell in cells if cell.method == method]
        line.sort(key=lambda cell: cell.sparsity)
        scores = [100 * cell.accuracy for cell in line]
        panel.errorbar(
            [kept_axis(cell.sparsity) for cell in line],
            scores,
            [100 * cell.spread for cell in line],
            color=colour,
            marker=marker,
            ms=5,
            lw=1.8,
            capsize=2.5,
            elinewidth=1,
        )
        ends.append(Label(scores[-1], method, colour))
    ink = sheet.palette.ink
    if dense is not None:
        panel.axhline(100 * dense, color=ink, lw=0.8, ls=DASHES, zorder=0)
        ends.append(Label(100 * dense, f"dense {100 * dense:.1f}", ink))
    panel.margins(x=0.03)
    label_ends(panel, ends)
    ticks = sorted({cell.sparsity for cell in cells})
    panel.set_xticks([kept_axis(tick) for tick in ticks], [percent(tick) for tick in ticks])
    sheet.label(
        panel, f"{measure.capitalize()} in %", x="sparsity (logarithmic in the kept weights)"
    )
    panel.grid(axis="y", color=sheet.palette.faint, lw=0.8)
    return sheet.png()


def predictions(results: Sequence[Result], *, dark: bool = False) -> bytes | None:
    """Plot the measured increase of the loss over the predicted one, both logarithmic.

    Args:
        results: What `compare` gave.
        dark: For a dark page.

    Returns:
        A PNG, where points on the dashed line are as predicted; None if no increase is above 0.

    Raises:
        MissingDependency: If matplotlib is not installed.
    """
    sheet = Sheet.of(dark)
    (panel,) = sheet.axes
    cells = summary(results)
    points = [
        (cell.method, cell.predicted, cell.measured)
        for cell in cells
        if cell.predicted is not None and cell.predicted > 0 and cell.measured > 0
    ]
    if not points:
        return None
    for method, colour, marker in styles([cell.method for cell in cells]):
        of_method = [point[1:] for point in points if point[0] == method]
        panel.plot(
            [predicted for predicted, _ in of_method],
            [measured for _, measured in of_method],
            marker,
            color=colour,
            ms=6,
            label=method if of_method else None,
        )
    values = [value for _, *increases in points for value in increases]
    diagonal = [min(values), max(values)]
    panel.plot(diagonal, diagonal, color=sheet.palette.ink, lw=0.8, ls=DASHES, zorder=0)
    panel.set(xscale="log", yscale="log")
    sheet.label(
        panel, "Measured increase of the loss", x="predicted increase (dashed: as predicted)"
    )
    panel.grid(color=sheet.palette.faint, lw=0.8)
    panel.legend(frameon=False, labelcolor="linecolor", fontsize=9.5)
    return sheet.png()


def per_tensor(tensors: Sequence[TensorSummary], *, dark: bool = False) -> bytes:
    """Plot the kept fraction of each parameter tensor, and the quantiles of its saliencies.

    Args:
        tensors: From `summarize_tensors`. Without saliencies there is no second panel.
        dark: For a dark page.

    Returns:
        A PNG. Saliencies run from 10 to 90 %, with a dot at the median.

    Raises:
        MissingDependency: If matplotlib is not installed.
    """
    saliencies = _positive([tensor.saliencies for tensor in tensors])
    sheet = Sheet.of(dark, panels=2 if saliencies else 1, height=1.2 + 0.24 * len(tensors))
    rows = range(len(tensors))
    kept = sheet.axes[0]
    fractions = [100 * tensor.kept / tensor.weights for tensor in tensors]
    kept.barh(rows, fractions, color=COLOURS[2], height=0.7)
    kept.set(xlim=(0, 100))
    kept.set_yticks(rows, [tensor.name for tensor in tensors], fontsize=8)
    sheet.label(kept, "Kept weights in %")
    if saliencies:
        scores = sheet.axes[1]
        scores.hlines(
            [row for row, _ in saliencies],
            [quantiles.q10 for _, quantiles in saliencies],
            [quantiles.q90 for _, quantiles in saliencies],
            color=COLOURS[4],
            lw=2,
        )
        scores.plot(
            [quantiles.median for _, quantiles in saliencies],
            [row for row, _ in saliencies],
            "o",
            color=COLOURS[4],
            ms=4,
        )
        scores.set(xscale="log", ylim=kept.get_ylim())
        scores.set_yticks(rows, [])
        sheet.label(scores, "Saliency, 10 to 90 %")
        scores.invert_yaxis()
    kept.invert_yaxis()
    for panel in sheet.axes:
        panel.grid(axis="x", color=sheet.palette.faint, lw=0.8)
    return sheet.png()


def kept_axis(sparsity: float) -> float:
    """−log₁₀ of the kept fraction: the place of a sparsity on the axis, wide near 1.

    Example:
        >>> kept_axis(0.9)
        1.0
    """
    return -math.log10(1 - sparsity)


def _positive(saliencies: Sequence[Quantiles | None]) -> list[tuple[int, Quantiles]]:
    """(row, quantiles) of those that are not all zero, for a logarithmic axis.

    A zero becomes a tenth of the least that is none.
    """
    shown = [
        (row, quantiles)
        for row, quantiles in enumerate(saliencies)
        if quantiles is not None and quantiles.q90 > 0
    ]
    if not shown:
        return []
    values = [value for _, each in shown for value in (each.q10, each.median, each.q90)]
    floor = min(value for value in values if value > 0) / 10
    return [
        (
            row,
            Quantiles(
                q10=max(each.q10, floor),
                median=max(each.median, floor),
                q90=max(each.q90, floor),
            ),
        )
        for row, each in shown
    ]
