"""The numbers of a report: a dataclass for each command, whose fields are the keys in its JSON.

All keys are snake_case, so that jq and pandas need no quotes. The field `measure` says what the
scores are: "accuracy", "agreement" or "r_squared".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from woodbury.pruning.prediction import IncreaseInterval

MEASURE_LABELS = {"r_squared": "R²"}
"""Measures whose name on a page is not that of the key."""


@dataclass(frozen=True)
class Baseline:
    """Magnitude pruning to the same sparsity, of the same units, without an update.

    Attributes:
        score: On the test data; None where it was not measured.
        standard_error: Of that score, as `PruneNumbers.standard_error_before`.
        loss: On the calibration set; None where it was not measured.
        seconds: Wall-clock time of the pruning and of both measurements.
        skipped: Why it was not measured; empty where it was.
    """

    score: float | None = None
    standard_error: float | None = None
    loss: float | None = None
    seconds: float | None = None
    skipped: str = ""


@dataclass(frozen=True)
class StageNumbers:
    """What one stage of `woodbury prune` reached.

    Attributes:
        sparsity: Removed ÷ all weights.
        loss: On the calibration set.
        predicted_increase: Of that loss over the dense network's; None without a Fisher.
        measured_increase: The same as measured.
        damping: Of the Fisher; None without one.
    """

    sparsity: float
    loss: float
    predicted_increase: float | None
    measured_increase: float
    damping: float | None


@dataclass(frozen=True)
class DampingTrial:
    """A damping that was tried.

    Attributes:
        damping: The candidate.
        held_out_loss: On held-out training data, after the first stage with it.
    """

    damping: float
    held_out_loss: float


@dataclass(frozen=True)
class PruneNumbers:
    """What `woodbury prune` measured, in one step or several.

    Attributes:
        measure: What the scores are.
        sparsity: Removed ÷ all weights, as reached.
        test_samples: Of the test data.
        score_before: Of the dense network on the test data.
        standard_error_before: Of that score, from the draw of the test samples; None for a score
            that is no share of them.
        score_after: Of the pruned network on the test data.
        standard_error_after: Of that score.
        loss_before: Of the dense network on the calibration set.
        loss_after: Of the pruned network on the calibration set.
        predicted_increase: Of the loss, by the quadratic; None without a Fisher.
        measured_increase: loss_after − loss_before.
        damping: Of the Fisher, None without one.
        seconds: Wall-clock time of the pruning, of its plan and of the choice of a damping.
        peak_megabytes: The process's peak memory meanwhile, in units of 2²⁰ bytes.
        peak_device_megabytes: That of the CUDA device, None without one.
        baseline: Magnitude pruning to the same sparsity.
        stages: The stages in order.
        dampings_tried: The candidates in order; empty where there was nothing to choose.
        predicted_interval: The increase on training data that nothing else saw; None without any.
        predicted_warning: Why the prediction is no forecast; empty where nothing is known against
            it.
        tokens_per_sample: Of the calibration set, on average, those that are predicted; None for a
            network that is no causal language model.
        perplexity_before: exp(loss_before ÷ tokens_per_sample); None for such a network.
        perplexity_after: The same of loss_after.
    """

    measure: str
    sparsity: float
    test_samples: int
    score_before: float
    standard_error_before: float | None
    score_after: float
    standard_error_after: float | None
    loss_before: float
    loss_after: float
    predicted_increase: float | None
    measured_increase: float
    damping: float | None
    seconds: float
    peak_megabytes: float
    peak_device_megabytes: float | None
    baseline: Baseline
    stages: tuple[StageNumbers, ...]
    dampings_tried: tuple[DampingTrial, ...]
    predicted_interval: IncreaseInterval | None = None
    predicted_warning: str = ""
    tokens_per_sample: float | None = None
    perplexity_before: float | None = None
    perplexity_after: float | None = None


def perplexity(loss: float | None, tokens_per_sample: float | None) -> float | None:
    """What a loss in nats per sample is as a perplexity.

    Args:
        loss: Summed over a sample's tokens, averaged over samples; None for none.
        tokens_per_sample: How many tokens that are on average; None for other data.

    Returns:
        exp(loss ÷ tokens); infinite where that is too large; None where either is.

    Example:
        >>> round(perplexity(20.0, 10.0), 4)  # e²
        7.3891
    """
    if loss is None or tokens_per_sample is None:
        return None
    try:
        return math.exp(loss / tokens_per_sample)
    except OverflowError:
        return math.inf


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
        dampings_tried: The candidates in order; empty where there was nothing to choose.
        predicted_interval: The increase on held-out training data that nothing was chosen on; None
            without any.
        predicted_warning: Why the prediction is no forecast; empty where nothing is known against
            it.
    """

    step: int
    epoch: float
    sparsity: float
    predicted_increase: float | None
    damping: float | None
    held_out_score_before: float | None
    held_out_score_after: float | None
    dampings_tried: tuple[DampingTrial, ...] = ()
    predicted_interval: IncreaseInterval | None = None
    predicted_warning: str = ""


@dataclass(frozen=True)
class GradualNumbers:
    """What `woodbury prune --epochs` measured.

    Attributes:
        measure: What the scores are.
        sparsity: Removed ÷ all weights, as reached.
        test_samples: Of the test data.
        score_before: Of the dense network on the test data.
        standard_error_before: Of that score, as in `PruneNumbers`; so are the two others.
        score_pruned: On the test data, right after the last pruning step.
        standard_error_pruned: Of that score.
        score_after: On the test data, at the end.
        standard_error_after: Of that score.
        seconds: Wall-clock time of all parts of the run.
        steps: The pruning steps in order.
        tokens_per_sample: As in `PruneNumbers`; None for a network that is no causal language
            model, which has no losses here.
        loss_before: Of the dense network on the calibration set.
        loss_pruned: On the same data, right after the last pruning step.
        loss_after: On the same data, at the end.
        perplexity_before: exp(loss_before ÷ tokens_per_sample).
        perplexity_pruned: The same of loss_pruned.
        perplexity_after: The same of loss_after.
    """

    measure: str
    sparsity: float
    test_samples: int
    score_before: float
    standard_error_before: float | None
    score_pruned: float
    standard_error_pruned: float | None
    score_after: float
    standard_error_after: float | None
    seconds: float
    steps: tuple[PruningStepNumbers, ...]
    tokens_per_sample: float | None = None
    loss_before: float | None = None
    loss_pruned: float | None = None
    loss_after: float | None = None
    perplexity_before: float | None = None
    perplexity_pruned: float | None = None
    perplexity_after: float | None = None


@dataclass(frozen=True)
class EpochNumbers:
    """One epoch of `woodbury train`.

    Attributes:
        epoch: From 1.
        held_out_loss: On held-out training data, at its end.
        held_out_score: On the same data.
        held_out_perplexity: exp(held_out_loss ÷ tokens that a sample predicts); None for a network
            that is no causal language model.
    """

    epoch: int
    held_out_loss: float
    held_out_score: float
    held_out_perplexity: float | None = None


@dataclass(frozen=True)
class TrainNumbers:
    """What `woodbury train` measured.

    Attributes:
        measure: What the scores are.
        score: On the test data, at the end.
        test_samples: Of the test data.
        standard_error: Of the score, as in `PruneNumbers`.
        seconds: Wall-clock time of all parts of the run.
        epochs: In order.
        perplexity: On the test data, at the end; None for a network that is no causal language
            model.
    """

    measure: str
    score: float
    test_samples: int
    standard_error: float | None
    seconds: float
    epochs: tuple[EpochNumbers, ...]
    perplexity: float | None = None


def score_label(measure: str) -> str:
    """The name of a measure for people.

    Example:
        >>> score_label("r_squared"), score_label("accuracy")
        ('R²', 'accuracy')
    """
    return MEASURE_LABELS.get(measure, measure)
