"""Selection = unit × scope × budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.space import ParameterSpace

Scope = Callable[[ParameterSpace], Tensor]
"""space -> labels (n,) int64: weights of the same label compete, and each label has its own budget."""


def everything(space: ParameterSpace) -> Tensor:
    """All weights compete: one global threshold."""
    return torch.zeros(space.n, dtype=torch.int64)


def layers(space: ParameterSpace) -> Tensor:
    """Each tensor on its own: the same sparsity everywhere."""
    return space.labels()


def select(scores: Tensor, costs: Tensor, labels: Tensor, budgets: Mapping[int, float]) -> Tensor:
    """The units to remove, (g,) bool: per label the lowest scores whose costs fit the budget  (eq. 18).

    scores, costs, labels: (g,). Equal scores fall in the order of their index, so that unit costs meet a whole budget
    exactly. Raises WoodburyError on scores that are not finite or costs that are not positive.
    """
    if not bool(torch.isfinite(scores).all()):
        worst = int((~torch.isfinite(scores)).nonzero()[0])
        raise WoodburyError(f"The saliency of unit {worst} is not finite: raise the damping or look at that weight.")
    if not bool((costs > 0).all()):
        raise WoodburyError("A cost is zero, negative or NaN: every unit must cost something.")
    remove = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    for label, budget in budgets.items():
        members = (labels == label).nonzero()[:, 0]
        order = members[scores[members].argsort(stable=True)]
        affordable = costs[order].double().cumsum(0) <= budget * (1 + 1e-12)
        remove[order[affordable]] = True
    return remove


def check_reachable(space: ParameterSpace, labels: Tensor, sparsity: float) -> None:
    """An error if some label has lost more of its weights already than `sparsity` would take."""
    gone = torch.bincount(labels[~space.keep.cpu()], minlength=int(labels.max()) + 1)
    wanted = (torch.bincount(labels).double() * sparsity).round()
    over = (gone > wanted).nonzero()[:, 0]
    if len(over):
        first = int((labels == over[0]).nonzero()[0])
        name = next(name for name, part in space.slices.items() if part.start <= first < part.stop)
        raise WoodburyError(
            f"sparsity {sparsity} is below what is reached already: {int(gone[over[0]])} of the weights that compete with "
            f"those of {name!r} are gone, {int(wanted[over[0]])} would go; pruned weights stay."
        )


def weight_budgets(space: ParameterSpace, labels: Tensor, sparsity: float) -> dict[int, float]:
    """How many of the weights left must go per label, so that `sparsity` of the label's original weights are gone."""
    keep = space.keep.cpu()
    originals = torch.bincount(labels)
    left = torch.bincount(labels[keep], minlength=len(originals))
    wanted = (originals.double() * sparsity).round()
    return {
        label: max(0.0, float(wanted[label] - originals[label] + left[label])) for label in labels.unique().tolist()
    }
