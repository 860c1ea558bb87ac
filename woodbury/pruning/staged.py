"""One pruning after the other: stages, each with gradients taken anew, or inner stages on one quadratic for all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from woodbury.errors import WoodburyError
from woodbury.model.batches import Batch
from woodbury.model.objective import Objective
from woodbury.monitor import report
from woodbury.pruning.pruner import Pruned, Pruner, Recipe
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.schedule import Targets
from woodbury.pruning.updates import joint


def stages(
    recipe: Recipe,
    objective: Objective,
    sparsities: Sequence[Targets],
    fresh: Callable[[int], Iterable[Batch]] | None = None,
) -> Iterator[Pruned]:
    """Prune to one sparsity after the other, with fresh gradients at the weights reached each time: what each stage reached.

    fresh: stage 0, 1, … -> its own batches; by default the objective's serve all. The model is untouched. Raises
    WoodburyError.
    """
    if not sparsities:
        raise WoodburyError("There is no sparsity to prune to: give at least one.")
    recipe.check(objective.space, sparsities[-1])
    return _stages(recipe, Pruned(objective, ()), sparsities, fresh)


def _stages(
    recipe: Recipe,
    pruned: Pruned,
    sparsities: Sequence[Targets],
    fresh: Callable[[int], Iterable[Batch]] | None,
) -> Iterator[Pruned]:
    for stage, sparsity in enumerate(sparsities):
        here = (
            pruned.objective if fresh is None else replace(pruned.objective, batches=fresh(stage))
        )
        step = recipe(here, sparsity)
        pruned = replace(step, steps=pruned.steps + step.steps)
        yield pruned


def run_stages(
    recipe: Recipe,
    objective: Objective,
    sparsities: Sequence[Targets],
) -> Pruned:
    """The last of the `stages`, on the objective's own batches; the model is untouched."""
    reached = Pruned(objective, ())
    for done, pruned in enumerate(stages(recipe, objective, sparsities), 1):
        reached = pruned
        report("stages", done, len(sparsities))
    return reached


def inner_stages(
    pruner: Pruner, quadratic: Quadratic, objective: Objective, sparsities: Sequence[Targets]
) -> Iterator[Pruned]:
    """Prune to one sparsity after the other on one quadratic: what is left is scored anew from its optimum, and no gradient is
    taken  (eq. 28). What each reached, so that one path gives all sparsities; their predicted increases add up exactly.

    quadratic: what `pruner.quadratic(objective)` gave, with any damping. Raises WoodburyError if the update is not `joint`.
    """
    if not sparsities:
        raise WoodburyError("There is no sparsity to prune to: give at least one.")
    if pruner.update is not joint:
        raise WoodburyError(
            "One quadratic goes on only from its optimum: take the joint update, or stages."
        )
    pruner.check(objective.space, sparsities[-1])
    return _inner_stages(pruner, quadratic, Pruned(objective, ()), sparsities)


def _inner_stages(
    pruner: Pruner, quadratic: Quadratic, pruned: Pruned, sparsities: Sequence[Targets]
) -> Iterator[Pruned]:
    space = pruned.objective.space
    for sparsity in sparsities:
        here = pruned.objective
        if pruned.steps:
            quadratic = quadratic.at_optimum(
                here.space.keep[space.keep].to(here.weights.device), here.weights
            )
        space, step = here.space, pruner.on_quadratic(quadratic, here, sparsity)
        pruned = replace(step, steps=pruned.steps + step.steps)
        yield pruned
