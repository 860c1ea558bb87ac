"""What `prune` measures beside the pruned network: its stages, and magnitude pruning."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from woodbury.cli.problem import Problem
from woodbury.errors import WoodburyError
from woodbury.evaluation.methods import Trial
from woodbury.evaluation.resources import Resources
from woodbury.memory.exhausted import if_memory_runs_out
from woodbury.model.objective import Objective
from woodbury.pruning.prediction import warning_of
from woodbury.pruning.pruned import Pruned
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.schedule import Targets
from woodbury.pruning.selections import greedy
from woodbury.pruning.updates import zero
from woodbury.reporting.grid import duration
from woodbury.reporting.records import (
    Baseline,
    DampingTrial,
    PruneNumbers,
    StageNumbers,
    perplexity,
)

HOW_TO_HOLD_BACK = "lower --count, or give more training data"
"""What to do where no training data is left beside the calibration set."""
CHEAP_SECONDS = 20.0
"""What a baseline may take in any case."""
CHEAP_SHARE = 0.1
"""What it may take of the seconds of the pruning."""


class Outcome(NamedTuple):
    """What pruning gave.

    Attributes:
        pruned: The pruned objective.
        damping: Of the Fisher; None for a method without one, or with several.
        cost: The seconds and the peak memory of the pruning alone.
        settings: What was decided.
        recipe: What pruned, as facts.
        rules: The pruner whose unit, scope, cost and limits held.
        tried: The dampings that were tried.
    """

    pruned: Pruned
    damping: float | None
    cost: Resources
    settings: Mapping[str, Any]
    recipe: Mapping[str, Any]
    rules: Pruner
    tried: tuple[DampingTrial, ...] = ()


class StageHistory:
    """Hears what each stage reaches, and measures its loss on the calibration set.

    Attributes:
        loss_before: Of the dense network.
        seconds: What the measuring took.
    """

    def __init__(self, loss_before: float) -> None:
        """Begin.

        Args:
            loss_before: Of the dense network.
        """
        self.loss_before = loss_before
        self.seconds = 0.0
        self._stages: list[StageNumbers] = []

    def __call__(self, pruned: Pruned) -> None:
        """Measure what a stage has reached."""
        began = time.perf_counter()
        self._add(pruned, pruned.objective.loss())
        self.seconds += time.perf_counter() - began

    def stages(self, pruned: Pruned, loss: float) -> tuple[StageNumbers, ...]:
        """The stages in order.

        Args:
            pruned: What the last one reached.
            loss: Its loss, for a single stage that was not heard of.
        """
        if not self._stages:
            self._add(pruned, loss)
        return tuple(self._stages)

    def _add(self, pruned: Pruned, loss: float) -> None:
        stage = StageNumbers(
            sparsity=pruned.sparsity,
            loss=loss,
            predicted_increase=pruned.predicted,
            measured_increase=loss - self.loss_before,
            damping=pruned.steps[-1].damping,
        )
        self._stages.append(stage)


def measured_numbers(
    problem: Problem,
    dense: Objective,
    target: Targets,
    before: float,
    outcome: Outcome,
    history: StageHistory,
    seconds: float,
) -> PruneNumbers:
    """What was measured of a pruned network, and of magnitude pruning beside it.

    Args:
        problem: The dense model and its data.
        dense: The dense network on the calibration set.
        target: To prune to.
        before: The score of the dense network.
        outcome: What pruning gave.
        history: What it reached on its way.
        seconds: What it took.
    """
    pruned = outcome.pruned
    began = time.perf_counter()
    after = problem.score(pruned.objective)
    loss_after = pruned.objective.loss()
    tokens = problem.tokens_per_sample(problem.options.inputs.seed)
    evaluation = time.perf_counter() - began
    return PruneNumbers(
        measure=problem.measure,
        sparsity=pruned.sparsity,
        test_samples=problem.test_samples,
        score_before=before,
        standard_error_before=problem.score_error(before),
        score_after=after,
        standard_error_after=problem.score_error(after),
        loss_before=history.loss_before,
        loss_after=loss_after,
        predicted_increase=pruned.predicted,
        measured_increase=loss_after - history.loss_before,
        damping=outcome.damping,
        seconds=seconds,
        peak_megabytes=outcome.cost.memory,
        peak_device_megabytes=outcome.cost.device_memory,
        baseline=_baseline(problem, dense, target, outcome, seconds, evaluation),
        stages=history.stages(pruned, loss_after),
        dampings_tried=outcome.tried,
        predicted_interval=pruned.predicted_interval,
        predicted_warning=warning_of(
            pruned.predicted, pruned.predicted_interval, pruned.predicted_doubt, HOW_TO_HOLD_BACK
        ),
        tokens_per_sample=tokens,
        perplexity_before=perplexity(history.loss_before, tokens),
        perplexity_after=perplexity(loss_after, tokens),
    )


def _baseline(
    problem: Problem,
    dense: Objective,
    target: Targets,
    outcome: Outcome,
    seconds: float,
    evaluation: float,
) -> Baseline:
    """Magnitude pruning by the same rules, measured on the same data, where that is cheap.

    `seconds` is what the pruning took, `evaluation` what it takes to measure a network.
    """
    rules = outcome.rules
    by_magnitude = rules.fisher is None and rules.saliency is magnitude and rules.update is zero
    if by_magnitude and not outcome.settings.get("refit"):
        return Baseline(skipped="it is what pruned")
    if evaluation > max(CHEAP_SECONDS, CHEAP_SHARE * seconds):
        return Baseline(skipped=f"to measure it takes about {duration(evaluation)}")
    pruner = replace(
        rules, fisher=None, saliency=magnitude, update=zero, first_order=False, selection=greedy
    )
    began = time.perf_counter()
    try:
        with if_memory_runs_out("give more for a baseline"):
            pruned = pruner(dense, target).objective
            score = problem.score(pruned)
            loss = pruned.loss()
    except WoodburyError as error:  # the run itself has worked
        return Baseline(skipped=str(error).rstrip("."))
    return Baseline(score, problem.score_error(score), loss, time.perf_counter() - began)


def dampings_tried(trials: Sequence[Trial]) -> tuple[DampingTrial, ...]:
    """The dampings that were tried, by the loss on held-out training data.

    Args:
        trials: Scored by minus that loss.
    """
    return tuple(DampingTrial(trial.damping, -trial.score) for trial in trials)
