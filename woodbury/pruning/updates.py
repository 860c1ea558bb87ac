"""Updates: how the weights move when some are removed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from woodbury.pruning.quadratic import Quadratic

Update = Callable[[Quadratic, Tensor], Tensor]
"""(quadratic, keep (d,) bool) -> the step (d,), exactly −w where a weight is removed."""


def zero(quadratic: Quadratic, keep: Tensor) -> Tensor:
    """The removed weights vanish, the others stay (OBD, magnitude pruning)."""
    return torch.where(keep, 0, -quadratic.weights)


def independent(quadratic: Quadratic, keep: Tensor) -> Tensor:
    """The papers' sum of single-weight updates, −F⁻¹ Σ_q e_q w_q/[F⁻¹]_qq, blind to how the removed interact  (eq. 19)."""
    fisher = quadratic.curvature("The independent update")
    weights = quadratic.weights.to(fisher.dtype)
    newton = (
        0.0 if quadratic.gradient is None else fisher.solve(quadratic.gradient.to(fisher.dtype))
    )
    pushes = ((weights - newton) / fisher.inverse_diagonal()).masked_fill(keep, 0)
    return torch.where(keep, -(fisher.solve(pushes) + newton), -weights).to(quadratic.weights.dtype)


def joint(quadratic: Quadratic, keep: Tensor) -> Tensor:
    """The exact minimiser of the quadratic with the removed weights at zero: F_KK⁻¹ (F_KQ w_Q − g_K)  (eq. 9, 12)."""
    fisher = quadratic.curvature("The joint update")
    weights = quadratic.weights.to(fisher.dtype)
    gradient = None if quadratic.gradient is None else quadratic.gradient.to(fisher.dtype)
    step = -weights
    step[keep] = fisher.compensate(keep, weights.masked_fill(keep, 0), gradient)
    return step.to(quadratic.weights.dtype)
