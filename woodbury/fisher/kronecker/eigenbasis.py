"""Eigenbasis: the eigenvectors of a Kronecker product, and every matrix that has them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.checks import RESOLVED_SHARE, check_damping_or_zero, check_resolved
from woodbury.limits import Limits


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """The eigenvectors U_l ⊗ U_r of left ⊗ right, in float64  (eq. 23).

    A matrix that has these eigenvectors, such as F or F⁻¹, is given by its eigenvalues: the
    `spectrum` (o, i) of the methods. Index r·i + c of the d = o·i weights is entry (r, c).

    Attributes:
        left: U_l (o, o), the eigenvectors of the left factor.
        right: U_r (i, i), the eigenvectors of the right factor.
        values: (o, i), the eigenvalues of left ⊗ right.

    Example:
        >>> import torch
        >>> eye = torch.eye(2, dtype=torch.float64)
        >>> basis = Eigenbasis(eye, eye, values=torch.ones(2, 2).double())
        >>> basis.apply(torch.ones(4, 1).double(), spectrum=basis.values + 1).flatten()
        tensor([2., 2., 2., 2.], dtype=torch.float64)
    """

    left: Tensor
    right: Tensor
    values: Tensor

    @property
    def d(self) -> int:
        """The number of weights, o·i."""
        return self.values.numel()

    def check_damping(self, damping: float) -> None:
        """Raise unless left ⊗ right + damping·I is positive definite beyond rounding.

        Args:
            damping: λ, positive; or 0 for definite factors.

        Raises:
            WoodburyError: If it is neither, or 0 where a factor is singular.
        """
        if check_damping_or_zero(damping):
            return
        smallest, largest = (float(bound) for bound in self.values.aminmax())
        if smallest <= self.d * torch.finfo(torch.float64).eps * largest:
            raise WoodburyError(
                "damping is 0 and a Kronecker factor is singular: give a positive damping."
            )

    def inverse_spectrum(self, damping: float) -> Tensor:
        """The eigenvalues of (left ⊗ right + damping·I)⁻¹.

        Args:
            damping: λ.

        Returns:
            (o, i) float64, positive.

        Raises:
            WoodburyError: If rounding decides the smallest of them.
        """
        smallest, largest = (float(bound) for bound in self.values.aminmax())
        if smallest < RESOLVED_SHARE * largest:
            check_resolved(damping, largest)
        return 1 / (self.values + damping)

    def apply(self, v: Tensor, spectrum: Tensor) -> Tensor:
        """The matrix times v: U_l (U_lᵀ V U_r ∘ spectrum) U_rᵀ for each column V as (o, i).

        Args:
            v: (d, k) float64.
            spectrum: (o, i), the eigenvalues of the matrix.

        Returns:
            (d, k), at O(d (o + i)) for each column.
        """
        inner = self.left.T @ v.T.reshape(-1, *spectrum.shape) @ self.right
        return (self.left @ (inner * spectrum) @ self.right.T).flatten(1).T

    def diagonal(self, spectrum: Tensor) -> Tensor:
        """The diagonal of the matrix: vec(U_l² · spectrum · (U_r²)ᵀ).

        Args:
            spectrum: (o, i), the eigenvalues of the matrix.

        Returns:
            (d,); for positive eigenvalues sums of positive numbers, so that nothing cancels.
        """
        return (self.left.square() @ spectrum @ self.right.square().T).flatten()

    def columns(self, index: Tensor, spectrum: Tensor) -> Tensor:
        """Some columns of the matrix.

        Args:
            index: (c,) int64.
            spectrum: (o, i), the eigenvalues of the matrix.

        Returns:
            (c, d): the columns as rows.
        """
        left = self.left[index // len(self.right)]
        right = self.right[index % len(self.right)]
        # U_lᵀ E U_r ∘ spectrum for each unit matrix E, without a name: a temporary of c × d that is
        # kept until the end costs a fifth more time.
        return (
            self.left @ (left[:, :, None] * right[:, None, :] * spectrum) @ self.right.T
        ).flatten(1)

    def blocks(self, groups: Tensor, spectrum: Tensor) -> Tensor:
        """The blocks of the matrix on groups of weights.

        Args:
            groups: (g, s) int64.
            spectrum: (o, i), the eigenvalues of the matrix.

        Returns:
            (g, s, s): O(d + s² i) for a group inside one row of the (o, i) tensor, O(d + s² o) in
            one column, O(s d (o + i)) for any other.
        """
        blocks = spectrum.new_empty(*groups.shape, groups.shape[1])
        rows = groups // len(self.right)
        columns = groups % len(self.right)
        in_row = (rows == rows[:, :1]).all(1)
        in_column = (columns == columns[:, :1]).all(1) & ~in_row
        blocks[in_row] = _blocks_within_rows(
            self.left, self.right, spectrum, rows[in_row], columns[in_row]
        )
        # A column is a row of the transposed tensor.
        blocks[in_column] = _blocks_within_rows(
            self.right, self.left, spectrum.T, columns[in_column], rows[in_column]
        )
        size = groups.shape[1]
        at_once = max(1, Limits.current().temporary // (self.d * max(1, size)))
        for chunk in (~in_row & ~in_column).nonzero()[:, 0].split(at_once):
            index = groups[chunk]
            whole_columns = self.columns(index.flatten(), spectrum).view(*index.shape, self.d)
            blocks[chunk] = whole_columns.gather(2, index[:, None, :].expand(-1, size, -1))
        return blocks


def _blocks_within_rows(
    row_vectors: Tensor, column_vectors: Tensor, spectrum: Tensor, row: Tensor, columns: Tensor
) -> Tensor:
    """Blocks of groups inside one row: row (g, s), all equal; columns (g, s) -> (g, s, s)."""
    size = columns.shape[1]
    at_once = max(1, Limits.current().temporary // (max(1, size) * max(spectrum.shape)))
    blocks = spectrum.new_empty(*columns.shape, size)
    for start in range(0, columns.numel() and len(columns), at_once):
        part = slice(start, start + at_once)
        # Inside row r the matrix is U_r diag(Σ_j U_l[r, j]² · spectrum[j]) U_rᵀ, i × i.
        middle = row_vectors[row[part, 0]].square() @ spectrum
        vectors = column_vectors[columns[part]]
        blocks[part] = vectors * middle[:, None] @ vectors.mT
    return blocks
