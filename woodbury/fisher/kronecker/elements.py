"""Where the inverse elements of a restricted Kronecker product come from: exact, or bounded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from woodbury.fisher.kronecker.submatrix import Submatrix
from woodbury.limits import Limits
from woodbury.linalg.cholesky import inverse_diagonal

Elements = Callable[[Submatrix, "Tensor | None"], Tensor]
"""(F_KK, groups (g, s) or None for the diagonal) -> float64 elements, (g, s, s) or (|K|,)."""


def exact(part: Submatrix, groups: Tensor | None) -> Tensor:
    """[F_KK⁻¹]_QQ by a dense factor of n = min(|K|, |R|) rows: O(n³) once.

    Where most weights are kept, F_KK⁻¹ = [F⁻¹]_KK − [F⁻¹]_KR ([F⁻¹]_RR)⁻¹ [F⁻¹]_RK  (eq. 26), at
    O(n² + d (o + i)) for each weight.

    Args:
        part: F_KK.
        groups: (g, s) int64, indices among the kept weights; None for the diagonal.

    Returns:
        (g, s, s) float64, or (|K|,) for the diagonal.

    Raises:
        WoodburyError: If n exceeds `Limits.dense_factor`.

    Example:
        >>> import torch
        >>> import woodbury
        >>> factor = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> fisher = woodbury.fisher.Kronecker(factor, torch.eye(1), damping=1.0)
        >>> fisher.restrict(torch.tensor([True, False])).inverse_diagonal()
        tensor([0.3333])
    """
    factor = part.factor
    if part.few_kept and groups is None:
        return inverse_diagonal(factor)
    index = part.kept[:, None] if groups is None else part.kept[groups]
    basis = part.basis
    inverse = part.inverse_spectrum
    if part.few_kept:
        blocks = inverse.new_zeros(*index.shape, index.shape[1])
    else:
        blocks = basis.blocks(index, inverse)
    at_once = max(1, Limits.current().temporary // (basis.d * max(1, index.shape[1])))
    for start in range(0, len(index), at_once):
        chunk = index[start : start + at_once]
        # Few kept: columns of the identity, so that half halfᵀ = [(L Lᵀ)⁻¹]_QQ. Most kept: columns
        # of [F⁻¹]_RQ, so that half halfᵀ is what (eq. 26) subtracts.
        if part.few_kept:
            columns = (part.kept[:, None] == chunk.flatten()).double()
        else:
            columns = basis.columns(chunk.flatten(), inverse)[:, part.removed].T
        half = torch.linalg.solve_triangular(factor, columns, upper=False).T
        half = half.view(*chunk.shape, len(factor))
        blocks[start : start + at_once] += half @ half.mT if part.few_kept else -half @ half.mT
    return blocks.flatten() if groups is None else blocks


def upper_bound(part: Submatrix, groups: Tensor | None) -> Tensor:
    """[F⁻¹]_QQ of the whole product, which [F_KK⁻¹]_QQ cannot exceed  (eq. 34).

    No dense factor, O(d (o + i)) in all. It takes the removed weights to be free, so that
    saliencies are too low, by a factor of at most F_qq [F⁻¹]_qq: the more damping, the closer.
    Solves stay exact.

    Args:
        part: F_KK.
        groups: (g, s) int64, indices among the kept weights; None for the diagonal.

    Returns:
        (g, s, s) float64, or (|K|,) for the diagonal.

    Example:
        >>> import torch
        >>> import woodbury
        >>> factor = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> bound = woodbury.fisher.upper_bound
        >>> fisher = woodbury.fisher.Kronecker(factor, torch.eye(1), damping=1.0, elements=bound)
        >>> fisher.restrict(torch.tensor([True, False])).inverse_diagonal()
        tensor([0.3750])
    """
    inverse = part.inverse_spectrum
    if groups is None:
        return part.basis.diagonal(inverse)[part.kept]
    return part.basis.blocks(part.kept[groups], inverse)
