"""Selections that go on from another: weights trade places as long as the quadratic falls."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.pruning.contest import Contest
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.saliency import Saliency
from woodbury.pruning.selection import Selection, once
from woodbury.pruning.update import joint

FINEST = 2.0**-6
"""Below this share of a full exchange, none is tried any more."""

DOUBLINGS = 12
"""How often a thresholded step that exchanges nothing is lengthened."""

Proposal = Callable[[Quadratic, Contest, Tensor, Tensor, float], Tensor]
"""(quadratic, contest, keep, delta, boldness) -> another keep (d,), the nearer to `keep` the smaller the boldness."""


def swaps(most: int = 20, start: Selection = once) -> Selection:
    """From `start`, at most `most` exchanges of removed weights for kept ones, each of which lowers the quadratic  (eq. 58).

    A weight that stays is worth what its removal costs, one that went what its return gains, both with the others free to
    follow; the worse stay out. For single weights. Raises WoodburyError for larger units.
    """
    return _descent(_swapped, most, start)


def thresholded(most: int = 20, start: Selection = once) -> Selection:
    """From `start`, at most `most` gradient steps with exact line search, each cut back to the weights that may stay (iterative
    hard thresholding, Blumensath & Davies 2009, scaled by the diagonal) and moved to their optimum  (eq. 59).

    Cheaper than `swaps`, as it never inverts. For single weights. Raises WoodburyError for larger units.
    """
    return _descent(_thresholded, most, start)


def _descent(propose: Proposal, most: int, start: Selection) -> Selection:
    if most < 1:
        raise WoodburyError(f"{most} exchanges were asked for: give at least 1.")

    def selection(quadratic: Quadratic, contest: Contest, saliency: Saliency) -> Tensor:
        if contest.groups is not None:
            raise WoodburyError("Weights are exchanged one for one: take single weights, or another selection.")
        keep, boldness = start(quadratic, contest, saliency), 1.0
        delta, value = _optimum(quadratic, keep)
        for _ in range(most):
            proposed = propose(quadratic, contest, keep, delta, boldness)
            if torch.equal(proposed, keep):
                break
            step, lower = _optimum(quadratic, proposed)
            if lower < value:
                keep, delta, value, boldness = proposed, step, lower, min(1.0, 2 * boldness)
            elif boldness > FINEST:
                boldness /= 2
            else:
                break
        return keep

    return selection


def _optimum(quadratic: Quadratic, keep: Tensor) -> tuple[Tensor, float]:
    delta = joint(quadratic, keep.to(quadratic.weights.device))
    return delta, quadratic.increase(delta)


def _swapped(quadratic: Quadratic, contest: Contest, keep: Tensor, delta: Tensor, boldness: float) -> Tensor:
    stays = keep.to(delta.device)
    curvature = quadratic.curvature("An exchange of weights").conditional(stays)
    cost = 0.5 * curvature * (quadratic.weights + delta).square()
    gain = 0.5 * quadratic.slope_at(delta).square() / curvature
    return contest.keep(contest.cheapest(torch.where(stays, cost, boldness * gain)))


def _thresholded(quadratic: Quadratic, contest: Contest, keep: Tensor, delta: Tensor, boldness: float) -> Tensor:
    fisher, slope = quadratic.curvature("A gradient step"), quadratic.slope_at(delta)
    diagonal = fisher.diagonal()
    direction = slope / diagonal
    bend = float((direction * (fisher @ direction)).sum())
    if bend <= 0:  # no slope: nothing was removed, or only zeros
        return keep
    length = boldness * float((slope * direction).sum()) / bend
    for longer in range(DOUBLINGS):  # the exact step is often too short for any weight to cross
        moved = quadratic.weights + delta - 2.0**longer * length * direction.to(delta.dtype)
        proposed = contest.keep(contest.cheapest(0.5 * diagonal * moved.square()))
        if not torch.equal(proposed, keep):
            return proposed
    return keep
