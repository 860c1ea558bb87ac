"""Inverse elements of many submatrices of one matrix, by an effective medium."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from woodbury.linalg.cholesky import definite_inverse

MOST_ITERATIONS = 2
"""Of the medium's fixed point; each inverts the matrix once, and a third changed little."""

TOLERANCE = 0.03
"""Relative change of the medium at which its iteration ends."""

PSEUDO_ROWS = 4.0
"""Rows of the average share that are added to the counts of each column."""


@dataclass(frozen=True, eq=False)
class EffectiveMedium:
    """What stands for the random restrictions of a matrix in all of its rows  (eq. 70).

    A column that is kept in a share p of the rows is replaced by one that is always kept, and held
    by a spring μ: (A + diag μ)⁻¹ is what (A_KK)⁻¹, zeros elsewhere, is on average over the rows.
    μ is such that one column, kept or removed, does not change the medium on average: the
    coherent-potential approximation of Soven (Physical Review 156, 1967).

    Attributes:
        matrices: A (b, s, s), positive definite.
        inverse: (A + diag μ)⁻¹, (b, s, s).
        springs: μ (b, s), 0 where a column is kept in every row.
        upper: diag(A⁻¹), (b, s): what an inverse element is at most.

    Example:
        >>> eye = 2 * torch.eye(3)[None]
        >>> medium = EffectiveMedium.of(eye, torch.ones(1, 4, 3, dtype=torch.bool))
        >>> medium.inverse_diagonals(torch.ones(1, 4, 3, dtype=torch.bool))[0, 0]
        tensor([0.5000, 0.5000, 0.5000])
    """

    matrices: Tensor
    inverse: Tensor
    springs: Tensor
    upper: Tensor

    @classmethod
    def of(cls, matrices: Tensor, keep: Tensor, upper: Tensor | None = None) -> EffectiveMedium:
        """The medium of the rows' masks.

        Args:
            matrices: A (b, s, s), positive definite.
            keep: (b, r, s) bool, the columns that each of r rows keeps.
            upper: diag(A⁻¹), (b, s), where it is known.

        Returns:
            The medium.
        """
        lower = 1 / matrices.diagonal(dim1=1, dim2=2)
        if upper is None:
            upper = definite_inverse(matrices).diagonal(dim1=1, dim2=2).clone()
        upper = torch.maximum(upper, lower)
        share = _shares(keep, matrices.dtype)
        # A kept column's own inverse element lies between both; more towards `upper`, if few of
        # the others are removed.
        free = lower * (upper / lower) ** share
        springs = inverse = None
        for _ in range(MOST_ITERATIONS):
            springs = (1 - share) / (share * free)
            inverse = definite_inverse(matrices + torch.diag_embed(springs))
            response = inverse.diagonal(dim1=1, dim2=2)
            last, free = free, _between(1 / response - springs, lower, upper)
            change = (free / last).log().abs().max()
            if float(change) < TOLERANCE:
                break
        assert springs is not None and inverse is not None
        return cls(matrices, inverse, springs, upper)

    def inverse_diagonals(self, keep: Tensor) -> Tensor:
        """diag((A_KK)⁻¹) of every row, to first order in how its mask differs from the medium.

        Exact where A is diagonal, and where nothing is removed.

        Args:
            keep: (b, r, s) bool.

        Returns:
            (b, r, s), 0 where a weight is removed.
        """
        response = self.inverse.diagonal(dim1=1, dim2=2)
        # What one column scatters: kept it takes its spring away, removed it is held at 0.
        smallest = torch.finfo(response.dtype).eps
        kept = -self.springs / (1 - self.springs * response).clamp_min(smallest)
        scattered = torch.where(keep, kept[:, None], (1 / response)[:, None])
        coupling = self.inverse.square()
        coupling.diagonal(dim1=1, dim2=2).zero_()
        local = torch.baddbmm(response[:, None], scattered, coupling, alpha=-1)
        lower = 1 / self.matrices.diagonal(dim1=1, dim2=2)
        local = torch.maximum(local, (1 / (1 / lower + self.springs))[:, None])
        free = _between(1 / local - self.springs[:, None], lower[:, None], self.upper[:, None])
        return free * keep


def _shares(keep: Tensor, dtype: torch.dtype) -> Tensor:
    """The share of the rows that keep each column, (b, s) in (0, 1]."""
    count = keep.sum(1).to(dtype)
    rows = keep.shape[1]
    if bool((count == rows).all()):
        return torch.ones_like(count)
    mean = count.mean(1, keepdim=True) / rows
    share = (count + PSEUDO_ROWS * mean) / (rows + PSEUDO_ROWS)
    return share.clamp_min(1 / (2 * rows))


def _between(precision: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """1/precision within the two bounds of an inverse element  (eq. 34)."""
    return 1 / torch.minimum(torch.maximum(precision, 1 / upper), 1 / lower)
