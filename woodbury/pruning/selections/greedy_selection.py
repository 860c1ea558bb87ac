"""Selections: how the saliencies of a quadratic become the weights that stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.pruning.budget import Budget
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.saliencies import Saliency

Selection = Callable[[Quadratic, Budget, Saliency], Tensor]
"""(quadratic, contest, saliency) -> keep (d,) bool on the CPU."""


def greedy(quadratic: Quadratic, contest: Budget, saliency: Saliency) -> Tensor:
    """The cheapest units by their saliencies as they are, blind to how the removed interact (both papers)  (eq. 18)."""
    return contest.keep(contest.cheapest(unit_scores(quadratic, contest, saliency)))


@dataclass(frozen=True)
class iterative_greedy:
    """Greedy in several inner steps on one quadratic, each of which keeps the same fraction  (eq. 28).

    After each step the kept weights move to their optimum, and their saliencies are computed again
    from the inverse of the restricted Fisher.

    Args:
        steps: Inner steps; more of them see more of how the removed weights interact.

    Raises:
        WoodburyError: If there is no step.

    Example:
        >>> import woodbury
        >>> woodbury.Pruner(woodbury.mfac(100), selection=woodbury.selections.iterative_greedy(16)).selection
        iterative_greedy(steps=16)
    """

    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise WoodburyError(f"{self.steps} inner steps were asked for: give at least 1.")

    def __call__(self, quadratic: Quadratic, budget: Budget, saliency: Saliency) -> Tensor:
        """The weights to keep, (d,) bool on the CPU."""
        keep = torch.ones(budget.d, dtype=torch.bool)
        for steps_to_do in range(self.steps, 0, -1):
            step = budget.first_step_of(steps_to_do)
            remove = step.cheapest(unit_scores(quadratic, budget, saliency))
            kept = budget.keep(remove)
            keep[keep.clone()] = kept
            if steps_to_do > 1:
                quadratic = quadratic.restrict(kept.to(quadratic.weights.device))
                budget = budget.after_removing(remove)
        return keep


def unit_scores(quadratic: Quadratic, contest: Budget, saliency: Saliency) -> Tensor:
    """The saliency of every unit of the contest: (g,)."""
    if contest.groups is None:
        return saliency(quadratic, None).cpu()
    return torch.cat(
        [
            saliency(quadratic, groups.to(quadratic.weights.device)).cpu()
            for groups in contest.groups
        ]
    )
