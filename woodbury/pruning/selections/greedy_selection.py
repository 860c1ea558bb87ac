"""Selections: how the saliencies of a quadratic become the weights that stay."""

from __future__ import annotations

from collections.abc import Callable

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


def iterative_greedy(steps: int) -> Selection:
    """In `steps` that each keep the same fraction, on one quadratic: what is left moves to its optimum and is scored anew,
    against the inverse of the restricted Fisher  (eq. 28)."""
    if steps < 1:
        raise WoodburyError(f"{steps} inner steps were asked for: give at least 1.")

    def selection(quadratic: Quadratic, contest: Budget, saliency: Saliency) -> Tensor:
        keep = torch.ones(contest.d, dtype=torch.bool)
        for left in range(steps, 0, -1):
            remove = contest.first_step_of(left).cheapest(unit_scores(quadratic, contest, saliency))
            stays = contest.keep(remove)
            keep[keep.clone()] = stays
            if left > 1:
                quadratic, contest = (
                    quadratic.restrict(stays.to(quadratic.weights.device)),
                    contest.after_removing(remove),
                )
        return keep

    return selection


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
