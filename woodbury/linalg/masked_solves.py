"""Rows that share a matrix, each restricted to its own columns: solved all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class MaskedSolution(NamedTuple):
    """What masked conjugate gradients return.

    Attributes:
        x: (b, r, s), 0 where a column is not kept.
        residual: The root mean square, over the rows, of ‖rhs − x A‖ ÷ ‖rhs‖.
        steps: Products with the matrices.
    """

    x: Tensor
    residual: float
    steps: int


def masked_conjugate_gradients(
    matrices: Tensor,
    keep: Tensor,
    rhs: Tensor,
    precondition: Callable[[Tensor], Tensor],
    tolerance: float,
    max_steps: int,
) -> MaskedSolution:
    """Solve A_KK x_K = rhs_K for many rows, each with columns K of its own.

    A step is one product of all rows with the whole matrix, masked: 2 r s² FLOPs, whatever is kept.
    Every row has a step size of its own.

    Args:
        matrices: A (b, s, s), symmetric positive definite.
        keep: (b, r, s), 1 for the columns that a row keeps, else 0, in the dtype of A.
        rhs: (b, r, s); entries of columns that are not kept are not read.
        precondition: An approximate inverse, (b, r, s) -> (b, r, s); what it gives for columns that
            are not kept is not read.
        tolerance: Root mean square of the rows' relative residuals at which it ends.
        max_steps: Products at most.

    Returns:
        The solution and how far it came.

    Example:
        >>> import torch
        >>> matrix = torch.tensor([[[2.0, 1.0], [1.0, 2.0]]])
        >>> keep = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
        >>> rhs = torch.tensor([[[3.0, 3.0], [4.0, 9.0]]])
        >>> masked_conjugate_gradients(matrix, keep, rhs, lambda v: v, 1e-6, 9).x
        tensor([[[1., 1.],
                 [2., 0.]]])
    """
    residual = rhs * keep
    size = _square_sums(residual)
    x = torch.zeros_like(residual)
    better = precondition(residual).mul_(keep)
    direction = better
    energy = (residual * better).sum(-1, keepdim=True)
    relative = _relative(residual, size)
    steps = 0
    for steps in range(1, max_steps + 1):
        if not relative > tolerance:
            return MaskedSolution(x, relative, steps - 1)
        product = (direction @ matrices).mul_(keep)
        # A row that is done has no energy: its step is 0, not 0/0.
        step = _quotient(energy, (direction * product).sum(-1, keepdim=True))
        x.addcmul_(step, direction)
        residual.addcmul_(step, product, value=-1)
        relative = _relative(residual, size)
        better = precondition(residual).mul_(keep)
        last, energy = energy, (residual * better).sum(-1, keepdim=True)
        direction = torch.addcmul(better, _quotient(energy, last), direction)
    return MaskedSolution(x, relative, steps)


def _square_sums(rows: Tensor) -> Tensor:
    return rows.square().sum(-1, keepdim=True)


def _quotient(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / below, 0)


def _relative(residual: Tensor, size: Tensor) -> float:
    shares = _quotient(_square_sums(residual), size)
    counted = (size > 0).sum().clamp_min(1)
    return float((shares.sum() / counted).sqrt())
