"""Factors of small matrices in float64 that never end in NaN."""

from __future__ import annotations

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.limits import Limits

INDEFINITE = 1e-2
"""A negative eigenvalue beyond this share of the largest is no rounding."""




def damped_cholesky(curvature: Tensor, damping: float) -> Tensor:
    """Lower triangular L (…, k, k) with L Lᵀ = curvature + damping·I, in float64  (eq. 5).

    curvature is symmetric and, but for rounding, positive semidefinite. Where rounding has made the sum indefinite, its
    eigenvalues are raised to `damping`, below which none of them can lie.
    """
    damped = curvature.double().clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(damping)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if bool(failed.any()):
        broken = failed > 0
        values, vectors = torch.linalg.eigh(damped[broken] if damped.ndim > 2 else damped)
        if bool((values[..., 0] < -INDEFINITE * values[..., -1].abs()).any()):
            raise WoodburyError(
                f"The curvature has the eigenvalue {float(values[..., 0].min()):.3g}: a Fisher is positive semidefinite."
            )
        root = values.clamp(min=damping).sqrt()[..., :, None] * vectors.mT
        repaired = torch.linalg.qr(root).R.mT
        repaired = repaired * repaired.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
        if damped.ndim > 2:
            factor[broken] = repaired
        else:
            factor = repaired
    return factor


def inverse_diagonal(factor: Tensor) -> Tensor:
    """diag((L Lᵀ)⁻¹), (k,) for L (k, k): the column sums of L⁻¹ squared, k³/3 multiplications and no second (k, k)."""
    k = len(factor)
    diagonal = factor.new_empty(k)
    for start in range(0, k, Limits.current().inverse_columns):
        lower = factor[start:, start:]  # L⁻¹ is lower triangular too
        eye = torch.eye(
            len(lower), min(Limits.current().inverse_columns, len(lower)), dtype=factor.dtype, device=factor.device
        )
        inverse = torch.linalg.solve_triangular(lower, eye, upper=False)
        diagonal[start : start + Limits.current().inverse_columns] = inverse.square_().sum(0)
    return diagonal
