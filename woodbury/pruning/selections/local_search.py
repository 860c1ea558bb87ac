"""Local search: exchange removed weights for kept ones while the quadratic falls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from woodbury.argument_types import check_fields
from woodbury.errors import WoodburyError, check_whole_number, user_code
from woodbury.fisher.checks import check_keep
from woodbury.io.representation import readable
from woodbury.pruning.budget import Budget
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.saliencies import Saliency
from woodbury.pruning.selections.greedy_selection import Selection, greedy
from woodbury.pruning.updates import joint

MIN_BOLDNESS = 2.0**-6
"""Share of a full exchange below which none is tried any more."""

MAX_DOUBLINGS = 12
"""How often a thresholded step that exchanges nothing is made longer."""


class Optimum(NamedTuple):
    """Where the quadratic is least with the removed weights at zero.

    Attributes:
        delta: (d,), the step there from the quadratic's weights.
        slope: (d,), the gradient of the quadratic there; zero at the kept weights.
        increase: Of the quadratic there.
    """

    delta: Tensor
    slope: Tensor
    increase: float

    @classmethod
    def of(cls, quadratic: Quadratic, keep: Tensor) -> Optimum:
        """The optimum of keep (d,), by one product with F for both the slope and the increase."""
        delta = joint(quadratic, keep.to(quadratic.weights.device))
        slope = quadratic.slope_at(delta)
        return cls(delta, slope, quadratic.increase(delta, slope))


Proposal = Callable[[Quadratic, Budget, Tensor, Optimum, float], Tensor]
"""(quadratic, budget, keep (d,), its optimum, boldness) -> another keep (d,).

The smaller the boldness, in (0, 1], the fewer weights are exchanged.
"""


@dataclass(frozen=True)
class swaps:
    """Exchanges of removed weights for kept ones, each of which lowers the quadratic  (eq. 58).

    Kept weights compete by what their removal costs, removed ones by what their return gains, both
    with the other kept weights free to move. The lowest are removed. For single weights.

    Args:
        max_steps: Exchanges of several weights at most; the search ends before if none lowers the
            quadratic.
        start: The selection to begin with.

    Raises:
        WoodburyError: If there is no step; when it is called, for units of several weights or
            without a Fisher.

    Example:
        >>> swaps(10)
        swaps(max_steps=10, start=greedy)
    """

    max_steps: int = 20
    start: Selection = greedy

    __repr__ = readable

    def __post_init__(self) -> None:
        check_fields(self)
        _check_max_steps(self.max_steps)

    def __call__(self, quadratic: Quadratic, budget: Budget, saliency: Saliency) -> Tensor:
        """The weights to keep, (d,) bool on the CPU."""
        keep = _begun(self.start, quadratic, budget, saliency)
        return _descend(_swapped, self.max_steps, quadratic, budget, keep)


@dataclass(frozen=True)
class iterative_hard_thresholding:
    """Gradient steps on the quadratic, each cut back to the weights that may be kept  (eq. 59).

    Each step has an exact line search and is scaled by the diagonal; the kept weights then move to
    their optimum (Blumensath & Davies 2009; for pruning Benbaki et al., ICML 2023). Cheaper than
    `swaps`, as no inverse is computed. For single weights.

    Args:
        max_steps: Gradient steps at most; the search ends before if none lowers the quadratic.
        start: The selection to begin with.

    Raises:
        WoodburyError: If there is no step; when it is called, for units of several weights or
            without a Fisher.

    Example:
        >>> iterative_hard_thresholding(5)
        iterative_hard_thresholding(max_steps=5, start=greedy)
    """

    max_steps: int = 20
    start: Selection = greedy

    __repr__ = readable

    def __post_init__(self) -> None:
        check_fields(self)
        _check_max_steps(self.max_steps)

    def __call__(self, quadratic: Quadratic, budget: Budget, saliency: Saliency) -> Tensor:
        """The weights to keep, (d,) bool on the CPU."""
        keep = _begun(self.start, quadratic, budget, saliency)
        return _descend(_thresholded, self.max_steps, quadratic, budget, keep)


def _begun(start: Selection, quadratic: Quadratic, budget: Budget, saliency: Saliency) -> Tensor:
    """The weights to begin with, (d,) bool."""
    with user_code("The selection to start with fails on this quadratic."):
        keep = start(quadratic, _of_single_weights(budget), saliency)
    return check_keep(keep, budget.d)


def _check_max_steps(max_steps: int) -> None:
    check_whole_number(max_steps, "max_steps", "the number of steps of the search at most")


def _of_single_weights(budget: Budget) -> Budget:
    """The budget, or an error if its units hold several weights."""
    if budget.groups is not None:
        raise WoodburyError(
            "Weights are exchanged one for one: take units.single, or selections.greedy."
        )
    return budget


def _descend(
    propose: Proposal, max_steps: int, quadratic: Quadratic, budget: Budget, keep: Tensor
) -> Tensor:
    """The last keep (d,) of a chain of proposals, each of which lowers the quadratic.

    The boldness is halved after a proposal that does not lower it, and doubled after one that does.
    """
    best = Optimum.of(quadratic, keep)
    boldness = 1.0
    for _ in range(max_steps):
        proposed = propose(quadratic, budget, keep, best, boldness)
        if torch.equal(proposed, keep):
            break
        optimum = Optimum.of(quadratic, proposed)
        if optimum.increase < best.increase:
            keep = proposed
            best = optimum
            boldness = min(1.0, 2 * boldness)
        elif boldness > MIN_BOLDNESS:
            boldness /= 2
        else:
            break
    return keep


def _swapped(
    quadratic: Quadratic, budget: Budget, keep: Tensor, optimum: Optimum, boldness: float
) -> Tensor:
    """The keep (d,) in which kept and removed weights are ranked together  (eq. 58)."""
    kept = keep.to(optimum.delta.device)
    # κ of each weight, when it moves and the other kept weights follow  (eq. 57).
    curvature = quadratic.curvature("An exchange of weights").conditional_curvature(kept)
    # 1. A kept weight: what it costs to take it to zero from its value at the optimum.
    cost = 0.5 * curvature * (quadratic.weights + optimum.delta).square()
    # 2. A removed weight: what is gained when it goes from zero to its own minimum.
    gain = 0.5 * optimum.slope.square() / curvature
    # 3. Each is exact for one weight. As those exchanged together interact, gains are cut.
    scores = torch.where(kept, cost, boldness * gain)
    return budget.keep(budget.cheapest(scores))


def _thresholded(
    quadratic: Quadratic, budget: Budget, keep: Tensor, optimum: Optimum, boldness: float
) -> Tensor:
    """The keep (d,) after a step of steepest descent from the optimum  (eq. 59)."""
    fisher = quadratic.curvature("A gradient step")
    diagonal = fisher.diagonal()
    # 1. The direction is D⁻¹r, the gradient in the metric of the diagonal.
    direction = optimum.slope / diagonal
    curvature_along = float((direction * (fisher @ direction)).sum())
    if curvature_along <= 0:  # no slope: nothing was removed, or only zeros
        return keep
    # 2. The exact minimiser along it, cut by the boldness.
    length = boldness * float((optimum.slope * direction).sum()) / curvature_along
    start = quadratic.weights + optimum.delta
    # 3. In large networks it is often too short for any weight to cross the threshold: doubled.
    for doublings in range(MAX_DOUBLINGS):
        moved = start - 2.0**doublings * length * direction.to(start.dtype)
        proposed = budget.keep(budget.cheapest(0.5 * diagonal * moved.square()))
        if not torch.equal(proposed, keep):
            return proposed
    return keep
