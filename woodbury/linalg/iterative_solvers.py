"""Conjugate gradients: solving by products alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""(d, k) -> (d, k), linear, symmetric and positive definite."""


class Solution(NamedTuple):
    """What conjugate gradients return.

    Attributes:
        x: (d, k), approximately multiply⁻¹ b.
        residual: The largest relative residual ‖b − multiply(x)‖/‖b‖ of a column.
    """

    x: Tensor
    residual: float


def conjugate_gradients(
    multiply: Product,
    b: Tensor,
    max_steps: int,
    tolerance: float,
    precondition: Product = lambda residual: residual,
) -> Solution:
    """Solve multiply(x) = b for every column of b at once (Hestenes & Stiefel 1952).

    Args:
        multiply: The matrix, by its product with (d, k).
        b: (d, k), in the dtype in which everything is computed.
        max_steps: Products at most.
        tolerance: Relative residual at which a column is done.
        precondition: An approximate inverse of the matrix; by default the identity.

    Returns:
        The solution and the largest relative residual of its columns, as the recursion has it.

    Example:
        >>> import torch
        >>> matrix = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> conjugate_gradients(lambda v: matrix @ v, torch.tensor([[3.0], [3.0]]), 9, 1e-6).x
        tensor([[1.],
                [1.]])
    """
    size = b.norm(dim=0)
    x = torch.zeros_like(b)
    residual = b
    better = precondition(residual)
    direction = better
    energy = (residual * better).sum(0)
    for _ in range(max_steps):
        # A column that is done stands still: its step would divide 0 by 0.
        active = residual.norm(dim=0) > tolerance * size
        if not active.any():
            break
        product = multiply(direction)
        step = torch.where(active, energy / (direction * product).sum(0), 0)
        x = x + step * direction
        residual = residual - step * product
        better = precondition(residual)
        last, energy = energy, (residual * better).sum(0)
        direction = better + torch.where(active, energy / last, 0) * direction
    relative = torch.where(size == 0, 0, residual.norm(dim=0) / size)
    return Solution(x, float(relative.max()))
