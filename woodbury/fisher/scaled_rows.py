"""ScaledRows: the rows S G of a low-rank curvature, products with them, their Gram matrix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.checks import check_resolved
from woodbury.linalg import collectives
from woodbury.linalg.cholesky import damped_cholesky
from woodbury.linalg.gram import gram_and_times, gram_of
from woodbury.linalg.paged_rows import Rows, leading
from woodbury.linalg.precision import wide_dtype
from woodbury.linalg.row_products import combine, times

MIN_NEW_SHARE = 0.01
"""Float64 is needed where less than this share of a row is independent of the rows before it."""


MAX_ROWS_PER_WEIGHT = 0.75
"""Float64 is needed where the rows are more than this share of the weights: they depend on each
other as much as the damping allows."""


MIN_FLOAT32_DAMPING = 1e-28
"""Beside a smaller damping float32 would lose squares that count."""


MIN_PROBED_ROWS = 64
"""A quarter of the rows, if at least this many, is tried in float32 before all are."""


class KnownGram(NamedTuple):
    """What is known of the Gram matrix of scaled rows, whatever the damping.

    Attributes:
        matrix: (m, m) float64, S G Gᵀ S over all ranks.
        exact: Whether its products were taken in float64.
        orthogonal: Whether it is diagonal, as `LowRank.spectral` makes it.
        summed: (m,), the diagonal of the Gram matrix that this one was subtracted from, whose
            rounding it shares; None where it was summed itself.
    """

    matrix: Tensor
    exact: bool
    orthogonal: bool = False
    summed: Tensor | None = None


class Factorization(NamedTuple):
    """A damped Gram matrix and its factor.

    Attributes:
        gram: (m, m) float64, S G Gᵀ S.
        factor: (m, m) float64, lower triangular L with L Lᵀ = gram + damping·I.
        exact: Whether the products of the Gram matrix were taken in float64.
    """

    gram: Tensor
    factor: Tensor
    exact: bool

    def solve(self, c: Tensor) -> Tensor:
        """(L Lᵀ)⁻¹ c.

        Args:
            c: (m,) or (m, k) float64.

        Returns:
            The same shape.
        """
        columns = c if c.ndim == 2 else c[:, None]
        return torch.cholesky_solve(columns, self.factor).view(c.shape)


@dataclass(frozen=True, eq=False)
class ScaledRows:
    """S G with S = diag(√(wᵢ/m)), so that (1/m) Σ wᵢ gᵢ gᵢᵀ = (SG)ᵀ(SG)  (eq. 2).

    The rows stay as they are: S multiplies what is small.

    Attributes:
        rows: G (m, d), any float dtype: in memory, by pages, or some columns of either.
        weights: (m,), positive; None for 1.
        group: The ranks over which the columns are spread; None for one process.

    Example:
        >>> import torch
        >>> scaled = ScaledRows(torch.tensor([[1.0, 2.0], [0.0, 2.0]]))
        >>> scaled.gram(torch.float64)
        tensor([[2.5000, 2.0000],
                [2.0000, 2.0000]], dtype=torch.float64)
    """

    rows: Rows
    weights: Tensor | None = None
    group: Any = None

    @property
    def m(self) -> int:
        """The number of rows."""
        return self.rows.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """That of the rows, float32 for halves."""
        return wide_dtype(self.rows.dtype)

    @cached_property
    def scale(self) -> Tensor:
        """(m,) float64: √(wᵢ/m)."""
        ones = torch.ones(self.m, dtype=torch.float64, device=self.rows.device)
        weights = ones if self.weights is None else self.weights.double().to(self.rows.device)
        return (weights / self.m).sqrt()

    def times(self, v: Tensor) -> Tensor:
        """S G v over all ranks, from products in the dtype of v.

        Args:
            v: (d,) or (d, k), the entries of this rank.

        Returns:
            (m,) or (m, k) float64.
        """
        return _scale_rows(self.scale, collectives.all_sum(times(self.rows, v), self.group))

    def combine(self, c: Tensor, dtype: torch.dtype) -> Tensor:
        """Gᵀ S c, for the columns of this rank.

        Args:
            c: (m,) or (m, k) float64.
            dtype: What the products are taken in.

        Returns:
            (d,) or (d, k) in that dtype.
        """
        return combine(self.rows, _scale_rows(self.scale, c).to(dtype))

    def unscaled(self, c: Tensor) -> Tensor:
        """S⁻¹ c for c (m,) or (m, k)."""
        return _scale_rows(1 / self.scale, c)

    def gram(
        self, dtype: torch.dtype, keep: Tensor | None = None, leading: Tensor | None = None
    ) -> Tensor:
        """S G Gᵀ S over all ranks, summed in float64.

        Args:
            dtype: What the products are taken in.
            keep: (d,) bool, the columns that count; None for all.
            leading: (k, k) float64, what is known of it: that of the first k rows.

        Returns:
            (m, m) float64.
        """
        known = 0 if leading is None else len(leading)
        gram = self._scaled_gram(gram_of(self.rows, dtype, keep, known))
        if leading is not None:
            gram[:known, :known] = leading
        return gram

    def gram_and_times(self, keep: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """S G_K G_Kᵀ S of some columns and S G v of all, in one read of rows on a disk.

        Args:
            keep: (d,) bool, the columns K that count in the Gram matrix.
            v: (d,) or (d, k), in the dtype of the products.

        Returns:
            (m, m) and (m,) or (m, k), float64.
        """
        gram, product = gram_and_times(self.rows, keep, v)
        product = collectives.all_sum(product, self.group)
        return self._scaled_gram(gram), _scale_rows(self.scale, product)

    def _scaled_gram(self, gram: Tensor) -> Tensor:
        """S A S over all ranks, for A (n, n) of the first n rows."""
        scale = self.scale[: len(gram)]
        return scale[:, None] * collectives.all_sum(gram, self.group) * scale

    def factorize(self, damping: float, keep: Tensor | None = None) -> Factorization:
        """The factor of gram + damping·I, with products in float64 where float32 cannot carry it.

        Args:
            damping: λ > 0.
            keep: (d,) bool, the columns that count; None for all.

        Returns:
            The Gram matrix, its factor, and whether float64 was needed.
        """
        exact, quarter = self._probed(damping, keep)
        gram = self.gram(torch.float64, keep) if exact else self.gram(self.dtype, keep, quarter)
        return self.refactor_if_inexact(gram, exact, damping, keep)

    def needs_float64(self, damping: float, keep: Tensor | None = None) -> bool:
        """Whether it is known beforehand that float32 products will not do.

        The share of a row that is new depends on its predecessors only, so that what holds of a
        quarter of the rows holds of all.

        Args:
            damping: λ > 0.
            keep: (d,) bool, the columns that count; None for all.

        Returns:
            True for float64 rows, and for rows of which a quarter tells.
        """
        return self._probed(damping, keep)[0]

    def _probed(self, damping: float, keep: Tensor | None) -> tuple[bool, Tensor | None]:
        """Whether float64 products are needed, and the Gram matrix of the rows that were probed."""
        if self._is_beyond_float32(damping, keep):
            return True, None
        quarter = self.m // 4
        if quarter < MIN_PROBED_ROWS:
            return False, None
        rows = leading(self.rows, quarter)
        if rows is None:  # from a disk a quarter takes as long as all
            return False, None
        gram = self._scaled_gram(gram_of(rows, self.dtype, keep))
        if not bool(torch.isfinite(gram).all()):
            return True, None
        return _least_new_share(damped_cholesky(gram, damping)) < MIN_NEW_SHARE, gram

    def _is_beyond_float32(self, damping: float, keep: Tensor | None) -> bool:
        """Whether the numbers of rows and weights, or the damping, ask for float64 products."""
        if self.dtype == torch.float64 or damping < MIN_FLOAT32_DAMPING:
            return True
        kept = self.rows.shape[1] if keep is None else int(keep.sum())
        if self.group is not None:
            kept = int(collectives.all_sum(torch.tensor(kept, device=self.rows.device), self.group))
        return self.m > MAX_ROWS_PER_WEIGHT * kept

    def refactor_if_inexact(
        self, gram: Tensor, exact: bool, damping: float, keep: Tensor | None = None
    ) -> Factorization:
        """The factor of a known Gram matrix, computed again in float64 if its digits do not do.

        Args:
            gram: (m, m) float64, S G Gᵀ S.
            exact: Whether its products were taken in float64.
            damping: λ > 0.
            keep: (d,) bool, the columns whose Gram matrix it is; None for all.

        Returns:
            The Gram matrix, the old or the new one, its factor, and whether it is exact.

        Raises:
            WoodburyError: If the rows overflow float64 too, or float64 does not resolve the damping
                beside them.
        """
        factor: Tensor | None = None
        finite = bool(torch.isfinite(gram).all())
        if finite and (exact or not self._is_beyond_float32(damping, keep)):
            factor = damped_cholesky(gram, damping)
            exact = exact or self.dtype == torch.float64
        if factor is None or not (exact or _least_new_share(factor) >= MIN_NEW_SHARE):
            gram = self.gram(torch.float64, keep)
            if not bool(torch.isfinite(gram).all()):
                raise WoodburyError("The squares of the rows overflow float64: give smaller rows.")
            factor, exact = damped_cholesky(gram, damping), True
        check_resolved(damping, float(gram.abs().sum(0).max()))
        return Factorization(gram, factor, exact)


def _scale_rows(scale: Tensor, c: Tensor) -> Tensor:
    """diag(scale) c for c (m,) or (m, k)."""
    return scale * c if c.ndim == 1 else scale[:, None] * c


def _least_new_share(factor: Tensor) -> float:
    """The smallest share of a row that is independent of the rows before it: min Lᵢᵢ²/Aᵢᵢ."""
    return float((factor.diagonal().square() / factor.square().sum(1)).min())
