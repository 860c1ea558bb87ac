"""Stages: one pruning after the other, each with gradients taken anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from woodbury.errors import WoodburyError
from woodbury.gradients import Progress
from woodbury.objective import Batch, Objective
from woodbury.pruning.pruner import Pruned, Recipe
from woodbury.pruning.schedule import Targets


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
    recipe: Recipe, pruned: Pruned, sparsities: Sequence[Targets], fresh: Callable[[int], Iterable[Batch]] | None
) -> Iterator[Pruned]:
    for stage, sparsity in enumerate(sparsities):
        here = pruned.objective if fresh is None else replace(pruned.objective, batches=fresh(stage))
        step = recipe(here, sparsity)
        pruned = replace(step, steps=pruned.steps + step.steps)
        yield pruned


def in_rounds(
    recipe: Recipe, objective: Objective, sparsities: Sequence[Targets], progress: Progress | None = None
) -> Pruned:
    """The last of the `stages`, on the objective's own batches; the model is untouched."""
    reached = Pruned(objective, ())
    for done, pruned in enumerate(stages(recipe, objective, sparsities), 1):
        reached = pruned
        if progress:
            progress("rounds", done, len(sparsities))
    return reached
