"""What `prune` measures beside the pruned network: its stages, and magnitude pruning."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from woodbury.cli.problem import Problem
from woodbury.errors import WoodburyError
from woodbury.evaluation.methods import Trial
from woodbury.model.objective import Objective
from woodbury.pruning.pruner import Pruned, Pruner
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.schedule import Targets
from woodbury.pruning.selections import greedy
from woodbury.pruning.updates import zero
from woodbury.reporting.grid import duration
from woodbury.reporting.records import Baseline, DampingTrial, StageNumbers

CHEAP_SECONDS = 20.0
"""What a baseline may take in any case."""
CHEAP_SHARE = 0.1
"""What it may take of the seconds of the pruning."""


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


def magnitude_baseline(
    problem: Problem,
    dense: Objective,
    target: Targets,
    rules: Pruner,
    seconds: float,
    evaluation: float,
) -> Baseline:
    """Magnitude pruning by the same rules, scored on the same data, where that is cheap.

    Args:
        problem: The dense model and its data.
        dense: The dense network on the calibration set.
        target: To prune to.
        rules: The pruner whose unit, scope, cost and limits hold.
        seconds: What the pruning took.
        evaluation: The seconds that it takes to measure a network.
    """
    if rules.fisher is None and rules.saliency is magnitude and rules.update is zero:
        return Baseline(skipped="it is what pruned")
    if evaluation > max(CHEAP_SECONDS, CHEAP_SHARE * seconds):
        return Baseline(skipped=f"to measure it takes about {duration(evaluation)}")
    by_magnitude = replace(
        rules, fisher=None, saliency=magnitude, update=zero, first_order=False, selection=greedy
    )
    began = time.perf_counter()
    try:
        pruned = by_magnitude(dense, target).objective
        score = problem.score(pruned)
        loss = pruned.loss()
    except WoodburyError as error:  # the run itself has worked
        return Baseline(skipped=str(error).rstrip("."))
    seconds = time.perf_counter() - began
    return Baseline(score, problem.score_error(score), loss, seconds)


def dampings_tried(trials: Sequence[Trial]) -> tuple[DampingTrial, ...]:
    """The dampings that were tried, by the loss on held-out training data.

    Args:
        trials: Scored by minus that loss.
    """
    return tuple(DampingTrial(trial.damping, -trial.score) for trial in trials)
