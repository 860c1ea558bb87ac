"""Selections that go on from another: weights trade places as long as the quadratic falls."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.pruning.budget import Budget
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.saliencies import Saliency
from woodbury.pruning.selections.greedy_selection import Selection, greedy
from woodbury.pruning.updates import joint

FINEST = 2.0**-6
"""Below this share of a full exchange, none is tried any more."""


DOUBLINGS = 12
"""How often a thresholded step that exchanges nothing is lengthened."""


class Optimum(NamedTuple):
    """Where the quadratic is least for those that stay: the step there and the slope, (d,) each, and the increase."""

    delta: Tensor
    slope: Tensor
    value: float

    @classmethod
    def of(cls, quadratic: Quadratic, keep: Tensor) -> Optimum:
        """By one product, which serves for the slope and the increase."""
        delta = joint(quadratic, keep.to(quadratic.weights.device))
        slope = quadratic.slope_at(delta)
        return cls(delta, slope, quadratic.increase(delta, slope))


Proposal = Callable[[Quadratic, Budget, Tensor, Optimum, float], Tensor]
"""(quadratic, contest, keep, its optimum, boldness) -> another keep (d,), the nearer to `keep` the smaller the boldness."""


def swaps(most: int = 20, start: Selection = greedy) -> Selection:
    """From `start`, at most `most` exchanges of removed weights for kept ones, each of which lowers the quadratic  (eq. 58).

    A weight that stays is worth what its removal costs, one that went what its return gains, both with the others free to
    follow; the worse stay out. For single weights. Raises WoodburyError for larger units.
    """
    return _descent(_swapped, most, start)


def iterative_hard_thresholding(most: int = 20, start: Selection = greedy) -> Selection:
    """From `start`, at most `most` gradient steps with exact line search, each cut back to the weights that may stay (iterative
    hard thresholding, Blumensath & Davies 2009, scaled by the diagonal) and moved to their optimum  (eq. 59).

    Cheaper than `swaps`, as it never inverts. For single weights. Raises WoodburyError for larger units.
    """
    return _descent(_thresholded, most, start)


def _descent(propose: Proposal, most: int, start: Selection) -> Selection:
    if most < 1:
        raise WoodburyError(f"{most} exchanges were asked for: give at least 1.")

    def selection(quadratic: Quadratic, contest: Budget, saliency: Saliency) -> Tensor:
        if contest.groups is not None:
            raise WoodburyError(
                "Weights are exchanged one for one: take single weights, or another selection."
            )
        keep, boldness = start(quadratic, contest, saliency), 1.0
        best = Optimum.of(quadratic, keep)
        for _ in range(most):
            proposed = propose(quadratic, contest, keep, best, boldness)
            if torch.equal(proposed, keep):
                break
            found = Optimum.of(quadratic, proposed)
            if found.value < best.value:
                keep, best, boldness = proposed, found, min(1.0, 2 * boldness)
            elif boldness > FINEST:
                boldness /= 2
            else:
                break
        return keep

    return selection


def _swapped(
    quadratic: Quadratic, contest: Budget, keep: Tensor, at: Optimum, boldness: float
) -> Tensor:
    stays = keep.to(at.delta.device)
    curvature = quadratic.curvature("An exchange of weights").conditional(stays)
    cost = 0.5 * curvature * (quadratic.weights + at.delta).square()
    gain = 0.5 * at.slope.square() / curvature
    return contest.keep(contest.cheapest(torch.where(stays, cost, boldness * gain)))


def _thresholded(
    quadratic: Quadratic, contest: Budget, keep: Tensor, at: Optimum, boldness: float
) -> Tensor:
    fisher = quadratic.curvature("A gradient step")
    diagonal = fisher.diagonal()
    direction = at.slope / diagonal
    bend = float((direction * (fisher @ direction)).sum())
    if bend <= 0:  # no slope: nothing was removed, or only zeros
        return keep
    length = boldness * float((at.slope * direction).sum()) / bend
    for longer in range(DOUBLINGS):  # the exact step is often too short for any weight to cross
        moved = quadratic.weights + at.delta - 2.0**longer * length * direction.to(at.delta.dtype)
        proposed = contest.keep(contest.cheapest(0.5 * diagonal * moved.square()))
        if not torch.equal(proposed, keep):
            return proposed
    return keep
