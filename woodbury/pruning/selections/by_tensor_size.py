"""Selections whose shares of the tensors follow from their sizes alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from woodbury.argument_types import check_fields
from woodbury.errors import WoodburyError
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
    places = _places(quadratic, budget, saliency)
    return budget.keep(replace(budget, divisors=None).cheapest(places))


@dataclass(frozen=True)
class by_size:
    """The larger a tensor, the smaller the share of its units that is kept, those of most saliency.

    A tensor of k units keeps a share in proportion to k to the power of minus `power`, and at most
    all. A power of 1/2 is about Erdős–Rényi's, by which a matrix keeps as many weights as its
    inputs and outputs are many (Evci et al., "Rigging the Lottery", ICML 2020); 0 is `evenly`.

    Args:
        power: In [0, 1].

    Raises:
        WoodburyError: If the power is out of its range.

    Example:
        >>> import torch, woodbury
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Linear(1, 8))
        >>> space = woodbury.ParameterSpace.from_model(model, min_ndim=2)
        >>> budget = woodbury.Pruner().budget(space, sparsity=0.4)
        >>> quadratic = Quadratic(torch.arange(1.0, 11.0))
        >>> keep = by_size(0.5)(quadratic, budget, woodbury.saliencies.magnitude)
        >>> int(keep[:2].sum()), int(keep[2:].sum())
        (2, 4)
    """

    power: float

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.power <= 1:
            raise WoodburyError(f"power is {self.power}: give a number from 0 to 1.")

    def __call__(self, quadratic: Quadratic, budget: Budget, saliency: Saliency) -> Tensor:
        """The weights to keep, (d,) bool on the CPU."""
        kept_from = 1 - _places(quadratic, budget, saliency)
        tensors = budget.tensors().long()
        sizes = tensors.bincount().double()[tensors]
        # A unit is kept while the constant of proportion is at least this.
        constant = kept_from * sizes**self.power
        return budget.keep(replace(budget, divisors=None).cheapest(-constant))


def _places(quadratic: Quadratic, budget: Budget, saliency: Saliency) -> Tensor:
    """The place of each unit among those of its tensor, from 0 for the least saliency to 1."""
    scores = unit_scores(quadratic, budget, saliency)
    places = torch.full((len(scores),), torch.nan, dtype=torch.float64)
    tensors = budget.tensors()
    for tensor in tensors.unique().tolist():
        own = (tensors == tensor).nonzero()[:, 0]
        order = own[scores[own].argsort(stable=True)]
        places[order] = (torch.arange(len(own), dtype=torch.float64) + 0.5) / len(own)
    places[~torch.isfinite(scores)] = torch.nan  # which `cheapest` refuses
    return places
