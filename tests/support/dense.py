"""The float64 truth: every operation of a Fisher by its definition, on the matrix written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def low_rank(rows: Tensor, damping: float, weights: Tensor | None = None) -> Tensor:
    """damping·I + (1/m) Σ wᵢ gᵢ gᵢᵀ, added up one gradient at a time."""
    m, d = rows.shape
    matrix = damping * torch.eye(d, dtype=torch.float64)
    for i in range(m):
        row = rows[i].double()
        weight = 1.0 if weights is None else float(weights[i])
        matrix += weight / m * torch.outer(row, row)
    return matrix


def blocks_only(matrix: Tensor, sizes: Sequence[int]) -> Tensor:
    """`matrix` with zeros outside its diagonal blocks."""
    result = torch.zeros_like(matrix)
    start = 0
    for size in sizes:
        end = start + size
        result[start:end, start:end] = matrix[start:end, start:end]
        start = end
    return result


def inverse_blocks(matrix: Tensor, groups: Tensor) -> Tensor:
    """[F⁻¹]_QQ, (g, s, s)."""
    inverse = torch.linalg.inv(matrix)
    return torch.stack([inverse[q[:, None], q] for q in groups])


def compensate(
    matrix: Tensor, keep: Tensor, removed: Tensor, gradient: Tensor | None = None
) -> Tensor:
    """F_KK⁻¹ (F_KQ w_Q − g_K), the step of the kept weights."""
    force = matrix[keep][:, ~keep] @ removed[~keep]
    if gradient is not None:
        force = force - gradient[keep]
    return torch.linalg.solve(matrix[keep][:, keep], force)


def conditional_curvature(matrix: Tensor, keep: Tensor) -> Tensor:
    """The Schur complement of each weight against the other kept ones, one at a time."""
    result = torch.empty(len(matrix), dtype=torch.float64)
    for q in range(len(matrix)):
        others = keep.clone()
        others[q] = False
        coupled = matrix[others][:, q]
        explained = coupled @ torch.linalg.solve(matrix[others][:, others], coupled)
        result[q] = matrix[q, q] - explained
    return result
