"""Selections that go on from another: weights trade places as long as the quadratic falls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.pruning.budget import Budget
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.saliencies import Saliency
from woodbury.pruning.selections.greedy_selection import Selection, greedy
from woodbury.pruning.updates import joint

SMALLEST_BOLDNESS = 2.0**-6
"""Below this share of a full exchange, none is tried any more."""


MAX_DOUBLINGS = 12
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


@dataclass(frozen=True)
class swaps:
    """Exchanges of removed weights for kept ones, each of which lowers the quadratic  (eq. 58).

    A kept weight counts what its removal costs, a removed one what its return gains, both with the
    other kept weights free to move. The smaller are removed. For single weights.

    Args:
        most: Exchanges at most.
        start: The selection to begin with.

    Raises:
        WoodburyError: If there is no exchange; when it is called, for units of several weights.

    Example:
        >>> import woodbury
        >>> woodbury.selections.swaps(20).most
        20
    """

    most: int = 20
    start: Selection = greedy

    def __post_init__(self) -> None:
        _check_most(self.most)

    def __call__(self, quadratic: Quadratic, budget: Budget, saliency: Saliency) -> Tensor:
        """The weights to keep, (d,) bool on the CPU."""
        return _descend(_swapped, self.most, self.start, quadratic, budget, saliency)


@dataclass(frozen=True)
class iterative_hard_thresholding:
    """Gradient steps on the quadratic, each cut back to the weights that may be kept  (eq. 59).

    Each step has an exact line search, is scaled by the diagonal, and the kept weights then move to
    their optimum (Blumensath & Davies 2009). Cheaper than `swaps`, as no inverse is computed. For single
    weights.

    Args:
        most: Steps at most.
        start: The selection to begin with.

    Raises:
        WoodburyError: If there is no step; when it is called, for units of several weights.

    Example:
        >>> import woodbury
        >>> woodbury.selections.iterative_hard_thresholding(5).most
        5
    """

    most: int = 20
    start: Selection = greedy

    def __post_init__(self) -> None:
        _check_most(self.most)

    def __call__(self, quadratic: Quadratic, budget: Budget, saliency: Saliency) -> Tensor:
        """The weights to keep, (d,) bool on the CPU."""
        return _descend(_thresholded, self.most, self.start, quadratic, budget, saliency)


def _check_most(most: int) -> None:
    if most < 1:
        raise WoodburyError(f"{most} exchanges were asked for: give at least 1.")


def _descend(
    propose: Proposal,
    most: int,
    start: Selection,
    quadratic: Quadratic,
    budget: Budget,
    saliency: Saliency,
) -> Tensor:
    """Accept proposals that lower the quadratic; halve the boldness after one that does not."""
    if budget.groups is not None:
        raise WoodburyError(
            "Weights are exchanged one for one: take single weights, or another selection."
        )
    keep = start(quadratic, budget, saliency)
    best = Optimum.of(quadratic, keep)
    boldness = 1.0
    for _ in range(most):
        proposed = propose(quadratic, budget, keep, best, boldness)
        if torch.equal(proposed, keep):
            break
        optimum = Optimum.of(quadratic, proposed)
        if optimum.value < best.value:
            keep = proposed
            best = optimum
            boldness = min(1.0, 2 * boldness)
        elif boldness > SMALLEST_BOLDNESS:
            boldness /= 2
        else:
            break
    return keep


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
    for longer in range(MAX_DOUBLINGS):  # the exact step is often too short for any weight to cross
        moved = quadratic.weights + at.delta - 2.0**longer * length * direction.to(at.delta.dtype)
        proposed = contest.keep(contest.cheapest(0.5 * diagonal * moved.square()))
        if not torch.equal(proposed, keep):
            return proposed
    return keep
