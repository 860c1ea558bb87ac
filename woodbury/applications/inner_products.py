"""InnerProducts: what a damped inverse does between rows, from their Gram matrix alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.linalg.cholesky import damped_cholesky
from woodbury.linalg.gram import gram_of
from woodbury.linalg.paged_rows import Rows
from woodbury.linalg.precision import dtype_name

LEAST_FLOAT32_SHARE = 1e-4
"""Of the largest eigenvalue: with a smaller damping products are taken in float64."""


class Eigen(NamedTuple):
    """The eigenvalues (m,) and eigenvectors (m, m) of J Jᵀ, float64."""

    values: Tensor
    vectors: Tensor


class Basis(NamedTuple):
    """V and w with V diag(w) Vᵀ = (J Jᵀ + m·damping·I)⁻¹; what is kept of it is under its name."""

    vectors: Tensor
    weights: Tensor
    name: str


@dataclass(frozen=True, eq=False)
class InnerProducts:
    """Products X F⁻¹ Yᵀ of some rows, F = (1/m) JᵀJ + damping·I of others among them  (eq. 81).

    Attributes:
        matrix: (N, N) float64, the inner products of all rows.
        curvature: Which of them are J.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> products = InnerProducts.of(rows, slice(0, 1), torch.float32)
        >>> products.solved(slice(0, 2), slice(0, 2), damping=1.0)  # F = diag(2, 1)
        tensor([[0.5000, 0.0000],
                [0.0000, 4.0000]], dtype=torch.float64)
    """

    matrix: Tensor
    curvature: slice
    _known: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, rows: Rows, curvature: slice, dtype: torch.dtype) -> InnerProducts:
        """The products of rows, in one read of them.

        Args:
            rows: (N, d), any float dtype, finite.
            curvature: Which of them are J.
            dtype: What the products are taken in; their sums are float64.

        Returns:
            The products.

        Raises:
            WoodburyError: If they overflow.
        """
        return cls.checked(gram_of(rows, dtype), curvature, dtype)

    @classmethod
    def checked(cls, matrix: Tensor, curvature: slice, dtype: torch.dtype) -> InnerProducts:
        """Products that are known already.

        Args:
            matrix: (N, N) float64.
            curvature: Which of the rows are J.
            dtype: What they were taken in.

        Raises:
            WoodburyError: If they overflow.
        """
        if not bool(torch.isfinite(matrix).all()):
            raise WoodburyError(
                f"The squares of the gradients overflow {dtype_name(dtype)}: scale the loss down."
            )
        return cls(matrix, curvature)

    def needs_float64(self, damping: float) -> bool:
        """Whether products in float32 lose more than a thousandth beside a damping."""
        return self.m * damping < LEAST_FLOAT32_SHARE * float(self.eigen.values[-1])

    @property
    def m(self) -> int:
        """The number of rows of J."""
        return self.curvature.stop - self.curvature.start

    @cached_property
    def eigen(self) -> Eigen:
        """Of J Jᵀ; all dampings share it."""
        values, vectors = torch.linalg.eigh(self.matrix[self.curvature, self.curvature])
        return Eigen(values.clamp_min(0), vectors)

    def solved(self, left: slice, right: slice, damping: float) -> Tensor:
        """X F⁻¹ Yᵀ; where Y is J, in the range form, in which nothing cancels.

        Args:
            left: The rows X.
            right: The rows Y.
            damping: λ > 0.

        Returns:
            (x, y) float64.
        """
        basis = self._basis(damping)
        scaled = self._projected(left, basis) * basis.weights
        if right == self.curvature:
            return self.m * scaled @ basis.vectors.mT
        return (self.matrix[left, right] - scaled @ self._projected(right, basis).mT) / damping

    def solved_diagonal(self, rows: slice, damping: float) -> Tensor:
        """The diagonal of X F⁻¹ Xᵀ: (x,)."""
        basis = self._basis(damping)
        if rows == self.curvature and "eigen" in vars(self):
            return self.m * (basis.vectors.square() @ (self.eigen.values * basis.weights))
        if rows == self.curvature:
            free = self.m * damping * basis.vectors.square().sum(1)
            return self.m * (1 - free).clamp_min(0)
        explained = self._projected(rows, basis).square() @ basis.weights
        return (self.matrix.diagonal()[rows] - explained) / damping

    def solved_with_own(self, rows: slice, damping: float, k: int) -> Tensor:
        """X_j F⁻¹ J_jᵀ of each sample j, which has k rows of J and as many of X as all have.

        Args:
            rows: The rows X, those of a sample one after the other.
            damping: λ > 0.
            k: Rows of J for each sample.

        Returns:
            (n, x, k) float64.
        """
        if k == 1 and rows == self.curvature:
            return self.solved_diagonal(rows, damping).view(-1, 1, 1)
        n = self.m // k
        basis = self._basis(damping)
        scaled = self._projected(rows, basis) * basis.weights
        own = basis.vectors.view(n, k, self.m)
        return self.m * scaled.view(n, -1, self.m) @ own.mT

    def _basis(self, damping: float) -> Basis:
        """Of the eigenvectors where they are known, else of a Cholesky factor, which is faster."""
        if "eigen" in vars(self):
            values, vectors = self.eigen
            return Basis(vectors, 1 / (values + self.m * damping), "eigen")
        known = self._known
        if (key := f"factor {damping}") not in known:
            factor = damped_cholesky(self.matrix[self.curvature, self.curvature], self.m * damping)
            eye = torch.eye(self.m, dtype=factor.dtype, device=factor.device)
            known[key] = torch.linalg.solve_triangular(factor, eye, upper=False).mT
        return Basis(known[key], torch.ones_like(known[key][0]), key)

    def _projected(self, rows: slice, basis: Basis) -> Tensor:
        """(x, m): the products of rows with J's, along the basis."""
        key = f"{basis.name}, rows {rows.start} to {rows.stop}"
        if key not in self._known:
            self._known[key] = self.matrix[rows, self.curvature] @ basis.vectors
        return self._known[key]
