"""prune(): the one call from a model and its data to a pruned model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from woodbury.errors import WoodburyError
from woodbury.gradients import Progress
from woodbury.likelihood import Likelihood, cross_entropy
from woodbury.objective import Batch, Objective
from woodbury.pruning.contest import reached
from woodbury.pruning.effort import Effort, choose, usual
from woodbury.pruning.pruner import Pruned, Pruner, Recipe
from woodbury.pruning.refit import Refitted
from woodbury.pruning.schedule import Targets
from woodbury.pruning.schedule import rounds as geometric
from woodbury.pruning.stages import in_rounds
from woodbury.pruning.tuned import Tuned
from woodbury.space import ParameterSpace, Patterns


def prune(
    model: nn.Module,
    batches: Iterable[Batch],
    sparsity: Targets,
    *,
    effort: Effort = usual,
    pruner: Recipe | None = None,
    rounds: int = 1,
    likelihood: Likelihood = cross_entropy,
    include: Patterns = "*",
    exclude: Patterns = (),
    keep_zeros: bool = False,
    progress: Progress | None = None,
) -> Pruned:
    """Prune the matrices and kernels of `model` that the patterns choose, in place; calibrated on `batches`.

    batches: re-iterable (inputs, target). sparsity: removed ÷ all weights, or one for each of several patterns, such as
    {"conv1*": 0.0, "*": 0.9}. effort: how much time to take; the best known settings for it are chosen, and
    `Pruned.settings` says which. pruner: your own settings instead, in `rounds` with fresh gradients each. keep_zeros:
    weights that are zero already stay zero. Parameters that do not require a gradient are pruned too, unless excluded.
    Raises WoodburyError before the model is touched.
    """
    if pruner is not None and not isinstance(pruner, Pruner | Tuned | Refitted):
        raise WoodburyError(
            f"The pruner is a {type(pruner).__name__}: give Pruner(fisher=...), such as Pruner(mfac(500))."
        )
    if pruner is None and rounds != 1:
        raise WoodburyError("The effort says how many rounds there are: leave them out, or give a pruner of your own.")
    space = ParameterSpace.of(model, include, exclude, min_ndim=2)
    objective = Objective.of(model, batches, likelihood, space)
    objective.probe()
    if keep_zeros:
        nonzero = objective.weights != 0
        objective = objective.at(objective.weights[nonzero], space.restrict(nonzero))
    if pruner is not None:
        start = reached(objective.space, sparsity, pruner.cost) if rounds > 1 else 0.0
        pruned = in_rounds(pruner, objective, geometric(sparsity, rounds, start), progress)
    else:
        choice = choose(objective, sparsity, effort, progress)
        pruned = replace(
            in_rounds(choice.recipe, choice.objective, choice.sparsities, progress), settings=choice.settings
        )
    pruned.write()
    return pruned
