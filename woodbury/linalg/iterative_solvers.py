"""Conjugate gradients: solving by products alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""(d, k) -> (d, k), linear, symmetric and positive definite."""


def conjugate_gradients(
    multiply: Product,
    b: Tensor,
    steps: int,
    tolerance: float,
    precondition: Product = lambda residual: residual,
) -> tuple[Tensor, float]:
    """multiply⁻¹ b for every column of b (d, k) at once, in its dtype, and the largest relative residual that is left.

    Ends after so many steps, or when every column's residual is within the tolerance (Hestenes & Stiefel 1952).
    """
    x, residual, size = torch.zeros_like(b), b, b.norm(dim=0)
    direction = better = precondition(residual)
    energy = (residual * better).sum(0)
    for _ in range(steps):
        active = (
            residual.norm(dim=0) > tolerance * size
        )  # columns that have arrived stand still, or they would divide 0 by 0
        if not active.any():
            break
        product = multiply(direction)
        step = torch.where(active, energy / (direction * product).sum(0), 0)
        x, residual = x + step * direction, residual - step * product
        better = precondition(residual)
        last, energy = energy, (residual * better).sum(0)
        direction = better + torch.where(active, energy / last, 0) * direction
    return x, float(torch.where(size == 0, 0, residual.norm(dim=0) / size).max())
