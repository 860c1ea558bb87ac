"""What the charts show: scores over the sparsity, predictions, stages, epochs."""

from __future__ import annotations

from collections.abc import Sequence

from woodbury.evaluation.results import Result, Summary, summary
from woodbury.reporting.axes import Axis, decades, linear, percentages, sparsities
from woodbury.reporting.charts import Chart, Line, Point, Rule, styles
from woodbury.reporting.grid import percent, percent_with_error
from woodbury.reporting.records import EpochNumbers, GradualNumbers, StageNumbers

BEFORE, AFTER = 1, 6
"""The styles of what is shown before and after something else."""


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
        points = tuple(_score_point(cell, x, y) for cell in of_method)
        lines.append(Line(method, style, points))
    rules = ()
    if dense is not None:
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
    increases: dict[str, list[tuple[float, Summary]]] = {}
    for cell in cells:
        if cell.predicted is not None and cell.predicted > 0 and cell.measured > 0:
            increases.setdefault(cell.method, []).append((cell.predicted, cell))
    if not increases:
        return None
    x = decades("predicted increase", [known for each in increases.values() for known, _ in each])
    y = decades(
        "measured increase", [cell.measured for each in increases.values() for _, cell in each]
    )
    every = decades("", [x.low, x.high, y.low, y.high])  # one square, so that the diagonal is one
    x = Axis(x.title, every.low, every.high, every.ticks, every.scale)
    y = Axis(y.title, every.low, every.high, every.ticks, every.scale)
    lines = [
        Line(
            method,
            style,
            tuple(
                Point(
                    x.place(predicted),
                    y.place(cell.measured),
                    f"{method} at {percent(cell.sparsity)}: predicted {predicted:.3g}, "
                    f"measured {cell.measured:.3g}",
                )
                for predicted, cell in sorted(increases[method], key=lambda pair: pair[0])
            ),
            joined=False,
        )
        for method, style in styles([cell.method for cell in cells]).items()
        if method in increases
    ]
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
    y = linear("increase of the loss", [0.0, *increases, *predicted])
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
    x = linear("epoch", [0.0, *(epoch for epoch, _, _, _ in scored)])
    y = linear(f"{measure} in %", [score for _, _, *both in scored for score in both], unit=0.01)
    lines = []
    for name, style, place in (("before", BEFORE, 2), ("after", AFTER, 3)):
        points = tuple(
            Point(
                x.place(row[0]),
                y.place(row[place]),
                f"epoch {row[0]:.2f}, {name} the step to {percent(row[1], 1)}: "
                f"{percent(row[place], 1)}",
            )
            for row in scored
        )
        lines.append(Line(f"{name} a step", style, points))
    words = f"{measure.capitalize()} on held-out training data, right before and after each step."
    title = f"{measure.capitalize()} at the pruning steps"
    return Chart(title, words, x, y, tuple(lines))


def training(epochs: Sequence[EpochNumbers]) -> Chart:
    """The loss on held-out data after each epoch.

    Args:
        epochs: In order, at least one.
    """
    x = linear("epoch", [0.0, *(each.epoch for each in epochs)])
    y = linear("loss", [0.0, *(each.held_out_loss for each in epochs)])
    points = tuple(
        Point(
            x.place(each.epoch),
            y.place(each.held_out_loss),
            f"epoch {each.epoch}: {each.held_out_loss:.4g}",
        )
        for each in epochs
    )
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
    points = tuple(
        Point(
            x.place(stage.sparsity),
            y.place(increase),
            f"{name} at {percent(stage.sparsity, 1)}: {increase:.3g}",
        )
        for stage, increase in zip(numbers, increases, strict=True)
    )
    return Line(name, style, points)


def _score_point(cell: Summary, x: Axis, y: Axis) -> Point:
    spread = cell.spread if cell.seeds > 1 else None
    return Point(
        x.place(cell.sparsity),
        y.place(cell.accuracy),
        f"{cell.method} at {percent(cell.sparsity)}: {percent_with_error(cell.accuracy, spread)}",
        None if spread is None else y.place(cell.accuracy - spread),
        None if spread is None else y.place(cell.accuracy + spread),
    )
