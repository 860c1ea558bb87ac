"""Greedy selections: the units of lowest saliency, at once or in several inner steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from woodbury.argument_types import check_fields
from woodbury.errors import check_whole_number
from woodbury.pruning.budget import Budget
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.saliencies import Saliency
from woodbury.pruning.schedule import MAX_STAGES

Selection = Callable[[Quadratic, Budget, Saliency], Tensor]
"""(quadratic, budget, saliency) -> keep (d,) bool on the CPU, True = kept."""


def greedy(quadratic: Quadratic, budget: Budget, saliency: Saliency) -> Tensor:
    """The units of lowest saliency are removed at once  (eq. 18).

    The selection of WoodFisher and M-FAC. It neglects how the removed weights interact.

    Args:
        quadratic: The model of the loss.
        budget: Which units compete, and how much of each pool to remove.
        saliency: What the removal of each unit costs.

    Returns:
        (d,) bool on the CPU, True = kept.

    Raises:
        WoodburyError: If a score is not finite, or too few units can be removed.

    Example:
        >>> import torch, woodbury
        >>> space = woodbury.ParameterSpace.from_model(torch.nn.Linear(4, 1, bias=False))
        >>> budget = woodbury.Pruner().budget(space, sparsity=0.5)
        >>> quadratic = Quadratic(torch.tensor([4.0, -1.0, 2.0, -3.0]))
        >>> greedy(quadratic, budget, woodbury.saliencies.magnitude)
        tensor([ True, False, False,  True])
    """
    return budget.keep(budget.cheapest(unit_scores(quadratic, budget, saliency)))


@dataclass(frozen=True)
class iterative_greedy:
    """Greedy in several inner steps on one quadratic  (eq. 28).

    Each step keeps the same fraction. After each step the kept weights move to their optimum, and
    their saliencies are computed again from the inverse of the restricted Fisher. One weight a step
    is Optimal Brain Surgeon as first published (Hassibi & Stork, NeurIPS 1992).

    Args:
        steps: Inner steps; more of them see more of how the removed weights interact.

    Raises:
        WoodburyError: If there is no step.

    Example:
        >>> import woodbury
        >>> woodbury.Pruner(woodbury.mfac(100), selection=iterative_greedy(16)).selection
        iterative_greedy(steps=16)
    """

    steps: int

    def __post_init__(self) -> None:
        check_fields(self)
        check_whole_number(self.steps, "steps", "the number of inner steps", most=MAX_STAGES)

    def __call__(self, quadratic: Quadratic, budget: Budget, saliency: Saliency) -> Tensor:
        """The weights to keep, (d,) bool on the CPU."""
        keep = torch.ones(budget.d, dtype=torch.bool)
        for steps_to_do in range(self.steps, 0, -1):
            step = budget.first_step_of(steps_to_do)
            remove = step.cheapest(unit_scores(quadratic, budget, saliency))
            # Which of the weights that were kept so far are kept further.
            kept = budget.keep(remove)
            keep[keep.clone()] = kept
            if steps_to_do > 1:
                quadratic = quadratic.restrict(kept.to(quadratic.weights.device))
                budget = budget.after_removing(remove)
        return keep


def unit_scores(quadratic: Quadratic, budget: Budget, saliency: Saliency) -> Tensor:
    """The saliency of every unit of a budget.

    Args:
        quadratic: The model of the loss.
        budget: Holds the units.
        saliency: What the removal of each unit costs.

    Returns:
        (g,) on the CPU.
    """
    if budget.groups is None:
        return saliency(quadratic, None).cpu()
    device = quadratic.weights.device
    return torch.cat([saliency(quadratic, groups.to(device)).cpu() for groups in budget.groups])
