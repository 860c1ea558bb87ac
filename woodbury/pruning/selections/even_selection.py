"""Even selection: every tensor loses the same share of its units."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from woodbury.pruning.budget import Budget
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.saliencies import Saliency
from woodbury.pruning.selections.greedy_selection import unit_scores


def evenly(quadratic: Quadratic, budget: Budget, saliency: Saliency) -> Tensor:
    """The same share of every tensor's units is removed, those of lowest saliency.

    As the scope `layerwise`, but the whole is met exactly: tensors whose share is no whole number
    of units lose one more or fewer.

    Args:
        quadratic: The model of the loss.
        budget: Which units compete, and how much of each pool to remove.
        saliency: What the removal of each unit costs; it is compared within a tensor alone.

    Returns:
        (d,) bool on the CPU, True = kept.

    Raises:
        WoodburyError: If a score is not finite, or too few units can be removed.

    Example:
        >>> import torch, woodbury
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 1), torch.nn.Linear(1, 4))
        >>> space = woodbury.ParameterSpace.from_model(model, min_ndim=2)
        >>> budget = woodbury.Pruner().budget(space, sparsity=0.5)
        >>> quadratic = Quadratic(torch.tensor([1.0, 2.0, 3.0, 4.0, 40.0, 30.0, 20.0, 10.0]))
        >>> evenly(quadratic, budget, woodbury.saliencies.magnitude)
        tensor([False, False,  True,  True,  True,  True, False, False])
    """
    scores = unit_scores(quadratic, budget, saliency)
    ranks = torch.full((len(scores),), torch.nan, dtype=torch.float64)
    tensors = budget.tensors()
    for tensor in tensors.unique().tolist():
        own = (tensors == tensor).nonzero()[:, 0]
        order = own[scores[own].argsort(stable=True)]
        ranks[order] = (torch.arange(len(own), dtype=torch.float64) + 0.5) / len(own)
    ranks[~torch.isfinite(scores)] = torch.nan  # which `cheapest` refuses
    return budget.keep(replace(budget, divisors=None).cheapest(ranks))
