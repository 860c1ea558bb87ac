"""The float64 truth: every verb of a Fisher by its definition, on the matrix written out."""

from __future__ import annotations

import torch
from torch import Tensor


def low_rank(rows: Tensor, damping: float, weights: Tensor | None = None) -> Tensor:
    """damping·I + (1/m) Σ wᵢ gᵢ gᵢᵀ, added up one gradient at a time."""
    m, d = rows.shape
    matrix = damping * torch.eye(d, dtype=torch.float64)
    for i in range(m):
        row = rows[i].double()
        matrix += (1.0 if weights is None else float(weights[i])) / m * torch.outer(row, row)
    return matrix


def blocks_only(matrix: Tensor, sizes: list[int] | tuple[int, ...]) -> Tensor:
    """`matrix` with zeros outside its diagonal blocks."""
    out, start = torch.zeros_like(matrix), 0
    for size in sizes:
        end = start + size
        out[start:end, start:end] = matrix[start:end, start:end]
        start = end
    return out


def inverse_blocks(matrix: Tensor, groups: Tensor) -> Tensor:
    inverse = torch.linalg.inv(matrix)
    return torch.stack([inverse[q[:, None], q] for q in groups])


def compensate(
    matrix: Tensor, keep: Tensor, removed: Tensor, gradient: Tensor | None = None
) -> Tensor:
    force = matrix[keep][:, ~keep] @ removed[~keep]
    if gradient is not None:
        force = force - gradient[keep]
    return torch.linalg.solve(matrix[keep][:, keep], force)


def conditional(matrix: Tensor, keep: Tensor) -> Tensor:
    """The Schur complement of each weight against the others that stay, one at a time."""
    found = torch.empty(len(matrix), dtype=torch.float64)
    for q in range(len(matrix)):
        others = keep.clone()
        others[q] = False
        coupled = matrix[others][:, q]
        found[q] = matrix[q, q] - coupled @ torch.linalg.solve(matrix[others][:, others], coupled)
    return found
