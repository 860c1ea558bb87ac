"""Submatrix: the rows and columns of the kept weights in a damped Kronecker product."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.checks import check_keep
from woodbury.fisher.kronecker.eigenbasis import Eigenbasis
from woodbury.limits import Limits
from woodbury.linalg.cholesky import damped_cholesky


@dataclass(frozen=True, eq=False)
class Submatrix:
    """F_KK in float64, K the kept and R the removed weights of F = left ⊗ right + damping·I.

    Of the two index sets the smaller decides the dense algebra: n = min(|K|, |R|) rows.

    Attributes:
        basis: The eigenvectors of left ⊗ right and its eigenvalues.
        damping: λ, positive, or 0 for definite factors.
        keep: (d,) bool over the weights of the product, True = kept.

    Raises:
        WoodburyError: If nothing is kept, or the damping does not fit.

    Example:
        >>> import torch
        >>> eye = torch.eye(2, dtype=torch.float64)
        >>> basis = Eigenbasis(eye, eye, values=torch.ones(2, 2).double())
        >>> part = Submatrix(basis, 1.0, torch.tensor([True, False, False, True]))
        >>> part.kept, part.removed
        (tensor([0, 3]), tensor([1, 2]))
        >>> part.solve_directly(torch.ones(2, 1).double()).flatten()
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    basis: Eigenbasis
    damping: float
    keep: Tensor

    def __post_init__(self) -> None:
        check_keep(self.keep, self.basis.d)
        self.basis.check_damping(self.damping)

    @property
    def spectrum(self) -> Tensor:
        """The eigenvalues of F, (o, i) float64."""
        return self.basis.values + self.damping

    @property
    def inverse_spectrum(self) -> Tensor:
        """The eigenvalues of F⁻¹, (o, i) float64."""
        return self.basis.inverse_spectrum(self.damping)

    @cached_property
    def kept(self) -> Tensor:
        """(|K|,) int64: the indices of the kept weights."""
        return self.keep.nonzero()[:, 0]

    @cached_property
    def removed(self) -> Tensor:
        """(|R|,) int64: the indices of the removed weights."""
        return (~self.keep).nonzero()[:, 0]

    @property
    def few_kept(self) -> bool:
        """Whether the dense factor is that of the kept weights."""
        return len(self.kept) <= len(self.removed)

    @property
    def n(self) -> int:
        """Rows of the dense factor: min(|K|, |R|)."""
        return min(len(self.kept), len(self.removed))

    @property
    def is_factored(self) -> bool:
        """Whether the dense factor has been computed already."""
        return "factor" in vars(self)

    @cached_property
    def factor(self) -> Tensor:
        """Lower triangular L (n, n): L Lᵀ is F_KK where few are kept, else [F⁻¹]_RR.

        Raises:
            WoodburyError: If n exceeds `Limits.dense_factor`.
        """
        index = self.kept if self.few_kept else self.removed
        most = Limits.current().dense_factor
        if len(index) > most:
            raise WoodburyError(
                f"{len(self.kept)} of the {self.basis.d} weights of a Kronecker Fisher are kept: "
                f"its inverse elements and logdet need a dense factor of {len(index)} rows, "
                f"more than {most}: take elements=upper_bound, or another structure for tensors "
                "of this size."
            )
        spectrum = self.spectrum if self.few_kept else self.inverse_spectrum
        least = float(spectrum.min())  # no eigenvalue of a submatrix lies below those of the whole
        matrix = spectrum.new_empty(len(index), len(index))
        at_once = max(1, Limits.current().temporary // self.basis.d)
        for start in range(0, len(index), at_once):
            part = slice(start, start + at_once)
            matrix[part] = self.basis.columns(index[part], spectrum - least)[:, index]
        return damped_cholesky(matrix, least)

    def product(self, v: Tensor, spectrum: Tensor) -> Tensor:
        """[M]_KK v of the matrix M with these eigenvalues.

        Args:
            v: (|K|, k) float64.
            spectrum: (o, i), the eigenvalues of M.

        Returns:
            (|K|, k).
        """
        return self.basis.apply(self._expand(v, self.kept), spectrum)[self.kept]

    def solve_directly(self, v: Tensor) -> Tensor:
        """F_KK⁻¹ v by the dense factor  (eq. 26).

        Args:
            v: (|K|, k) float64.

        Returns:
            (|K|, k).
        """
        if self.few_kept:
            return torch.cholesky_solve(v, self.factor)
        # 1. Solve with all weights free. 2. Find the force that holds the removed ones at 0.
        # 3. Subtract what this force does to the kept ones.
        inverse = self.inverse_spectrum
        free = self.basis.apply(self._expand(v, self.kept), inverse)
        force = torch.cholesky_solve(free[self.removed], self.factor)
        effect = self.basis.apply(self._expand(force, self.removed), inverse)
        return (free - effect)[self.kept]

    def logdet(self) -> float:
        """The log det of F_KK; where most are kept, log det F + log det [F⁻¹]_RR.

        Returns:
            The natural logarithm of the determinant.
        """
        of_factor = 2 * float(self.factor.diagonal().log().sum())
        if self.few_kept:
            return of_factor
        return float(self.spectrum.log().sum()) + of_factor

    def _expand(self, v: Tensor, index: Tensor) -> Tensor:
        """(n, k) -> (d, k), zeros elsewhere."""
        return v.new_zeros(self.basis.d, v.shape[1]).index_copy_(0, index, v)
