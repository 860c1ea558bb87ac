"""Tables of one run: what it gave, its stages or epochs, the dampings that were tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from woodbury.reporting.grid import MISSING, Grid, aligned, percent, percent_with_error
from woodbury.reporting.records import (
    DampingTrial,
    EpochNumbers,
    GradualNumbers,
    PruneNumbers,
    PruningStepNumbers,
    StageNumbers,
    perplexity,
    score_label,
)

SMALL_ERROR = 0.002
"""A standard error below it is shown with two decimals of a percent."""
AGAIN = "the same command with --method magnitude is one"
"""How a baseline is made that no run makes by itself."""


class Network(NamedTuple):
    """A row of the table of results.

    Attributes:
        name: Which network.
        sparsity: Removed ÷ all weights.
        score: On the test data.
        error: The standard error of the score; None for none.
        loss: On the calibration set; None where it was not measured.
    """

    name: str
    sparsity: float
    score: float
    error: float | None
    loss: float | None = None


def results(numbers: PruneNumbers | GradualNumbers, method: str) -> Grid:
    """The dense network, its baseline and what the run made of it, one to a row.

    Args:
        numbers: Of the run.
        method: What pruned.
    """
    dense = Network(
        "dense", 0.0, numbers.score_before, numbers.standard_error_before, numbers.loss_before
    )
    pruned = (
        numbers.sparsity,
        numbers.score_after,
        numbers.standard_error_after,
        numbers.loss_after,
    )
    if isinstance(numbers, GradualNumbers):
        last = (
            numbers.sparsity,
            numbers.score_pruned,
            numbers.standard_error_pruned,
            numbers.loss_pruned,
        )
        rows = [dense, Network("after the last step", *last), Network("at the end", *pruned)]
        remark = f"A baseline is a run of its own: {AGAIN}."
    else:
        rows = [dense, Network(method, *pruned)]
        baseline = numbers.baseline
        remark = f"Magnitude pruning is left out: {baseline.skipped}." if baseline.skipped else ""
        if numbers.predicted_interval is not None:
            remark = f"{remark} {numbers.predicted_interval.in_words()}".strip()
        if baseline.score is not None:
            of_baseline = (baseline.score, baseline.standard_error, baseline.loss)
            rows.insert(1, Network("magnitude", numbers.sparsity, *of_baseline))
    note = error_note(numbers.test_samples, numbers.standard_error_before)
    words = f"{note} {remark}".strip()
    return _networks(rows, score_label(numbers.measure), words, numbers.tokens_per_sample)


def _networks(
    rows: Sequence[Network], measure: str, note: str, tokens_per_sample: float | None
) -> Grid:
    cells = [(row.name, percent(row.sparsity, 2), score_text(row.score, row.error)) for row in rows]
    header = ("network", "sparsity", f"{measure}, test data")
    if any(row.loss is not None for row in rows):
        losses = aligned([row.loss for row in rows])
        cells = [(*cell, loss) for cell, loss in zip(cells, losses, strict=True)]
        header = (*header, "loss, calibration set")
    if tokens_per_sample is not None:
        perplexities = aligned([perplexity(row.loss, tokens_per_sample) for row in rows])
        cells = [(*cell, text) for cell, text in zip(cells, perplexities, strict=True)]
        header = (*header, "perplexity, calibration set")
    return Grid("Result", header, tuple(cells), note=note)


def score_text(score: float, error: float | None) -> str:
    """A score in percent, with its standard error where it has one.

    Example:
        >>> score_text(0.971, 0.008), score_text(0.971, 0.0004), score_text(0.971, None)
        ('97.1 ± 0.8 %', '97.10 ± 0.04 %', '97.10 %')
    """
    digits = 2 if error is None or error < SMALL_ERROR else 1
    return percent_with_error(score, error, digits)


def error_note(samples: int, error: float | None) -> str:
    """How sure a score on the test data is, in a sentence.

    Args:
        samples: Of the test data.
        error: The standard error of some score; None where there is none.

    Example:
        >>> error_note(450, None)
        'Measured on 450 test samples.'
    """
    if error is None:
        return f"Measured on {samples:,} test samples."
    return (
        f"± is one standard error, from the draw of {samples:,} test samples; they are the same "
        "for all networks, so that differences vary less."
    )


def draw_note(samples: int, error: float | None) -> str:
    """What the draw of the test data adds to a spread over other things, in a sentence.

    Args:
        samples: Of the test data.
        error: The standard error of the dense score; None where there is none.

    Example:
        >>> draw_note(450, 0.008)
        'The draw of 450 test samples alone has a standard error of 0.8 at the dense score.'
    """
    if error is None:
        return f"Measured on {samples:,} test samples."
    return (
        f"The draw of {samples:,} test samples alone has a standard error of {100 * error:.2g} at "
        "the dense score."
    )


def stages(numbers: Sequence[StageNumbers]) -> Grid:
    """What each stage reached.

    Args:
        numbers: Of the stages in order.
    """
    predicted = [stage.predicted_increase for stage in numbers]
    measured = [stage.measured_increase for stage in numbers]
    columns = {
        "stage": [f"{number}" for number in range(1, len(numbers) + 1)],
        "sparsity": [percent(stage.sparsity, 2) for stage in numbers],
        "damping": [_damping(stage.damping) for stage in numbers],
        "predicted increase": aligned(predicted, beside=measured),
        "measured": aligned(measured, beside=predicted),
        "loss": aligned([stage.loss for stage in numbers], digits=4),
    }
    note = "On the calibration set; increases are over the dense network."
    return _of_columns("Stages", columns, note)


def pruning_steps(numbers: GradualNumbers) -> Grid:
    """What each pruning step of a gradual run did.

    Args:
        numbers: Of the run.
    """
    steps = numbers.steps
    measure = score_label(numbers.measure)
    columns = {
        "epoch": [f"{step.epoch:.2f}" for step in steps],
        "sparsity": [percent(step.sparsity, 2) for step in steps],
        "damping": [_damping(step.damping) for step in steps],
        "predicted increase": aligned([step.predicted_increase for step in steps]),
        **_held_back(steps),
        f"{measure} before": [_score(step.held_out_score_before) for step in steps],
        f"{measure} after": [_score(step.held_out_score_after) for step in steps],
    }
    note = "On held-out training data, right before and after each step."
    refuted = sum(bool(step.predicted_warning) for step in steps)
    if refuted:
        note += (
            f" The prediction does not hold in {refuted} of {len(steps)} steps: the increase is "
            "outside of its 95 % interval on samples held back."
        )
    return _of_columns("Pruning steps", columns, note)


def _held_back(steps: Sequence[PruningStepNumbers]) -> dict[str, list[str]]:
    """The column of the intervals; none without any."""
    intervals = [step.predicted_interval for step in steps]
    if not any(intervals):
        return {}
    return {"held back": [MISSING if each is None else each.ends() for each in intervals]}


def _of_columns(title: str, columns: dict[str, list[str]], note: str) -> Grid:
    """A table of columns; a damping that is the same in all rows is in the note."""
    if len(set(columns["damping"])) == 1:
        damping = columns["damping"][0]
        columns = {name: column for name, column in columns.items() if name != "damping"}
        note += "" if damping == MISSING else f" The damping is {damping}."
    return Grid(title, tuple(columns), tuple(zip(*columns.values(), strict=True)), note=note)


def dampings(trials: Sequence[DampingTrial], chosen: float | None) -> Grid:
    """The dampings that were tried, the chosen one bold.

    Args:
        trials: The candidates.
        chosen: The damping of the run.
    """
    losses = aligned([trial.held_out_loss for trial in trials], digits=4)
    cells = tuple(
        (_damping(trial.damping), loss, "chosen" if trial.damping == chosen else "")
        for trial, loss in zip(trials, losses, strict=True)
    )
    best = {
        (row, column)
        for row, trial in enumerate(trials)
        if trial.damping == chosen
        for column in range(3)
    }
    note = "The loss on held-out training data after the first stage decides, never the test data."
    header = ("damping", "held-out loss", "")
    return Grid("Dampings that were tried", header, cells, frozenset(best), note)


def dampings_of_steps(steps: Sequence[PruningStepNumbers]) -> Grid:
    """The held-out loss by each damping at each pruning step, the chosen one bold.

    Args:
        steps: Of a run that tried the same dampings at every step.
    """
    candidates = [trial.damping for trial in steps[0].dampings_tried]
    losses = aligned([trial.held_out_loss for step in steps for trial in step.dampings_tried])
    rows = [
        losses[start : start + len(candidates)] for start in range(0, len(losses), len(candidates))
    ]
    cells = tuple(
        (f"{step.epoch:.2f}", percent(step.sparsity, 2), *row)
        for step, row in zip(steps, rows, strict=True)
    )
    best = {
        (row, column)
        for row, step in enumerate(steps)
        for column, damping in enumerate(candidates, 2)
        if damping == step.damping
    }
    header = ("epoch", "sparsity", *map(_damping, candidates))
    note = "Held-out loss by damping; the least one is taken."
    return Grid("Dampings that were tried", header, cells, frozenset(best), note)


def epochs(numbers: Sequence[EpochNumbers], measure: str) -> Grid:
    """What each epoch of training reached.

    Args:
        numbers: In order.
        measure: What the scores are.
    """
    columns = {
        "epoch": [f"{each.epoch}" for each in numbers],
        "loss": aligned([each.held_out_loss for each in numbers]),
        score_label(measure): [percent(each.held_out_score, 2) for each in numbers],
    }
    if any(each.held_out_perplexity is not None for each in numbers):
        columns["perplexity"] = aligned([each.held_out_perplexity for each in numbers])
    cells = tuple(zip(*columns.values(), strict=True))
    return Grid("Held-out training data", tuple(columns), cells)


def _damping(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3g}"


def _score(value: float | None) -> str:
    return MISSING if value is None else percent(value, 2)
