"""What the charts show: scores over the sparsity, predictions, stages, epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from woodbury.evaluation.results import Result, Summary, summary
from woodbury.reporting import axes
from woodbury.reporting.axes import Axis, decades, linear, percentages, sparsities
from woodbury.reporting.charts import Chart, Line, Point, Rule, styles
from woodbury.reporting.grid import percent, percent_with_error, with_minus
from woodbury.reporting.records import EpochNumbers, GradualNumbers, StageNumbers

BEFORE, AFTER = 1, 6
"""The styles of what is shown before and after something else."""
NEGLIGIBLE = 0.05
"""Of the largest increase: a decrease that is smaller has no room of its own below zero."""


class Value(NamedTuple):
    """A point in the units of its axes.

    Attributes:
        x: On the x-axis.
        y: On the y-axis.
        words: Its values in words.
        spread: Half of its error bar; None for none.
    """

    x: float
    y: float
    words: str
    spread: float | None = None


def accuracies(
    results: Sequence[Result], *, dense: float | None = None, measure: str = "accuracy"
) -> Chart:
    """The score over the sparsity, one line for each method, the spread over seeds as bars.

    Args:
        results: What `compare` gave, at least one.
        dense: The score of the dense network, as a dashed line; None to leave it out.
        measure: What the scores are.

    Returns:
        A chart whose y-axis is the same for all results: from 0 to 100 %.
    """
    cells = summary(results)
    x = sparsities(cell.sparsity for cell in cells)
    y = percentages(f"{measure} in %")
    lines = []
    for method, style in styles([cell.method for cell in cells]).items():
        of_method = sorted(
            (cell for cell in cells if cell.method == method), key=lambda cell: cell.sparsity
        )
        lines.append(Line(method, style, points_of(map(_score, of_method), x, y)))
    rules = ()
    if dense is not None and math.isfinite(dense):
        rules = (Rule(f"dense {percent(dense, 1)}", y.place(dense), y.place(dense)),)
    several = max(cell.seeds for cell in cells) > 1
    bars = " Bars are the spread over the calibration sets." if several else ""
    words = f"{measure.capitalize()} on the test data at each sparsity.{bars}"
    return Chart(f"{measure.capitalize()} over the sparsity", words, x, y, tuple(lines), rules)


def predictions(results: Sequence[Result]) -> Chart | None:
    """The measured increase of the loss over the predicted one, both logarithmic.

    Args:
        results: What `compare` gave.

    Returns:
        A chart, where points on the dashed line are as predicted; None if no increase is above 0.
    """
    cells = summary(results)
    increases = [
        (cell, cell.predicted)
        for cell in cells
        if cell.predicted is not None
        and 0 < cell.predicted < math.inf
        and 0 < cell.measured < math.inf
    ]
    if not increases:
        return None
    # One square, so that the diagonal is one.
    values = [value for cell, known in increases for value in (known, cell.measured)]
    x, y = decades("predicted increase", values), decades("measured increase", values)
    lines = []
    for method, style in styles([cell.method for cell in cells]).items():
        places = [
            Value(
                predicted,
                cell.measured,
                f"{method} at {percent(cell.sparsity)}: predicted {predicted:.3g}, "
                f"measured {cell.measured:.3g}",
            )
            for cell, predicted in increases
            if cell.method == method
        ]
        lines.append(Line(method, style, points_of(sorted(places), x, y), joined=False))
    words = (
        "Increase of the loss on the calibration set. Points on the dashed line are as predicted; "
        "above it the quadratic promised too much."
    )
    title = "Predicted and measured increase of the loss"
    return Chart(title, words, x, y, tuple(lines), (Rule("", 0.0, 1.0),))


def stages(numbers: Sequence[StageNumbers]) -> Chart:
    """The predicted and measured increase of the loss after each stage.

    Args:
        numbers: Of the stages in order, at least one.
    """
    x = sparsities(stage.sparsity for stage in numbers)
    increases = [stage.measured_increase for stage in numbers]
    predicted = [
        stage.predicted_increase for stage in numbers if stage.predicted_increase is not None
    ]
    most = max(0.0, *increases, *predicted)
    shown = [value for value in (*increases, *predicted) if value < -NEGLIGIBLE * most]
    y = linear("increase of the loss", [0.0, most, *shown])
    lines = []
    if len(predicted) == len(numbers):
        lines.append(_line("predicted", BEFORE, numbers, predicted, x, y))
    lines.append(_line("measured", AFTER, numbers, increases, x, y))
    words = "Increase of the loss on the calibration set, over the dense network, after each stage."
    return Chart("Loss after each stage", words, x, y, tuple(lines))


def gradual(numbers: GradualNumbers, measure: str) -> Chart | None:
    """The score on held-out data right before and after each pruning step.

    Args:
        numbers: Of the run.
        measure: What the scores are.

    Returns:
        A chart over the epochs; None where there are no such scores.
    """
    scored = [
        (step.epoch, step.sparsity, step.held_out_score_before, step.held_out_score_after)
        for step in numbers.steps
        if step.held_out_score_before is not None and step.held_out_score_after is not None
    ]
    if not scored:
        return None
    x = axes.epochs(epoch for epoch, _, _, _ in scored)
    y = linear(f"{measure} in %", [score for _, _, *both in scored for score in both], unit=0.01)
    lines = []
    for name, style, place in (("before", BEFORE, 2), ("after", AFTER, 3)):
        values = (
            Value(
                row[0],
                row[place],
                f"epoch {row[0]:.2f}, {name} the step to {percent(row[1], 1)}: "
                f"{percent(row[place], 1)}",
            )
            for row in scored
        )
        points = points_of(values, x, y)
        lines.append(Line(f"{name} a step", style, points))
    words = f"{measure.capitalize()} on held-out training data, right before and after each step."
    title = f"{measure.capitalize()} at the pruning steps"
    return Chart(title, words, x, y, tuple(lines))


def training(epochs: Sequence[EpochNumbers]) -> Chart:
    """The loss on held-out data after each epoch.

    Args:
        epochs: In order, at least one.
    """
    x = axes.epochs(each.epoch for each in epochs)
    y = linear("loss", [0.0, *(each.held_out_loss for each in epochs)])
    values = (
        Value(each.epoch, each.held_out_loss, f"epoch {each.epoch}: {each.held_out_loss:.4g}")
        for each in epochs
    )
    points = points_of(values, x, y)
    words = "Loss on held-out training data after each epoch."
    return Chart("Loss after each epoch", words, x, y, (Line("loss", AFTER, points),))


def _line(
    name: str,
    style: int,
    numbers: Sequence[StageNumbers],
    increases: Sequence[float],
    x: Axis,
    y: Axis,
) -> Line:
    """The increases of one kind, over the stages."""
    values = (
        Value(
            stage.sparsity,
            increase,
            f"{name} at {percent(stage.sparsity, 1)}: {with_minus(f'{increase:.3g}')}",
        )
        for stage, increase in zip(numbers, increases, strict=True)
    )
    return Line(name, style, points_of(values, x, y))


def _score(cell: Summary) -> Value:
    spread = cell.spread if cell.seeds > 1 else None
    score = percent_with_error(cell.accuracy, spread)
    words = f"{cell.method} at {percent(cell.sparsity)}: {score}"
    return Value(cell.sparsity, cell.accuracy, words, spread)


def points_of(values: Iterable[Value], x: Axis, y: Axis) -> tuple[Point, ...]:
    """The places of values on two axes; those that are not finite have none.

    Args:
        values: From left to right.
        x: The x-axis.
        y: The y-axis.
    """
    return tuple(
        Point(
            x=x.place(value.x),
            y=y.place(value.y),
            words=value.words,
            low=None if value.spread is None else y.place(value.y - value.spread),
            high=None if value.spread is None else y.place(value.y + value.spread),
        )
        for value in values
        if math.isfinite(value.y)
    )
