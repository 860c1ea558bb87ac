"""Methods × sparsities × seeds on one network: predicted and measured increases, scores, costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product, takewhile
from statistics import fmean
from typing import TypeVar

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError
from woodbury.evaluation.methods import ComparedMethod, Method, MethodRunner, comparable
from woodbury.evaluation.metrics import Score
from woodbury.evaluation.results import Result
from woodbury.linalg.ranks import Ranks
from woodbury.memory.budget import check_holds, limits_within
from woodbury.memory.exhausted import if_memory_runs_out
from woodbury.model.batches import Batch
from woodbury.model.objective import Objective
from woodbury.model.random_numbers import random_kept
from woodbury.monitor import whole
from woodbury.pruning.prediction import check_held_back, increase_interval, warning_of

Made = TypeVar("Made")

MakeObjective = Callable[[int], Objective]
"""Seed -> the dense network on the calibration set of that seed."""

HeldBack = Callable[[int], Iterable[Batch] | None]
"""Seed -> training data beside the calibration set of that seed; None where there is too little."""


@checks_types
@random_kept()
def compare(
    methods: Mapping[str, ComparedMethod],
    sparsities: Sequence[float],
    seeds: Sequence[int],
    make_objective: MakeObjective | Mapping[str, MakeObjective],
    evaluate: Score,
    *,
    validate: Score | None = None,
    held_back: HeldBack | Mapping[str, HeldBack] | None = None,
    memory: int | str | None = None,
    group: object = None,
) -> list[Result]:
    """Prune by every method to every sparsity, each time from the dense network.

    Args:
        methods: Name -> a `Method`, or `ByEffort` for what `woodbury.prune` does. A Method of one
            stage estimates its Fisher once for all sparsities; its seconds count in every row.
        sparsities: Removed ÷ all weights.
        seeds: Of the calibration sets.
        make_objective: Seed -> the dense network on the calibration set of that seed; or one such
            function for the name of each method.
        evaluate: The score on test data.
        validate: The score on held-out *training* data that chooses among a method's dampings.
        held_back: Seed -> samples beside the calibration set, on which the increase of the loss
            has an interval  (eq. 71); or one such function for the name of each method. None for
            no interval.
        memory: What the run may hold, in bytes or as "6GiB"; None for 60 % of what the process may
            still have.
        group: The torch.distributed process group whose ranks share the work, as for
            `woodbury.prune`: a rank that is free takes the next seed and method, and does it alone.
            All ranks get all results. Seconds are longer where ranks share a processor.

    Returns:
        One result for each seed, method and sparsity, in this order.

    Raises:
        WoodburyError: If there is nothing to compare, a sparsity cannot be reached, or a method has
            several dampings and there is no `validate`.

    Example:
        >>> import torch, woodbury
        >>> from woodbury.pruning import saliencies, updates
        >>> from woodbury.evaluation.metrics import accuracy
        >>> batches = [(torch.randn(20, 3), torch.arange(20) % 4)]
        >>> model = torch.nn.Linear(3, 4)
        >>> methods = {
        ...     "obs": Method(woodbury.Pruner(woodbury.mfac(20))),
        ...     "magnitude": Method(woodbury.Pruner(None, saliencies.magnitude, updates.zero)),
        ... }
        >>> results = compare(
        ...     methods,
        ...     sparsities=[0.5],
        ...     seeds=[0],
        ...     make_objective=lambda seed: Objective.from_model(model, batches),
        ...     evaluate=lambda objective: accuracy(objective, batches),
        ... )
        >>> [(result.method, result.reached) for result in results]
        [('obs', 0.5), ('magnitude', 0.5)]
    """
    if not (methods and sparsities and seeds):
        raise WoodburyError(
            "There is nothing to compare: give at least one method, one sparsity and one seed."
        )
    advice = "give compare() methods of fewer rows or smaller blocks"
    facts = {"methods": methods, "sparsities": sparsities, "seeds": seeds}
    with (
        Ranks.of(group).started("compare", facts) as ranks,
        limits_within(memory),
        if_memory_runs_out(advice),
    ):
        cells = list(product(seeds, methods))
        own: dict[int, list[Result]] = {}
        with Ranks.apart(), whole("pruning", "pruning", len(cells) * len(sparsities)) as progress:
            dense = _Dense(methods, make_objective, held_back, seeds[0])
            _check_possible(methods, sparsities, dense.objectives, validate, memory)
            dense.check_held_back()
            for index in takewhile(lambda number: number < len(cells), ranks.numbers()):
                seed, name = cells[index]
                while progress.done < index * len(sparsities):  # others have taken those before
                    progress.advance()
                if dense.seed != seed:
                    dense = _Dense(methods, make_objective, held_back, seed)
                own[index] = []
                for result in _results(dense, name, sparsities, evaluate, validate):
                    own[index].append(result)
                    progress.advance()
        ranks.wait_for_all()
        done = dict(cell for rank in ranks.all_gather_objects(own) for cell in rank.items())
    return [result for index in range(len(cells)) for result in done[index]]


class _Dense:
    """The dense networks of one seed, and their losses."""

    def __init__(
        self,
        methods: Mapping[str, ComparedMethod],
        make_objective: MakeObjective | Mapping[str, MakeObjective],
        held_back: HeldBack | Mapping[str, HeldBack] | None,
        seed: int,
    ) -> None:
        self.seed = seed
        self.methods = methods
        self.objectives = _for_each(methods, make_objective, seed, "make_objective")
        self.held_back: dict[str, Iterable[Batch] | None] = {}
        if held_back is not None:
            self.held_back = _for_each(methods, held_back, seed, "held_back")
        self._losses: dict[Objective, float] = {}

    def loss(self, name: str) -> float:
        """The loss of the dense network for a method, computed once."""
        dense = self.objectives[name]
        if dense not in self._losses:
            self._losses[dense] = dense.loss()
        return self._losses[dense]

    def check_held_back(self) -> None:
        """Raise WoodburyError for samples that no interval can be made of, before any gradient."""
        for name, batches in self.held_back.items():
            if batches is not None:
                check_held_back(self.objectives[name], batches)


def _results(
    dense: _Dense,
    name: str,
    sparsities: Sequence[float],
    evaluate: Score,
    validate: Score | None,
) -> Iterator[Result]:
    """One method at all sparsities, from the dense network of one seed."""
    objective, aside = dense.objectives[name], dense.held_back.get(name)
    loss_before = dense.loss(name)
    runs = dense.methods[name].runs(objective, sparsities, validate)
    for sparsity, best in zip(sparsities, runs, strict=True):
        loss_after = best.pruned.objective.loss()
        removed = best.pruned.before_update(objective)
        predicted, interval = best.pruned.predicted, best.pruned.predicted_interval
        if aside is not None:
            interval = increase_interval(objective, best.pruned.objective, aside)
        doubt = best.pruned.predicted_doubt
        yield Result(
            method=name,
            sparsity=sparsity,
            reached=best.pruned.sparsity,
            seed=dense.seed,
            accuracy=evaluate(best.pruned.objective),
            loss_before=loss_before,
            loss_after=loss_after,
            predicted=predicted,
            measured=loss_after - loss_before,
            seconds=best.cost.seconds,
            memory=best.cost.memory,
            damping=best.damping,
            settings=best.settings,
            removed=removed.loss() - loss_before,
            accuracy_removed=evaluate(removed),
            predicted_interval=interval,
            predicted_warning="" if interval is None else warning_of(predicted, interval, doubt),
        )


def _for_each(
    methods: Mapping[str, ComparedMethod],
    make: Callable[[int], Made] | Mapping[str, Callable[[int], Made]],
    seed: int,
    argument: str,
) -> dict[str, Made]:
    """What is made of a seed for each method; methods with one function share one."""
    if not isinstance(make, Mapping):
        return dict.fromkeys(methods, make(seed))
    if missing := [name for name in methods if name not in make]:
        raise WoodburyError(
            f"{argument} has no function for {missing[0]!r}: give one for each method."
        )
    makers = {name: make[name] for name in methods}
    made = {each: each(seed) for each in dict.fromkeys(makers.values())}
    return {name: made[each] for name, each in makers.items()}


def choose_damping(
    method: Method,
    dampings: Sequence[float],
    sparsities: Sequence[float],
    objective: Objective,
    validate: Score,
) -> float:
    """The damping whose mean score over the sparsities is best.

    Args:
        method: The method; its own `dampings` are not used.
        dampings: Candidates.
        sparsities: Removed ÷ all weights.
        objective: The dense network on the calibration set; the model is untouched.
        validate: The score, on data held out of the *training* data.

    Returns:
        The best candidate, the first of several equal ones.

    Raises:
        WoodburyError: If the method has no Fisher.
    """
    if method.pruner.fisher is None:
        raise WoodburyError("This method has no Fisher and so no damping to choose.")
    runner = MethodRunner(method, objective)

    def mean_score(damping: float) -> float:
        runs = (runner.run(sparsity, damping) for sparsity in sparsities)
        return comparable(fmean(validate(run.pruned.objective) for run in runs))

    return max(dampings, key=mean_score)


def _check_possible(
    methods: Mapping[str, ComparedMethod],
    sparsities: Sequence[float],
    objectives: Mapping[str, Objective],
    validate: Score | None,
    memory: int | str | None,
) -> None:
    """Raise WoodburyError for what cannot be done, before any gradient."""
    for name, method in methods.items():
        check_holds(memory, objectives[name].space.n)
        for sparsity in sparsities:
            method.check(objectives[name], sparsity, validate)
