"""The numbers of a report: a dataclass for each command, whose fields are the keys in its JSON.

All keys are snake_case, so that jq and pandas need no quotes. The field `measure` says what the
scores are: "accuracy", "agreement" or "r_squared".
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

MEASURE_LABELS = {"r_squared": "R²"}
"""Measures whose name on a page is not that of the key."""


@dataclass(frozen=True)
class PruneNumbers:
    """What `woodbury prune` measured, in one step or several.

    Attributes:
        measure: What the scores are.
        sparsity: Removed ÷ all weights, as reached.
        score_before: Of the dense network on the test data.
        score_after: Of the pruned network on the test data.
        loss_before: Of the dense network on the calibration set.
        loss_after: Of the pruned network on the calibration set.
        predicted_increase: Of the loss, by the quadratic; None without a Fisher.
        measured_increase: loss_after − loss_before.
        damping: Of the Fisher, None without one.
        seconds: Wall-clock time of the pruning, of its plan and of the choice of a damping.
        peak_megabytes: The process's peak memory meanwhile, in units of 2²⁰ bytes.
        peak_device_megabytes: That of the CUDA device, None without one.
    """

    measure: str
    sparsity: float
    score_before: float
    score_after: float
    loss_before: float
    loss_after: float
    predicted_increase: float | None
    measured_increase: float
    damping: float | None
    seconds: float
    peak_megabytes: float
    peak_device_megabytes: float | None = None


@dataclass(frozen=True)
class PruningStepNumbers:
    """One pruning step of `woodbury prune --epochs`.

    Attributes:
        step: The optimizer step that it followed.
        epoch: The same in epochs.
        sparsity: Removed ÷ all weights, as reached.
        predicted_increase: Of the loss, None without a Fisher.
        damping: Of the Fisher, None without one.
        held_out_score_before: On held-out training data, right before the step.
        held_out_score_after: On the same data right after it.
    """

    step: int
    epoch: float
    sparsity: float
    predicted_increase: float | None
    damping: float | None
    held_out_score_before: float | None
    held_out_score_after: float | None


@dataclass(frozen=True)
class GradualNumbers:
    """What `woodbury prune --epochs` measured.

    Attributes:
        measure: What the scores are.
        sparsity: Removed ÷ all weights, as reached.
        score_before: Of the dense network on the test data.
        score_pruned: On the test data, right after the last pruning step.
        score_after: On the test data, at the end.
        seconds: Wall-clock time of all parts of the run.
        steps: The pruning steps in order.
    """

    measure: str
    sparsity: float
    score_before: float
    score_pruned: float
    score_after: float
    seconds: float
    steps: tuple[PruningStepNumbers, ...]


@dataclass(frozen=True)
class EpochNumbers:
    """One epoch of `woodbury train`.

    Attributes:
        epoch: From 1.
        held_out_loss: On held-out training data, at its end.
        held_out_score: On the same data.
    """

    epoch: int
    held_out_loss: float
    held_out_score: float


@dataclass(frozen=True)
class TrainNumbers:
    """What `woodbury train` measured.

    Attributes:
        measure: What the scores are.
        score: On the test data, at the end.
        seconds: Wall-clock time of all parts of the run.
        epochs: In order.
    """

    measure: str
    score: float
    seconds: float
    epochs: tuple[EpochNumbers, ...]


def labelled(numbers: PruneNumbers | GradualNumbers | TrainNumbers) -> dict[str, Any]:
    """The single numbers of a report under the words that a page shows.

    Args:
        numbers: What a command measured; its lists are left out.

    Returns:
        Words -> number; "score" is replaced by the measure.

    Example:
        >>> labelled(TrainNumbers("accuracy", 0.9, 12.0, epochs=()))
        {'accuracy': 0.9, 'seconds': 12.0}
    """
    score = MEASURE_LABELS.get(numbers.measure, numbers.measure)
    values = {field.name: getattr(numbers, field.name) for field in fields(numbers)}
    return {
        name.replace("score", score).replace("_", " "): value
        for name, value in values.items()
        if name != "measure" and not isinstance(value, tuple)
    }
