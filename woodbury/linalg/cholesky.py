"""Cholesky factors of small matrices in float64 that never contain NaN."""

from __future__ import annotations

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.limits import Limits

MAX_NEGATIVE_SHARE = 1e-2
"""A negative eigenvalue beyond this share of the largest is no rounding error."""


def damped_cholesky(curvature: Tensor, damping: float) -> Tensor:
    """The Cholesky factor of curvature + damping·I in float64  (eq. 5).

    Where rounding has made the sum indefinite, its eigenvalues are raised to `damping`, below
    which none of them can lie.

    Args:
        curvature: (…, k, k), symmetric and, but for rounding, positive semidefinite.
        damping: Positive; added to the diagonal.

    Returns:
        Lower triangular L (…, k, k) float64, its diagonal positive, L Lᵀ = curvature + damping·I.

    Raises:
        WoodburyError: If the curvature has a negative eigenvalue that rounding cannot explain.

    Example:
        >>> import torch
        >>> damped_cholesky(torch.eye(2), 3.0)
        tensor([[2., 0.],
                [0., 2.]], dtype=torch.float64)
    """
    damped = curvature.double().clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(damping)
    factor, info = torch.linalg.cholesky_ex(damped)
    if not bool(info.any()):
        return factor
    if damped.ndim == 2:
        return _clamped_factor(damped, damping)
    failed = info != 0
    factor[failed] = _clamped_factor(damped[failed], damping)
    return factor


def _clamped_factor(damped: Tensor, damping: float) -> Tensor:
    """The factor of an indefinite matrix whose eigenvalues are raised to the damping."""
    values, vectors = torch.linalg.eigh(damped)
    if bool((values[..., 0] < -MAX_NEGATIVE_SHARE * values[..., -1].abs()).any()):
        raise WoodburyError(
            f"The curvature has the eigenvalue {float(values[..., 0].min()):.3g}: "
            "a Fisher is positive semidefinite."
        )
    # With root = Λ^½ Vᵀ the matrix is rootᵀ root, so that the R of its QR factors it too.
    root = values.clamp(min=damping).sqrt()[..., :, None] * vectors.mT
    factor = torch.linalg.qr(root).R.mT
    # QR leaves the signs of the columns open; a Cholesky factor has a positive diagonal.
    return factor * factor.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]


def definite_cholesky(matrices: Tensor) -> Tensor:
    """Cholesky factors in the matrices' own dtype; those that rounding made indefinite in float64.

    Args:
        matrices: (…, k, k), symmetric and, but for rounding, positive definite.

    Returns:
        Lower triangular (…, k, k), in the dtype of the matrices.

    Example:
        >>> import torch
        >>> definite_cholesky(4 * torch.eye(1))
        tensor([[2.]])
    """
    factors, failed = torch.linalg.cholesky_ex(matrices)
    broken = failed > 0
    if bool(broken.any()):
        floor = _smallest_pivot(matrices[broken])
        factors[broken] = damped_cholesky(matrices[broken], floor).to(factors.dtype)
    return factors


def definite_inverse(matrices: Tensor) -> Tensor:
    """The inverses of positive definite matrices, by their Cholesky factors.

    In panels of `Limits.inverse_columns`, by products: `torch.cholesky_inverse` on two threads took
    nine seconds for 2,304 rows where one thread took a third of one.

    Args:
        matrices: (…, k, k), symmetric, positive definite.

    Returns:
        (…, k, k), in the dtype of the matrices.

    Example:
        >>> import torch
        >>> definite_inverse(2 * torch.eye(1))
        tensor([[0.5000]])
    """
    factor = definite_cholesky(matrices)
    k = factor.shape[-1]
    width = Limits.current().inverse_columns
    lower = torch.zeros_like(factor)  # L⁻¹
    for start in range(0, k, width):
        triangle = factor[..., start:, start:]
        eye = torch.eye(
            triangle.shape[-1], min(width, k - start), dtype=factor.dtype, device=factor.device
        )
        panel = torch.linalg.solve_triangular(
            triangle, eye.expand(*triangle.shape[:-1], -1), upper=False
        )
        lower[..., start:, start : start + width] = panel
    result = factor  # no longer needed
    for start in range(0, k, width):
        end = min(start + width, k)
        # Above `start` the panel of L⁻¹ is zero.
        panel = lower[..., start:, start:end].mT @ lower[..., start:, :end]
        result[..., start:end, :end] = panel
        result[..., :start, start:end] = panel[..., :start].mT
    return result


def _smallest_pivot(matrices: Tensor) -> float:
    """What is added to the diagonal where a matrix is singular to rounding."""
    largest = float(matrices.diagonal(dim1=-2, dim2=-1).max())
    return torch.finfo(matrices.dtype).eps * matrices.shape[-1] * largest


def inverse_diagonal(factor: Tensor) -> Tensor:
    """diag((L Lᵀ)⁻¹): the column sums of L⁻¹ squared, by k³/3 multiplications.

    No second matrix of k × k is made: `Limits.inverse_columns` columns of L⁻¹ exist at a time.

    Args:
        factor: Lower triangular L (k, k).

    Returns:
        (k,) in the dtype of the factor.

    Example:
        >>> import torch
        >>> inverse_diagonal(torch.tensor([[2.0, 0.0], [2.0, 1.0]]))
        tensor([1.2500, 1.0000])
    """
    k = len(factor)
    at_once = Limits.current().inverse_columns
    diagonal = factor.new_empty(k)
    for start in range(0, k, at_once):
        lower = factor[start:, start:]  # L⁻¹ is lower triangular too: nothing above the diagonal
        eye = torch.eye(
            len(lower), min(at_once, len(lower)), dtype=factor.dtype, device=factor.device
        )
        inverse = torch.linalg.solve_triangular(lower, eye, upper=False)
        diagonal[start : start + at_once] = inverse.square_().sum(0)
    return diagonal
