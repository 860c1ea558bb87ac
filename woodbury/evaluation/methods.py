"""Methods that can be compared: a pruner and how it is run, or what `woodbury.prune` does."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor

from woodbury.argument_types import check_fields
from woodbury.errors import WoodburyError
from woodbury.estimation.recipes import Estimate
from woodbury.evaluation.metrics import Score
from woodbury.evaluation.resources import Resources, measured
from woodbury.fisher.base import Fisher
from woodbury.fisher.lowrank import LowRank
from woodbury.memory.budget import limits_within, row_bytes
from woodbury.model.objective import Objective
from woodbury.monitor import whole
from woodbury.pruning.api import run_planned
from woodbury.pruning.costs import weights
from woodbury.pruning.feasibility import check_reachable, current_sparsity
from woodbury.pruning.planning import Planned, planned
from woodbury.pruning.presets import Effort, standard
from woodbury.pruning.pruned import Pruned
from woodbury.pruning.pruner import Pruner, PruningRecipe
from woodbury.pruning.refit.output_fit import Refit
from woodbury.pruning.refit.with_refit import WithRefit
from woodbury.pruning.schedule import Targets, check_targets, geometric
from woodbury.pruning.scopes import global_
from woodbury.pruning.staged import run_stages

NOTHING = Resources(0.0, 0.0)
"""What no work costs."""


class ComparedMethod(ABC):
    """What a comparison runs: a `Method`, or `ByEffort`."""

    @abstractmethod
    def check(self, dense: Objective, sparsity: Targets, validate: Score | None) -> None:
        """Raise WoodburyError for what cannot be done, before any gradient."""

    @abstractmethod
    def runs(
        self,
        dense: Objective,
        sparsities: Sequence[Targets],
        validate: Score | None,
        after: Callable[[Pruned], object] | None = None,
    ) -> list[Run]:
        """Prune once to each sparsity, each time from the dense network.

        Args:
            dense: The dense network on the calibration set; its model is untouched.
            sparsities: Removed ÷ all weights.
            validate: The score on held-out training data, for a method with something to choose.
            after: Called with what each stage of a run has reached.

        Returns:
            A run for each sparsity.
        """


@dataclass(frozen=True)
class Method(ComparedMethod):
    """A pruner and how a comparison runs it.

    Attributes:
        pruner: The recipe.
        stages: Prunings of the pruner on the way to a sparsity, each with fresh gradients, at
            least 1.
        dampings: Candidates, of which each cell takes the one that scores best on held-out training
            data after the first stage; empty for the Fisher's own damping.
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

    def check(self, dense: Objective, sparsity: Targets, validate: Score | None) -> None:
        """Raise WoodburyError for several dampings and no score, and for impossible targets."""
        check_decidable(self, validate)
        self.pruner.budget(dense.space, sparsity)

    def runs(
        self,
        dense: Objective,
        sparsities: Sequence[Targets],
        validate: Score | None,
        after: Callable[[Pruned], object] | None = None,
    ) -> list[Run]:
        """Prune once to each sparsity, with the best of the method's dampings."""
        settings = {"stages": self.stages, **self.settings}
        runs = MethodRunner(self, dense, after).best_runs(sparsities, validate)
        return [replace(each, settings=settings) for each in runs]


@dataclass(frozen=True)
class ByEffort(ComparedMethod):
    """What `woodbury.prune(model, batches, sparsity, effort=...)` does.

    Attributes:
        effort: How much time to take.
        memory: What a run may hold, in bytes or as "6GiB"; None for 60 % of what the process may
            still have.

    Example:
        >>> import torch
        >>> batches = [(torch.randn(20, 3), torch.arange(20) % 4)]
        >>> dense = Objective.from_model(torch.nn.Linear(3, 4), batches)
        >>> run(ByEffort(), dense, 0.5).settings["stages"]
        2
    """

    effort: Effort = standard
    memory: int | str | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, dense: Objective, sparsity: Targets, validate: Score | None) -> None:
        """Raise WoodburyError for an impossible target."""
        check_reachable(dense.space, check_targets(sparsity), global_, weights)

    def runs(
        self,
        dense: Objective,
        sparsities: Sequence[Targets],
        validate: Score | None,
        after: Callable[[Pruned], object] | None = None,
    ) -> list[Run]:
        """Prune once to each sparsity by what suits the model and the effort best."""
        return [self.run(self.planned(dense, sparsity), after) for sparsity in sparsities]

    def planned(self, dense: Objective, sparsity: Targets) -> Planned:
        """What suits the model best, and what it will take."""
        with limits_within(self.memory):
            return planned(dense, sparsity, self.effort, self.memory)

    def run(self, chosen: Planned, after: Callable[[Pruned], object] | None = None) -> Run:
        """Prune once, as planned; `after` is called with what each stage has reached."""
        with limits_within(self.memory):
            pruned, cost = measured(lambda: run_planned(chosen, after))
        settings = {key: value for key, value in pruned.settings.items() if key != "damping"}
        return Run(pruned, pruned.steps[-1].damping, cost, settings=settings)


class Trial(NamedTuple):
    """A damping that was tried.

    Attributes:
        damping: The candidate.
        score: What the first stage reached with it, on held-out training data.
    """

    damping: float
    score: float


@dataclass(frozen=True, eq=False)
class Run:
    """One pruning by a method.

    Attributes:
        pruned: The pruned objective.
        damping: Of the Fisher; None without one, and in several stages unless it was chosen.
        cost: Wall-clock seconds and peak memory in MB, those of the Fisher included.
        trials: The dampings that were tried, in this order; empty if there was nothing to choose.
        settings: Facts to write beside the numbers.
    """

    pruned: Pruned
    damping: float | None
    cost: Resources
    trials: tuple[Trial, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


def run(
    method: ComparedMethod,
    objective: Objective,
    sparsity: Targets,
    validate: Score | None = None,
    after: Callable[[Pruned], object] | None = None,
) -> Run:
    """Prune once by a method.

    Args:
        method: The method.
        objective: The dense network on the calibration set; the model is untouched.
        sparsity: Removed ÷ all weights.
        validate: The score that chooses among several dampings, on held-out training data.
        after: Called with what each stage of the run has reached; for a single stage whose damping
            is chosen not at all, as the trial is the run.

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
    method.check(objective, sparsity, validate)
    return method.runs(objective, [sparsity], validate, after)[0]


class MethodRunner:
    """Runs one method from one dense network, to several sparsities and with several dampings.

    In one stage the Fisher is shared: it is estimated once, and factored once for each damping, as
    long as the runs with one damping follow each other: only the last factors are held.

    Args:
        method: The method.
        dense: The dense network on the calibration set; its model is untouched.
        after: Called with what each stage of a run has reached; not for trials.
    """

    def __init__(
        self, method: Method, dense: Objective, after: Callable[[Pruned], object] | None = None
    ) -> None:
        self._method = method
        self._dense = dense
        self._after = after
        self._estimated: _MeasuredFisher | None = None
        self._factored: _MeasuredFisher | None = None
        self._factoring = NOTHING

    def run(self, sparsity: Targets, damping: float | None) -> Run:
        """Prune once.

        Args:
            sparsity: Removed ÷ all weights.
            damping: Of the Fisher; None for its own.

        Returns:
            The run; its cost includes that of the Fisher, however many runs share it.
        """
        run = self._run(sparsity, damping)
        return run if self._factored is None else replace(run, cost=self._factored.cost + run.cost)

    def best_runs(self, sparsities: Sequence[Targets], validate: Score | None) -> list[Run]:
        """Prune once to each sparsity, with the best of the method's dampings.

        The damping is chosen on one quadratic, that of the dense network: by what the first stage
        reaches with each, without a refit. Then the method runs once  (eq. 60).

        Args:
            sparsities: Removed ÷ all weights.
            validate: The score that chooses; not used where the method has one damping at most.

        Returns:
            For each sparsity the run with the damping that scores best, the first of several equal
            ones; its cost includes that of the choice.
        """
        dampings = self._method.dampings or (None,)
        if len(dampings) == 1 or validate is None:
            return [self.run(sparsity, dampings[0]) for sparsity in sparsities]
        method = self._method
        first_stage = MethodRunner(replace(method, stages=1, refit=None), self._dense)
        targets = [self._stages(sparsity)[0] for sparsity in sparsities]
        trials = [_Trials() for _ in sparsities]
        with whole("damping", "dampings", len(dampings)) as progress:
            for damping in dampings:  # outside, as each has factors of its own
                for trial, target in zip(trials, targets, strict=True):
                    trial.add(first_stage._run(target, damping), validate)
                progress.advance()
        choosing = first_stage._cost_of_fishers()
        if method.stages == 1 and method.refit is None:
            return [
                replace(trial.best, cost=choosing + trial.cost, trials=tuple(trial.made))
                for trial in trials
            ]
        if method.stages == 1:
            self._estimated = first_stage._estimated
        del first_stage
        finals = [
            self._run(sparsity, trial.best.damping)
            for sparsity, trial in zip(sparsities, trials, strict=True)
        ]
        shared = choosing + self._factoring
        return [
            replace(
                final,
                damping=trial.best.damping,
                cost=shared + trial.cost + final.cost,
                trials=tuple(trial.made),
            )
            for final, trial in zip(finals, trials, strict=True)
        ]

    def _run(self, sparsity: Targets, damping: float | None) -> Run:
        """Prune once; the cost is without that of a shared Fisher."""
        method = self._method
        pruner = method.pruner
        if pruner.fisher and method.stages == 1:
            shared = self._shared_fisher(pruner.fisher, damping)
            pruner = replace(pruner, fisher=_Known(shared.fisher))
            damping = shared.fisher.damping
        elif pruner.fisher and damping is not None:
            pruner = replace(pruner, fisher=_Damped(pruner.fisher, damping))
        recipe: PruningRecipe = pruner
        if method.refit is not None:
            recipe = WithRefit(pruner, self._dense, method.refit or Refit())
        sparsities = self._stages(sparsity)
        pruned, cost = measured(lambda: run_stages(recipe, self._dense, sparsities, self._after))
        return Run(pruned, damping, cost)

    def _stages(self, sparsity: Targets) -> list[Targets]:
        """The sparsities of the method's stages."""
        method = self._method
        start: Targets = 0.0
        if method.stages > 1:  # weights that are zero from the start count as removed
            start = current_sparsity(self._dense.space, sparsity, method.pruner.cost)
        return geometric(sparsity, method.stages, start)

    def _shared_fisher(self, recipe: Estimate, damping: float | None) -> _MeasuredFisher:
        """The Fisher at a damping, None for its own, and the cost to estimate and factor it."""
        if self._estimated is None:
            several = len(self._method.dampings) > 1
            fisher, cost = measured(lambda: _estimated(recipe, self._dense, several))
            self._estimated = _MeasuredFisher(fisher, fisher.damping, cost)
        estimated = self._estimated
        if damping is None:
            damping = estimated.damping
        if self._factored is None or self._factored.damping != damping:
            self._factored = None  # its factors go before the next ones are made
            fisher, cost = measured(lambda: _factored(estimated, damping))
            self._factored = _MeasuredFisher(fisher, damping, estimated.cost + cost)
            self._factoring += cost
        return self._factored

    def _cost_of_fishers(self) -> Resources:
        """To estimate the shared Fisher, and to factor it as often as it was."""
        return self._factoring + (self._estimated.cost if self._estimated else NOTHING)


class _Trials:
    """What was tried for one sparsity: the best run so far, and what all cost, scores included."""

    def __init__(self) -> None:
        self.cost = NOTHING
        self.made: list[Trial] = []
        self._best: tuple[float, Run] | None = None

    @property
    def best(self) -> Run:
        assert self._best  # a method with dampings tries each of them
        return self._best[1]

    def add(self, run: Run, validate: Score) -> None:
        score, cost = measured(lambda: comparable(validate(run.pruned.objective)))
        self.cost += run.cost + cost
        if run.damping is not None:
            self.made.append(Trial(run.damping, score))
        if self._best is None or score > self._best[0]:
            self._best = score, run


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


def _estimated(recipe: Estimate, dense: Objective, several: bool) -> Fisher:
    """The Fisher; for several dampings with one eigendecomposition, where that has room."""
    fisher = recipe(dense)
    if not several or not isinstance(fisher, LowRank):
        return fisher
    rows = fisher.rows
    has_room = isinstance(rows, Tensor) and 2 * rows.nbytes <= row_bytes()
    return fisher.spectral() if has_room else fisher


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
