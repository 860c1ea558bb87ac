"""Methods × sparsities × seeds on one network: what each pruning predicted, what it did, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from statistics import fmean, pstdev
from typing import Any

from woodbury.errors import WoodburyError
from woodbury.estimation.recipes import Estimate
from woodbury.evaluation.metrics import Score
from woodbury.evaluation.resources import Resources, measured
from woodbury.fisher.base import Fisher
from woodbury.model.objective import Objective
from woodbury.monitor import report
from woodbury.pruning.budget import current_sparsity
from woodbury.pruning.pruner import Pruned, Pruner
from woodbury.pruning.refit.least_squares import Refit
from woodbury.pruning.refit.with_refit import WithRefit
from woodbury.pruning.schedule import Targets, geometric
from woodbury.pruning.staged import run_stages


@dataclass(frozen=True)
class Method:
    """A pruner and how to run it.

    stages: how often the gradients are computed anew. dampings: candidates, of which each cell takes the one that scores
    best on held-out data; none: the Fisher's own. settings: facts to write beside the numbers. refit: after every round.
    """

    pruner: Pruner
    stages: int = 1
    dampings: tuple[float, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    refit: Refit | None = None


@dataclass(frozen=True)
class Result:
    """One cell: a method at a sparsity, with the calibration sample of a seed.

    `sparsity` was asked for and `reached` was got. Losses, and so the predicted and the measured increase, are those of
    the calibration sample. seconds: the Fisher and one pruning, without evaluation and the choice among dampings.
    memory: the process's peak meanwhile, in MB. removed and accuracy_removed: the measured increase and the accuracy right
    after the removal and before the update, with the removed weights at zero and the others as they were in the dense model.
    """

    method: str
    sparsity: float
    reached: float
    seed: int
    accuracy: float
    loss_before: float
    loss_after: float
    predicted: float | None
    measured: float
    seconds: float
    memory: float
    damping: float | None
    settings: Mapping[str, Any]
    removed: float | None = None
    accuracy_removed: float | None = None


@dataclass(frozen=True, eq=False)
class Run:
    """One pruning: what came out, the damping that was used (None without a Fisher), and the cost, Fisher included."""

    pruned: Pruned
    damping: float | None
    cost: Resources


@dataclass(frozen=True)
class Summary:
    """One cell over its seeds: means; `spread` is the population standard deviation of the accuracy."""

    method: str
    sparsity: float
    seeds: int
    accuracy: float
    spread: float
    predicted: float | None
    measured: float
    seconds: float
    memory: float
    removed: float | None = None
    accuracy_removed: float | None = None


def run(
    method: Method,
    objective: Objective,
    sparsity: Targets,
    validate: Score | None = None,
) -> Run:
    """Prune once by a method; `validate` scores the candidates where the method has several dampings."""
    _check_decidable(method, validate)
    method.pruner.budget(objective.space, sparsity)  # what cannot be is told before any gradient
    return _Ready(method, objective).best([sparsity], validate)[0]


def compare(
    methods: Mapping[str, Method],
    sparsities: Sequence[float],
    seeds: Sequence[int],
    make_objective: Callable[[int], Objective],
    evaluate: Score,
    *,
    validate: Score | None = None,
) -> list[Result]:
    """Prune to every sparsity by every method, each time from the dense model, with the calibration sample of each seed.

    make_objective: seed -> the dense objective on that seed's sample. evaluate: the accuracy on test data; validate: the
    score on held-out *training* data that chooses among a method's dampings. A method of one round computes its Fisher
    once for all sparsities; its seconds count in every row. Raises WoodburyError when there is nothing to compare, or
    when dampings are to be chosen without `validate`.
    """
    if not (methods and sparsities and seeds):
        raise WoodburyError(
            "There is nothing to compare: give at least one method, one sparsity and one seed."
        )
    for method in methods.values():
        _check_decidable(method, validate)
    results: list[Result] = []
    for seed in seeds:
        objective = make_objective(seed)
        for method, sparsity in product(methods.values(), () if results else sparsities):
            method.pruner.budget(objective.space, sparsity)
        before = objective.loss()
        for name, method in methods.items():
            runs = _Ready(method, objective).best(sparsities, validate)
            for sparsity, best in zip(sparsities, runs, strict=True):
                after, zeroed = best.pruned.objective.loss(), best.pruned.before_update(objective)
                cell = Result(
                    method=name,
                    sparsity=sparsity,
                    reached=best.pruned.sparsity,
                    seed=seed,
                    accuracy=evaluate(best.pruned.objective),
                    loss_before=before,
                    loss_after=after,
                    predicted=best.pruned.predicted,
                    measured=after - before,
                    seconds=best.cost.seconds,
                    memory=best.cost.memory,
                    damping=best.damping,
                    settings={"stages": method.stages, **method.settings},
                    removed=zeroed.loss() - before,
                    accuracy_removed=evaluate(zeroed),
                )
                results.append(cell)
                report("pruning", len(results), len(methods) * len(sparsities) * len(seeds))
    return results


def choose_damping(
    method: Method,
    dampings: Sequence[float],
    sparsities: Sequence[float],
    objective: Objective,
    validate: Score,
) -> float:
    """The damping whose mean score over the sparsities is best, on data held out of the *training* split; of equals the first.

    Raises WoodburyError for a method without a Fisher.
    """
    if method.pruner.fisher is None:
        raise WoodburyError("This method has no Fisher and so no damping to choose.")
    ready = _Ready(method, objective)

    def score(damping: float) -> float:
        mean = fmean(
            validate(ready.run(sparsity, damping).pruned.objective) for sparsity in sparsities
        )
        ready.variants.clear()  # the factors of one damping at a time
        return -math.inf if math.isnan(mean) else mean

    return max(dampings, key=score)


def summary(results: Iterable[Result]) -> list[Summary]:
    """Means over the seeds of each (method, sparsity), in the order of first appearance; memory is the largest."""
    cells: dict[tuple[str, float], list[Result]] = {}
    for result in results:
        cells.setdefault((result.method, result.sparsity), []).append(result)
    return [_summarised(name, sparsity, cell) for (name, sparsity), cell in cells.items()]


def _check_decidable(method: Method, validate: Score | None) -> None:
    if len(method.dampings) > 1 and validate is None:
        raise WoodburyError(
            "There are several dampings: give `validate`, a score on held-out training data."
        )


class _Ready:
    """A method on one objective. In one round its Fisher, and what every sparsity needs of it, is computed once per damping."""

    def __init__(self, method: Method, objective: Objective) -> None:
        self.method, self.objective = method, objective
        self.base: tuple[Fisher, Resources] | None = None
        self.variants: dict[float, tuple[Fisher, Resources]] = {}

    def run(self, sparsity: Targets, damping: float | None) -> Run:
        """Prune at one damping, None for the Fisher's own; the cost includes the Fisher's, however often it is shared."""
        method, pruner, paid, used = self.method, self.method.pruner, Resources(0.0, 0.0), damping
        if pruner.fisher and method.stages == 1:
            fisher, paid = self._shared(pruner.fisher, damping)
            pruner, used = replace(pruner, fisher=lambda _: fisher), fisher.damping
        elif pruner.fisher and damping is not None:
            pruner = replace(pruner, fisher=partial(_damped, pruner.fisher, damping))
        # weights that are zero from the start count as removed: the stages go on from there
        start = (
            current_sparsity(self.objective.space, sparsity, pruner.cost)
            if method.stages > 1
            else 0.0
        )
        steps = geometric(sparsity, method.stages, start)
        recipe = WithRefit(pruner, self.objective, method.refit) if method.refit else pruner
        pruned, cost = measured(lambda: run_stages(recipe, self.objective, steps))
        return Run(pruned, used, paid + cost)

    def best(
        self,
        sparsities: Sequence[Targets],
        validate: Score | None,
    ) -> list[Run]:
        """For each sparsity the run at the damping that scores best on held-out data; of equals the first.

        One damping after the other, so that the factors of one alone are in memory.
        """
        candidates = self.method.dampings or (None,)
        best: dict[int, tuple[float, Run]] = {}
        for done, damping in enumerate(candidates, 1):
            for index, sparsity in enumerate(sparsities):
                run = self.run(sparsity, damping)
                score = validate(run.pruned.objective) if validate and len(candidates) > 1 else 0.0
                score = (
                    -math.inf if math.isnan(score) else score
                )  # a net that has blown up, which max() would prefer
                if index not in best or score > best[index][0]:
                    best[index] = (score, run)
            self.variants.clear()
            if len(candidates) > 1:
                report("dampings", done, len(candidates))
        return [best[index][1] for index in range(len(sparsities))]

    def _shared(self, recipe: Estimate, damping: float | None) -> tuple[Fisher, Resources]:
        self.base = self.base or measured(lambda: recipe(self.objective))
        base, paid = self.base
        damping = base.damping if damping is None else damping
        if damping not in self.variants:
            same = damping == base.damping
            self.variants[damping] = measured(
                lambda: _warm(base if same else base.with_damping(damping))
            )
        fisher, extra = self.variants[damping]
        return fisher, paid + extra


def _warm(fisher: Fisher) -> Fisher:
    fisher.inverse_diagonal()  # the operator caches what it is made of
    return fisher


def _damped(recipe: Estimate, damping: float, objective: Objective) -> Fisher:
    return recipe(objective).with_damping(damping)


def _summarised(name: str, sparsity: float, cell: Sequence[Result]) -> Summary:
    scores = [result.accuracy for result in cell]
    return Summary(
        method=name,
        sparsity=sparsity,
        seeds=len(cell),
        accuracy=fmean(scores),
        spread=pstdev(scores),
        predicted=_mean([result.predicted for result in cell]),
        measured=fmean(result.measured for result in cell),
        seconds=fmean(result.seconds for result in cell),
        memory=max(result.memory for result in cell),
        removed=_mean([result.removed for result in cell]),
        accuracy_removed=_mean([result.accuracy_removed for result in cell]),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
