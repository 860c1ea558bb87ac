"""Methods × sparsities × seeds on one network: predicted and measured increases, scores, costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from statistics import fmean

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError
from woodbury.evaluation.methods import ComparedMethod, Method, MethodRunner, comparable
from woodbury.evaluation.metrics import Score
from woodbury.evaluation.results import Result
from woodbury.linalg.ranks import Ranks
from woodbury.memory.budget import check_holds, limits_within
from woodbury.memory.exhausted import if_memory_runs_out
from woodbury.model.objective import Objective
from woodbury.monitor import whole

MakeObjective = Callable[[int], Objective]
"""Seed -> the dense network on the calibration set of that seed."""


@checks_types
def compare(
    methods: Mapping[str, ComparedMethod],
    sparsities: Sequence[float],
    seeds: Sequence[int],
    make_objective: MakeObjective | Mapping[str, MakeObjective],
    evaluate: Score,
    *,
    validate: Score | None = None,
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
        memory: What the run may hold, in bytes or as "6GiB"; None for 60 % of what the process may
            still have.
        group: The torch.distributed process group whose ranks share the methods and seeds, each of
            which one rank does alone; as for `woodbury.prune`. All ranks get all results.

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
        with Ranks.apart():
            mine = _compared(
                methods, sparsities, seeds, make_objective, evaluate, validate, memory, ranks
            )
        done = {cell: results for rank in ranks.gathered_objects(mine) for cell, results in rank}
    cells = ((seed, name) for seed in seeds for name in methods)
    return [result for cell in cells for result in done[cell]]


def _compared(
    methods: Mapping[str, ComparedMethod],
    sparsities: Sequence[float],
    seeds: Sequence[int],
    make_objective: MakeObjective | Mapping[str, MakeObjective],
    evaluate: Score,
    validate: Score | None,
    memory: int | str | None,
    ranks: Ranks,
) -> list[tuple[tuple[int, str], list[Result]]]:
    """The results of the seeds and methods that are this rank's."""
    cells = list(product(seeds, methods))
    own = cells[ranks.rank :: ranks.size]
    found: list[tuple[tuple[int, str], list[Result]]] = []
    with whole("pruning", "pruning", len(own) * len(sparsities)) as progress:
        for seed in seeds:
            objectives = _objectives(methods, make_objective, seed)
            if seed == seeds[0]:
                _check_possible(methods, sparsities, objectives, validate, memory)
            mine = [name for name in methods if (seed, name) in own]
            losses = {
                dense: dense.loss() for dense in dict.fromkeys(objectives[name] for name in mine)
            }
            for name in mine:
                method, dense = methods[name], objectives[name]
                loss_before = losses[dense]
                results: list[Result] = []
                found.append(((seed, name), results))
                runs = method.runs(dense, sparsities, validate)
                for sparsity, best in zip(sparsities, runs, strict=True):
                    loss_after = best.pruned.objective.loss()
                    removed = best.pruned.before_update(dense)
                    result = Result(
                        method=name,
                        sparsity=sparsity,
                        reached=best.pruned.sparsity,
                        seed=seed,
                        accuracy=evaluate(best.pruned.objective),
                        loss_before=loss_before,
                        loss_after=loss_after,
                        predicted=best.pruned.predicted,
                        measured=loss_after - loss_before,
                        seconds=best.cost.seconds,
                        memory=best.cost.memory,
                        damping=best.damping,
                        settings=best.settings,
                        removed=removed.loss() - loss_before,
                        accuracy_removed=evaluate(removed),
                    )
                    results.append(result)
                    progress.advance()
    return found


def _objectives(
    methods: Mapping[str, ComparedMethod],
    make_objective: MakeObjective | Mapping[str, MakeObjective],
    seed: int,
) -> dict[str, Objective]:
    """The dense network for each method; methods with one function have one objective."""
    if not isinstance(make_objective, Mapping):
        return dict.fromkeys(methods, make_objective(seed))
    if missing := [name for name in methods if name not in make_objective]:
        raise WoodburyError(
            f"make_objective has no function for {missing[0]!r}: give one for each method."
        )
    makers = {name: make_objective[name] for name in methods}
    made = {make: make(seed) for make in dict.fromkeys(makers.values())}
    return {name: made[make] for name, make in makers.items()}


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
