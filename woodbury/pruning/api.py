"""prune(): the one call from a model and its data to a pruned model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from woodbury.errors import WoodburyError
from woodbury.model.batches import Batch
from woodbury.model.likelihood import Likelihood, cross_entropy
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace, Patterns
from woodbury.pruning.autoconfig import choose
from woodbury.pruning.budget import current_sparsity
from woodbury.pruning.damping_search import DampingSearch
from woodbury.pruning.presets import Effort, standard
from woodbury.pruning.pruner import Pruned, Pruner, Recipe
from woodbury.pruning.refit.with_refit import WithRefit
from woodbury.pruning.schedule import Targets, geometric
from woodbury.pruning.staged import run_stages


def prune(
    model: nn.Module,
    batches: Iterable[Batch],
    sparsity: Targets,
    *,
    effort: Effort = standard,
    pruner: Recipe | None = None,
    stages: int = 1,
    likelihood: Likelihood = cross_entropy,
    include: Patterns = "*",
    exclude: Patterns = (),
    keep_zeros: bool = False,
) -> Pruned:
    """Prune the matrices and kernels of `model` that the patterns choose, in place; calibrated on `batches`.

    batches: re-iterable (inputs, target). sparsity: removed ÷ all weights, or one for each of several patterns, such as
    {"conv1*": 0.0, "*": 0.9}. effort: how much time to take; the best known settings for it are chosen, and
    `Pruned.settings` says which. pruner: your own settings instead, in `stages` with fresh gradients each. keep_zeros:
    weights that are zero already stay zero. Parameters that do not require a gradient are pruned too, unless excluded.
    Raises WoodburyError before the model is touched.
    """
    if pruner is not None and not isinstance(pruner, Pruner | DampingSearch | WithRefit):
        raise WoodburyError(
            f"The pruner is a {type(pruner).__name__}: give Pruner(fisher=...), such as Pruner(mfac(500))."
        )
    if pruner is None and stages != 1:
        raise WoodburyError(
            "The effort says how many stages there are: leave them out, or give a pruner of your own."
        )
    space = ParameterSpace.from_model(model, include, exclude, min_ndim=2)
    objective = Objective.from_model(model, batches, likelihood, space)
    objective.probe()
    if keep_zeros:
        nonzero = objective.weights != 0
        objective = objective.at(objective.weights[nonzero], space.restrict(nonzero))
    if pruner is not None:
        start = current_sparsity(objective.space, sparsity, pruner.cost) if stages > 1 else 0.0
        pruned = run_stages(pruner, objective, geometric(sparsity, stages, start))
    else:
        choice = choose(objective, sparsity, effort)
        pruned = replace(
            run_stages(choice.recipe, choice.objective, choice.sparsities),
            settings=choice.settings,
        )
    pruned.write()
    return pruned
