"""A method: a pruner, and how it is run from a dense network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from woodbury.errors import WoodburyError
from woodbury.estimation.recipes import Estimate
from woodbury.evaluation.metrics import Score
from woodbury.evaluation.resources import Resources, measured
from woodbury.fisher.base import Fisher
from woodbury.model.objective import Objective
from woodbury.monitor import report
from woodbury.pruning.feasibility import current_sparsity
from woodbury.pruning.pruner import Pruned, Pruner, PruningRecipe
from woodbury.pruning.refit.output_fit import Refit
from woodbury.pruning.refit.with_refit import WithRefit
from woodbury.pruning.schedule import Targets, geometric
from woodbury.pruning.staged import run_stages


@dataclass(frozen=True)
class Method:
    """A pruner and how a comparison runs it.

    Attributes:
        pruner: The recipe.
        stages: Prunings of the pruner on the way to a sparsity, each with fresh gradients, at
            least 1.
        dampings: Candidates, of which each cell takes the one that scores best on held-out training
            data; empty for the Fisher's own damping.
        settings: Facts to write beside the numbers.
        refit: What follows each stage; None for nothing.

    Example:
        >>> import woodbury
        >>> Method(woodbury.Pruner(woodbury.mfac(500)), stages=3).dampings
        ()
    """

    pruner: Pruner
    stages: int = 1
    dampings: tuple[float, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    refit: Refit | None = None


@dataclass(frozen=True, eq=False)
class Run:
    """One pruning by a method.

    Attributes:
        pruned: The pruned objective.
        damping: Of the Fisher; None without one, and in several stages unless it was chosen.
        cost: Wall-clock seconds and peak memory in MB, those of the Fisher included.
    """

    pruned: Pruned
    damping: float | None
    cost: Resources


def run(
    method: Method,
    objective: Objective,
    sparsity: Targets,
    validate: Score | None = None,
) -> Run:
    """Prune once by a method.

    Args:
        method: The method.
        objective: The dense network on the calibration set; the model is untouched.
        sparsity: Removed ÷ all weights.
        validate: The score that chooses among several dampings, on held-out training data.

    Returns:
        The run; of several dampings the best one.

    Raises:
        WoodburyError: If the sparsity cannot be reached, or there are several dampings and no
            `validate`.

    Example:
        >>> import torch, woodbury
        >>> batches = [(torch.randn(20, 3), torch.arange(20) % 4)]
        >>> dense = Objective.from_model(torch.nn.Linear(3, 4), batches)
        >>> run(Method(woodbury.Pruner(woodbury.mfac(20))), dense, 0.5).pruned.sparsity
        0.5
    """
    check_decidable(method, validate)
    method.pruner.budget(objective.space, sparsity)  # impossible targets: before any gradient
    return MethodRunner(method, objective).best_runs([sparsity], validate)[0]


class MethodRunner:
    """Runs one method from one dense network, to several sparsities and with several dampings.

    In one stage the Fisher is shared: it is estimated once, and factored once for each damping, as
    long as the runs with one damping follow each other: only the last factors are held.

    Args:
        method: The method.
        dense: The dense network on the calibration set; its model is untouched.
    """

    def __init__(self, method: Method, dense: Objective) -> None:
        self._method = method
        self._dense = dense
        self._estimated: _MeasuredFisher | None = None
        self._factored: _MeasuredFisher | None = None

    def run(self, sparsity: Targets, damping: float | None) -> Run:
        """Prune once.

        Args:
            sparsity: Removed ÷ all weights.
            damping: Of the Fisher; None for its own.

        Returns:
            The run; its cost includes that of the Fisher, however many runs share it.
        """
        method = self._method
        pruner = method.pruner
        fisher_cost = Resources(0.0, 0.0)
        if pruner.fisher and method.stages == 1:
            shared = self._shared_fisher(pruner.fisher, damping)
            pruner = replace(pruner, fisher=_Known(shared.fisher))
            damping = shared.fisher.damping
            fisher_cost = shared.cost
        elif pruner.fisher and damping is not None:
            pruner = replace(pruner, fisher=_Damped(pruner.fisher, damping))
        start: Targets = 0.0
        if method.stages > 1:  # weights that are zero from the start count as removed
            start = current_sparsity(self._dense.space, sparsity, pruner.cost)
        sparsities = geometric(sparsity, method.stages, start)
        recipe: PruningRecipe = pruner
        if method.refit is not None:
            recipe = WithRefit.around(pruner, self._dense, method.refit)
        pruned, cost = measured(lambda: run_stages(recipe, self._dense, sparsities))
        return Run(pruned, damping, fisher_cost + cost)

    def best_runs(self, sparsities: Sequence[Targets], validate: Score | None) -> list[Run]:
        """Prune once to each sparsity, with the best of the method's dampings.

        Args:
            sparsities: Removed ÷ all weights.
            validate: The score that chooses; not used where the method has one damping at most.

        Returns:
            For each sparsity the run that scores best, the first of several equal ones.
        """
        dampings = self._method.dampings or (None,)
        if len(dampings) == 1 or validate is None:
            return [self.run(sparsity, dampings[0]) for sparsity in sparsities]
        best: dict[int, Run] = {}
        scores: dict[int, float] = {}
        for done, damping in enumerate(dampings, 1):  # outside, as each has factors of its own
            for index, sparsity in enumerate(sparsities):
                run = self.run(sparsity, damping)
                score = comparable(validate(run.pruned.objective))
                if index not in best or score > scores[index]:
                    best[index] = run
                    scores[index] = score
            report("dampings", done, len(dampings))
        return [best[index] for index in range(len(sparsities))]

    def _shared_fisher(self, recipe: Estimate, damping: float | None) -> _MeasuredFisher:
        """The Fisher at a damping, None for its own, and the cost to estimate and factor it."""
        if self._estimated is None:
            fisher, cost = measured(lambda: recipe(self._dense))
            self._estimated = _MeasuredFisher(fisher, fisher.damping, cost)
        estimated = self._estimated
        if damping is None:
            damping = estimated.damping
        if self._factored is None or self._factored.damping != damping:
            self._factored = None  # its factors go before the next ones are made
            fisher, cost = measured(lambda: _factored(estimated, damping))
            self._factored = _MeasuredFisher(fisher, damping, estimated.cost + cost)
        return self._factored


def check_decidable(method: Method, validate: Score | None) -> None:
    """Raise unless a method has one damping, or a score to choose among several.

    Args:
        method: The method.
        validate: The score, or None.

    Raises:
        WoodburyError: If there are several dampings and no score.
    """
    if len(method.dampings) > 1 and validate is None:
        raise WoodburyError(
            "There are several dampings: give `validate`, a score on held-out training data."
        )


def comparable(score: float) -> float:
    """A score in the order in which the largest is the best.

    Args:
        score: Any number.

    Returns:
        The score, or −∞ for the NaN of a network that has diverged, which max() would prefer.

    Example:
        >>> comparable(math.nan)
        -inf
    """
    return -math.inf if math.isnan(score) else score


class _MeasuredFisher(NamedTuple):
    """A Fisher at the damping that was asked for, and what it has cost."""

    fisher: Fisher
    damping: float
    cost: Resources


def _factored(estimated: _MeasuredFisher, damping: float) -> Fisher:
    """The Fisher at a damping, after it has computed and cached its factors."""
    fisher = estimated.fisher
    if damping != estimated.damping:
        fisher = fisher.with_damping(damping)
    fisher.inverse_diagonal()
    return fisher


@dataclass(frozen=True)
class _Known:
    """A recipe whose Fisher is there already."""

    fisher: Fisher

    def __call__(self, objective: Objective) -> Fisher:
        return self.fisher


@dataclass(frozen=True)
class _Damped:
    """A recipe at another damping."""

    recipe: Estimate
    damping: float

    def __call__(self, objective: Objective) -> Fisher:
        return self.recipe(objective).with_damping(self.damping)
