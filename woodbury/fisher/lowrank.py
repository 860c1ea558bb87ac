"""LowRank: damping plus a few rows, by one Gram matrix and one Cholesky factor."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher
from woodbury.fisher.checks import (
    check_damping,
    check_finite,
    check_groups,
    check_keep,
    check_vector,
)
from woodbury.linalg import collectives
from woodbury.linalg.cholesky import damped_cholesky
from woodbury.linalg.gram import gram_of, squared_columns
from woodbury.linalg.row_products import chunks, combine, full_precision, times, width

CANCELLING = 0.05
"""Where less than this share of 1/damping is left in [F⁻¹]_qq, the subtraction is done again in float64."""


RESOLVED = 0.01
"""A row of which less than this share is new to the rows before it needs its products in float64."""


PROBED = 64
"""Fewer rows than these are not asked first whether float32 will do."""


REMAINING = 0.1
"""Where less than this share of a row's square is in the columns that stay, their Gram matrix is summed, not subtracted."""


@dataclass(frozen=True, eq=False)
class LowRank(Fisher):
    """F = damping·I + (1/m) Σ wᵢ gᵢ gᵢᵀ, with the rows gᵢ as they are: nothing of size d × d, nothing copied  (eq. 2, 6).

    rows: (m, d) real, any float dtype, per-sample or batch gradients, Jacobian rows, …; weights: (m,) positive or None
    for 1. Set-up is O(dm²): one Gram matrix, summed in float64 over column chunks. `solve` and `@` are O(dm), an inverse
    element O(m²) alone and O(m) each when all are read.
    group: the ranks over which the columns are spread, each holding its own d; None for one process.
    known_gram: (m, m) float64, the scaled Gram matrix where it is known already; exact_gram: its products were float64's;
    orthogonal: it is diagonal, as `spectral` makes it; summed: (m,), the diagonal of the one that it was subtracted from.
    """

    rows: Tensor
    damping: float
    weights: Tensor | None = None
    group: Any = None
    known_gram: Tensor | None = field(default=None, repr=False)
    exact_gram: bool = field(default=False, repr=False)
    orthogonal: bool = field(default=False, repr=False)
    summed: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_damping(self.damping)
        if self.rows.ndim != 2 or 0 in self.rows.shape:
            raise WoodburyError(
                f"The rows have shape {tuple(self.rows.shape)}: give (m, d) with at least one row."
            )
        if self.known_gram is None:  # else the rows were checked when it was made
            check_finite(self.rows, "A matrix of rows")
        if self.weights is not None:
            check_weights(self.weights, self.m)

    @property
    def m(self) -> int:
        """The number of rows."""
        return self.rows.shape[0]

    @property
    def d(self) -> int:
        return self.rows.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return (
            self.rows.dtype if self.rows.dtype in (torch.float32, torch.float64) else torch.float32
        )

    @property
    def device(self) -> torch.device:
        return self.rows.device

    @cached_property
    def _scale(self) -> Tensor:
        """(m,) float64: √(wᵢ/m), so that F = damping·I + (SG)ᵀ(SG)."""
        ones = torch.ones(self.m, dtype=torch.float64, device=self.device)
        return (
            (ones if self.weights is None else self.weights.double().to(self.device)) / self.m
        ).sqrt()

    @cached_property
    def gram(self) -> Tensor:
        """(m, m) float64: S G Gᵀ S, over all ranks."""
        return self._solved[0]

    @cached_property
    def _factor(self) -> Tensor:
        return self._solved[1]

    @property
    def _exact(self) -> bool:
        return self._solved[2]

    @cached_property
    def _solved(self) -> tuple[Tensor, Tensor, bool]:
        """The Gram matrix, the factor of gram + damping·I, and whether the products were taken in float64."""
        return (
            self._gathered()
            if self.known_gram is None
            else self._factored(self.known_gram, self.exact_gram)
        )

    def _gathered(self, columns: Tensor | None = None) -> tuple[Tensor, Tensor, bool]:
        """The same from the rows, or some of their columns: in float64 at once where a quarter of the rows asks for it."""
        exact, few = self.dtype == torch.float64, self.m // 4
        if (
            not exact and few >= PROBED
        ):  # a row's share that is new is the same among its predecessors alone
            exact = (
                _least_new(
                    damped_cholesky(self._scaled_gram(self.dtype, columns, few), self.damping)
                )
                < RESOLVED
            )
        dtype = torch.float64 if exact else self.dtype
        return self._factored(self._scaled_gram(dtype, columns), exact, columns)

    def _factored(
        self, gram: Tensor, exact: bool, columns: Tensor | None = None
    ) -> tuple[Tensor, Tensor, bool]:
        """The same of the Gram matrix of some columns, taken again in float64 if float32 cannot carry the answer."""
        exact, factor = exact or self.dtype == torch.float64, damped_cholesky(gram, self.damping)
        if not exact and _least_new(factor) < RESOLVED:
            gram, exact = self._scaled_gram(torch.float64, columns), True
            factor = damped_cholesky(gram, self.damping)
        return gram, factor, exact

    def _scaled_gram(
        self, dtype: torch.dtype, columns: Tensor | None = None, first: int | None = None
    ) -> Tensor:
        gram, scale = (
            collectives.all_sum(gram_of(self.rows[:first], dtype, columns), self.group),
            self._scale[:first],
        )
        return scale[:, None] * gram * scale

    @cached_property
    def _whitener(self) -> Tensor:
        """(m, m) float64, lower triangular: L⁻¹ S, so that W = whitener @ G has F⁻¹ = (I − WᵀW)/damping  (eq. 7)."""
        eye = torch.eye(self.m, dtype=torch.float64, device=self.device)
        return torch.linalg.solve_triangular(self._factor, eye, upper=False) * self._scale

    def _times(self, v: Tensor) -> Tensor:
        """S G v in float64, from products in v's dtype: (d,) -> (m,), (d, k) -> (m, k)."""
        return _down(self._scale, collectives.all_sum(times(self.rows, v), self.group))

    def _combine(self, c: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Gᵀ S c in a dtype, None for the operator's: (m,) -> (d,), (m, k) -> (d, k)."""
        return combine(self.rows, _down(self._scale, c).to(dtype or self.dtype))

    def _carrying(self, exact: bool) -> torch.dtype:
        """What products are taken in before or after the small solve: where float32 cannot carry the Gram matrix, neither can it
        carry these."""
        return torch.float64 if exact else self.dtype

    def _solve_small(self, c: Tensor) -> Tensor:
        return _solved_by(self._factor, c)

    def __matmul__(self, v: Tensor) -> Tensor:
        v = check_vector(v, self.d).to(self.dtype)
        return self._combine(self._times(v)).add_(v, alpha=self.damping)

    def solve(self, v: Tensor) -> Tensor:
        """F⁻¹ v, the IHVP: (d,) or (d, k) -> the same; two reads of the rows. For v = Gᵀc, `solve_range(c)` is better."""
        v = check_vector(v, self.d).to(self._carrying(self._exact))
        spanned = self._combine(self._solve_small(self._times(v)), v.dtype)
        return (v - spanned).div_(self.damping).to(self.dtype)

    def solve_range(self, c: Tensor) -> Tensor:
        """F⁻¹ Gᵀ c for c (m,) or (m, k), without cancellation and in one read of the rows  (eq. 8)."""
        if c.ndim not in (1, 2) or c.shape[0] != self.m:
            raise WoodburyError(
                f"Coefficients of shape {tuple(c.shape)} met {self.m} rows: give ({self.m},) or ({self.m}, k)."
            )
        small = self._solve_small(_down(1 / self._scale, c.double()))
        return self._combine(small, self._carrying(self._exact)).to(self.dtype)

    def diagonal(self) -> Tensor:
        scale = self._scale.to(self.dtype)[:, None]
        return (
            torch.cat(
                [(scale * chunk).square_().sum(0) for _, chunk in chunks(self.rows, self.dtype)]
            )
            + self.damping
        )

    def inverse_diagonal(self) -> Tensor:
        return self._left / self.damping

    @cached_property
    def _left(self) -> Tensor:
        """(d,): the share of 1/damping that the rows leave in [F⁻¹]_qq, 1 − Σᵢ W²ᵢq  (eq. 7)."""
        left = torch.empty(self.d, dtype=self.dtype, device=self.device)
        whitener = self._whitener.to(self.dtype)
        with full_precision(self.device):
            for part, chunk in chunks(self.rows, self.dtype):
                left[part] = 1 - self._squares(whitener, chunk)
        cancelling = (left < CANCELLING).nonzero()[:, 0]
        for some in cancelling.split(width(self.rows)):
            left[some] = self._left_exactly(some).to(self.dtype)
        return left

    def _squares(self, whitener: Tensor, chunk: Tensor) -> Tensor:
        """The column sums of (whitener @ chunk)²: (m, c) -> (c,)."""
        if self.orthogonal:
            return (whitener.diagonal()[:, None] * chunk).square_().sum(0)
        return squared_columns(whitener, chunk)

    def _left_exactly(self, columns: Tensor) -> Tensor:
        """damping·[F⁻¹]_qq of some columns in float64, and never below its bound damping/F_qq."""
        chunk = self.rows[:, columns].double()
        bound = self.damping / (self.damping + (self._scale[:, None] * chunk).square_().sum(0))
        return torch.maximum(1 - (self._whitener @ chunk).square_().sum(0), bound)

    def inverse_blocks(self, groups: Tensor) -> Tensor:
        s = check_groups(groups, self.d).shape[1]
        blocks = torch.empty(len(groups), s, s, dtype=self.dtype, device=self.device)
        eye = torch.eye(s, dtype=torch.float64, device=self.device)
        at_once = max(1, width(self.rows) // max(s, 1))
        for start in range(0, len(groups), at_once):
            some = groups[start : start + at_once]
            same = (some[:, :, None] == some[:, None, :]) * eye.new_ones(())
            white = (
                (self._whitener @ self.rows[:, some.flatten()].double())
                .view(self.m, len(some), s)
                .permute(1, 0, 2)
            )
            blocks[start : start + at_once] = ((same - white.mT @ white) / self.damping).to(
                self.dtype
            )
        return blocks

    def restrict(self, keep: Tensor) -> LowRank:
        rows = self.rows.index_select(1, check_keep(keep, self.d).nonzero()[:, 0])
        left = self._downdated(keep)
        exact, summed = left is not None and self._exact, None if left is None else self._sums
        return replace(
            self, rows=rows, known_gram=left, exact_gram=exact, orthogonal=False, summed=summed
        )

    def _downdated(self, keep: Tensor) -> Tensor | None:
        """The Gram matrix of the columns that stay, where that of the others is cheaper and the difference exact  (eq. 10)."""
        known = self.known_gram is not None or "_solved" in vars(self)
        if self.group is not None or not known or 2 * int(keep.sum()) < self.d:
            return None
        gone = self._scaled_gram(
            torch.float64 if self._exact else self.dtype, (~keep).nonzero()[:, 0]
        )
        left = self.gram - gone
        return None if bool((left.diagonal() < REMAINING * self._sums).any()) else left

    @property
    def _sums(self) -> Tensor:
        """(m,) the diagonal of the Gram matrix that was summed last, whose rounding all that were subtracted since share."""
        return self.gram.diagonal() if self.summed is None else self.summed

    def conditional(self, keep: Tensor) -> Tensor:
        stays = self.restrict(keep)
        found = torch.empty(self.d, dtype=self.dtype, device=self.device)
        found[keep] = self.damping / stays._left
        whitener = stays._whitener.to(self.dtype)
        with full_precision(self.device):
            for some in (
                (~keep).nonzero()[:, 0].split(width(self.rows))
            ):  # F_qq less what K explains: λ(1 + |L_K⁻¹ S g_q|²)
                chunk = self.rows.index_select(1, some).to(self.dtype)
                found[some] = self.damping * (1 + stays._squares(whitener, chunk))
        return found

    def spectral(self) -> LowRank:
        """The same operator with orthogonal rows, by one eigendecomposition of the Gram matrix: from then on the inverse
        diagonal under another damping costs O(dm), not O(dm²)  (eq. 60). Holds as many rows again."""
        values, vectors = torch.linalg.eigh(self.gram)
        turned = (vectors.mT * self._scale).to(self.dtype) * self.m**0.5
        rows = torch.empty(self.m, self.d, dtype=self.dtype, device=self.device)
        with full_precision(self.device):
            for part, chunk in chunks(self.rows, self.dtype):
                rows[:, part] = turned @ chunk
        known = values.clamp_min(0).diag()
        exact = self._exact
        return replace(
            self,
            rows=rows,
            weights=None,
            known_gram=known,
            exact_gram=exact,
            orthogonal=True,
            summed=None,
        )

    def with_damping(self, damping: float) -> LowRank:
        return replace(self, damping=damping, known_gram=self.gram, exact_gram=self._exact)

    def logdet(self) -> float:
        d = int(collectives.all_sum(torch.tensor(self.d, device=self.device), self.group))
        return (d - self.m) * math.log(self.damping) + float(
            2 * self._factor.diagonal().log().sum()
        )

    def compensate(self, keep: Tensor, removed: Tensor, gradient: Tensor | None = None) -> Tensor:
        # F_KQ w_Q lies in the span of the kept columns, so that the range form applies: no division by the damping. Only
        # their Gram matrix is needed: what the other columns would add is cut off last.
        kept = check_keep(keep, self.d).nonzero()[:, 0]
        left = self._downdated(keep)
        _, factor, exact = (
            self._gathered(kept) if left is None else self._factored(left, self._exact, kept)
        )
        dtype = self._carrying(exact)
        force = self._times(check_vector(removed, self.d).to(dtype))
        step = self._combine(_solved_by(factor, force), dtype)[keep]
        if gradient is None:
            return step.to(self.dtype)
        slope = check_vector(gradient, self.d).to(dtype).masked_fill(~keep, 0)
        newton = slope - self._combine(_solved_by(factor, self._times(slope)), dtype)
        return step.sub_(newton[keep], alpha=1 / self.damping).to(self.dtype)


def _solved_by(factor: Tensor, c: Tensor) -> Tensor:
    """(L Lᵀ)⁻¹ c for c (m,) or (m, k)."""
    return torch.cholesky_solve(c if c.ndim == 2 else c[:, None], factor).view(c.shape)


def check_weights(weights: Tensor, m: int) -> Tensor:
    """`weights`, or an error unless they are m positive, finite numbers."""
    if weights.shape != (m,) or not bool((weights > 0).all() & weights.isfinite().all()):
        raise WoodburyError(
            f"The row weights must be ({m},), positive and finite: leave out rows that weigh nothing."
        )
    return weights


def _least_new(factor: Tensor) -> float:
    """The smallest share of a row that neither the rows before it nor rounding account for: min Lᵢᵢ² / Aᵢᵢ."""
    return float((factor.diagonal().square() / factor.square().sum(1)).min())


def _down(scale: Tensor, c: Tensor) -> Tensor:
    return scale * c if c.ndim == 1 else scale[:, None] * c
