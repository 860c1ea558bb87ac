"""LowRank: damping plus a few rows, by one Gram matrix and one Cholesky factor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from woodbury.errors import WrongType
from woodbury.fisher.base import Fisher
from woodbury.fisher.checks import (
    as_tensor,
    check_columns,
    check_damping,
    check_finite,
    check_groups,
    check_held,
    check_keep,
    check_mask,
    check_rows,
    check_vector,
    check_weights,
)
from woodbury.fisher.scaled_rows import Factorization, KnownGram, ScaledRows
from woodbury.linalg import collectives
from woodbury.linalg.column_chunks import chunk_width, column_chunks, each_chunk
from woodbury.linalg.gram import whitened_squares
from woodbury.linalg.paged_rows import Rows, in_memory, known_squares, restricted, taken
from woodbury.linalg.precision import wide_dtype
from woodbury.linalg.row_products import full_precision

MIN_FLOAT32_SHARE = 0.05
"""Below this share of 1/damping in [F⁻¹]_qq the subtraction is done again in float64."""


MIN_KEPT_SHARE = 0.1
"""Where less than this share of a row's square is kept, the Gram matrix is summed again."""


class _Moved(NamedTuple):
    """What is known of an update: spares a read of rows on a disk.

    Attributes:
        step: (d,), −w_Q and the step of the kept weights.
        spanned: (m,) float64, S G step.
    """

    step: Tensor
    spanned: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class LowRank(Fisher):
    """F = damping·I + (1/m) Σ wᵢ gᵢ gᵢᵀ through the Woodbury identity  (eq. 2, 6), as in M-FAC.

    The rows are used as they are: nothing of size d × d is made, no row is copied. Set-up is
    O(dm²): one Gram matrix, summed in float64 over column chunks. `solve` and `@` are O(dm), an
    inverse element O(m²) alone and O(m) each when all are read (Frantar et al. 2021 need m
    sequential passes for the same).

    Attributes:
        rows: (m, d), any float dtype: per-sample or batch gradients, GGN or Jacobian rows. A
            tensor, or pages on a disk (`woodbury.memory.stored_rows`).
        damping: λ > 0, absolute.
        weights: (m,), wᵢ, positive; None for 1.
        group: The ranks over which the columns are spread, each holding its own d; None for one
            process.

    Raises:
        WoodburyError: If the rows are not (m, d) or not finite, a weight is not positive, or the
            damping is not.

    Example:
        >>> import torch
        >>> import woodbury
        >>> fisher = woodbury.fisher.LowRank(torch.tensor([[1.0, 1.0, 0.0]]), damping=1.0)
        >>> fisher.solve(torch.tensor([3.0, 0.0, 1.0]))
        tensor([ 2., -1.,  1.])
        >>> fisher.inverse_diagonal()
        tensor([0.6667, 0.6667, 1.0000])
    """

    rows: Rows
    damping: float
    weights: Tensor | None = None
    group: Any = None
    _known: KnownGram | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "damping", check_damping(self.damping))
        object.__setattr__(self, "rows", check_rows(self.rows))
        if isinstance(self.rows, Tensor):  # what is stored was checked when it was written
            check_finite(self.rows, "A matrix of rows")
        collectives.check_group(self.group)
        if self.weights is not None:
            object.__setattr__(self, "weights", check_weights(self.weights, self.m))

    @classmethod
    def from_gram(
        cls,
        rows: Rows,
        damping: float,
        gram: KnownGram | None,
        *,
        weights: Tensor | None = None,
        group: Any = None,
    ) -> LowRank:
        """An operator whose rows are known to be finite, and mostly their Gram matrix too.

        Args:
            rows: (m, d), any float dtype.
            damping: λ > 0.
            gram: What is known of S G Gᵀ S; None to compute it when needed.
            weights: (m,), positive; None for 1.
            group: The ranks over which the columns are spread.

        Returns:
            The operator; the rows are not read.

        Raises:
            WoodburyError: If the damping is not positive and finite.
        """
        fisher = object.__new__(cls)  # without __init__, whose checks would read all rows
        for name, value in (
            ("rows", rows),
            ("damping", check_damping(damping)),
            ("weights", weights),
            ("group", group),
            ("_known", gram),
        ):
            object.__setattr__(fisher, name, value)
        return fisher

    @property
    def m(self) -> int:
        """The number of rows."""
        return self.rows.shape[0]

    @property
    def d(self) -> int:
        """The number of weights, of this rank's if there is a group."""
        return self.rows.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """That of the rows, float32 for halves."""
        return wide_dtype(self.rows.dtype)

    @property
    def device(self) -> torch.device:
        """That of the rows."""
        return self.rows.device

    @cached_property
    def gram(self) -> Tensor:
        """(m, m) float64: S G Gᵀ S with S = diag(√(wᵢ/m)), over all ranks."""
        return self._factorization.gram

    @cached_property
    def _scaled(self) -> ScaledRows:
        return ScaledRows(self.rows, self.weights, self.group)

    @cached_property
    def _factorization(self) -> Factorization:
        """The Gram matrix, known or computed, and the factor of gram + damping·I."""
        if self._known is None:
            return self._scaled.factorize(self.damping)
        known = self._known
        return self._scaled.refactor_if_inexact(known.matrix, known.exact, self.damping)

    @property
    def _orthogonal(self) -> bool:
        return self._known is not None and self._known.orthogonal

    @cached_property
    def _whitener(self) -> Tensor:
        """(m, m) float64, lower triangular: L⁻¹ S, so that W = whitener @ G  (eq. 7)."""
        eye = torch.eye(self.m, dtype=torch.float64, device=self.device)
        factor = self._factorization.factor
        return torch.linalg.solve_triangular(factor, eye, upper=False) * self._scaled.scale

    def _product_dtype(self, exact: bool) -> torch.dtype:
        """What products around the small solve are taken in.

        Where float32 cannot carry the Gram matrix, neither can it carry these.
        """
        return torch.float64 if exact else self.dtype

    def __matmul__(self, v: Tensor) -> Tensor:
        """F v, two reads of the rows."""
        v = check_vector(v, self.d)
        return self._representable(lambda dtype: self._product(v.to(dtype)), "F v")

    def _product(self, v: Tensor) -> Tensor:
        """F v, from products in the dtype of v."""
        spanned = self._scaled.combine(self._scaled.times(v), v.dtype)
        return spanned.add_(v, alpha=self.damping)

    def _representable(self, compute: Callable[[torch.dtype], Tensor], what: str) -> Tensor:
        """What is computed in this operator's dtype; in float64 where that overflows on the way."""
        result = compute(self.dtype)
        overflows = torch.tensor(not bool(torch.isfinite(result).all()), dtype=torch.float64)
        # On all ranks or on none, as they sum inside.
        if not bool(collectives.all_sum(overflows, self.group)):
            return result
        return check_held(compute(torch.float64).to(self.dtype), what)

    def solve(self, v: Tensor) -> Tensor:
        """F⁻¹ v = (v − Gᵀ S A⁻¹ S G v)/λ, A = gram + λI  (eq. 6): two reads of the rows.

        For v = Gᵀc `solve_range(c)` is better: nothing cancels there.

        Args:
            v: (d,) or (d, k).

        Returns:
            The same shape.

        Raises:
            WoodburyError: If the shape does not fit.
        """
        v = check_vector(v, self.d).to(self._product_dtype(self._factorization.exact))
        small = self._factorization.solve(self._scaled.times(v))
        spanned = self._scaled.combine(small, v.dtype)
        return check_held((v - spanned).div_(self.damping).to(self.dtype), "F⁻¹v")

    def solve_range(self, c: Tensor) -> Tensor:
        """F⁻¹ Gᵀ c = Gᵀ S A⁻¹ S⁻¹ c  (eq. 8): no cancellation, one read of the rows.

        Args:
            c: (m,) or (m, k), the coefficients of the rows.

        Returns:
            (d,) or (d, k).

        Raises:
            WoodburyError: If the shape does not fit.

        Example:
            >>> import torch
            >>> import woodbury
            >>> fisher = woodbury.fisher.LowRank(torch.tensor([[1.0, 1.0]]), damping=1.0)
            >>> fisher.solve_range(torch.tensor([3.0]))
            tensor([1., 1.])
        """
        c = check_columns(c, self.m, f"A Fisher of {self.m} rows got coefficients")
        small = self._factorization.solve(self._scaled.unscaled(c.double()))
        dtype = self._product_dtype(self._factorization.exact)
        return check_held(self._scaled.combine(small, dtype).to(self.dtype), "F⁻¹v")

    def quadratic_form(self, v: Tensor) -> float:
        """vᵀFv = λ|v|² + |S G v|²: one read of the rows; on a disk, none for the last update.

        Args:
            v: (d,).

        Returns:
            A number that is not negative.

        Raises:
            WoodburyError: If the shape does not fit.
        """
        v = check_vector(v, self.d, columns=False).to(self.dtype)
        length = collectives.all_sum(
            torch.linalg.vector_norm(v, dtype=torch.float64).square(), self.group
        )
        known = [moved.spanned for moved in self._moved if torch.equal(moved.step, v)]
        spanned = known[0] if known else self._scaled.times(v)
        return float(self.damping * length + spanned.square().sum())

    def diagonal(self) -> Tensor:
        """diag(F), damping included: one read of the rows; none of pages without weights."""
        known = known_squares(self.rows)
        if known is not None and self.weights is None:
            return (known / self.m).add_(self.damping)
        return self._representable(self._diagonal, "The diagonal")

    def _diagonal(self, dtype: torch.dtype) -> Tensor:
        scale = self._scaled.scale.to(dtype)[:, None]
        # In one tensor: small ones in a list lie between the chunks, and let the heap grow.
        diagonal = torch.empty(self.d, dtype=dtype, device=self.device)
        for part, chunk in column_chunks(self.rows, dtype):
            diagonal[part] = (scale * chunk).square_().sum(0)
        return diagonal.add_(self.damping)

    def inverse_diagonal(self) -> Tensor:
        """diag(F⁻¹) = (1 − Σᵢ W²ᵢq)/λ  (eq. 7): O(dm²) once, and O(dm) after `spectral`."""
        diagonal = self._scaled_inverse_diagonal / self.damping
        return check_held(diagonal, "The inverse diagonal", positive=True)

    @cached_property
    def _scaled_inverse_diagonal(self) -> Tensor:
        """(d,): λ·[F⁻¹]_qq = 1 − Σᵢ W²ᵢq, the share of 1/λ that the rows leave."""
        shares = torch.empty(self.d, dtype=self.dtype, device=self.device)
        squares = self._whitened_squares()

        def of(_: int, part: slice, chunk: Tensor) -> None:
            left = 1 - squares(chunk)
            # Where little is left of 1, float32 has lost the digits of the difference.
            cancelled = left < MIN_FLOAT32_SHARE
            if bool(cancelled.any()):
                again = self._scaled_inverse_diagonal_float64(chunk[:, cancelled].double())
                left[cancelled] = again.to(self.dtype)
            shares[part] = left

        with full_precision(self.device):
            each_chunk(self.rows, self.dtype, of)
        return shares

    def _whitened_squares(self) -> Callable[[Tensor], Tensor]:
        """What computes the column sums of W², W = whitener @ chunk: (m, c) -> (c,)."""
        whitener = self._whitener.to(self.dtype)
        if self._orthogonal:
            diagonal = whitener.diagonal()[:, None]
            return lambda chunk: (diagonal * chunk).square_().sum(0)
        return whitened_squares(whitener, self.d)

    def _scaled_inverse_diagonal_float64(self, chunk: Tensor) -> Tensor:
        """λ·[F⁻¹]_qq of columns (m, c) in float64, and never below its bound λ/F_qq."""
        curvature = (self._scaled.scale[:, None] * chunk).square_().sum(0)
        bound = self.damping / (self.damping + curvature)
        return torch.maximum(1 - (self._whitener @ chunk).square_().sum(0), bound)

    def inverse_blocks(self, groups: Tensor) -> Tensor:
        """[F⁻¹]_QQ = (I − W_QᵀW_Q)/λ  (eq. 7): O(m²) for each weight of a group."""
        groups = check_groups(groups, self.d)
        size = groups.shape[1]
        blocks = torch.empty(len(groups), size, size, dtype=self.dtype, device=self.device)
        at_once = max(1, chunk_width(self.rows) // max(size, 1))
        for start in range(0, len(groups), at_once):
            chunk = groups[start : start + at_once]
            # The identity, which has ones beside its diagonal too where a group repeats a weight.
            identity = (chunk[:, :, None] == chunk[:, None, :]).double()
            white = self.whitened(chunk.flatten())
            white = white.view(self.m, len(chunk), size).permute(1, 0, 2)
            elements = (identity - white.mT @ white) / self.damping
            blocks[start : start + at_once] = elements.to(self.dtype)
        return check_held(blocks, "An inverse block")

    def whitened(self, columns: Tensor) -> Tensor:
        """Some columns of W = L⁻¹ S G  (eq. 7).

        Args:
            columns: (k,) int64, of this rank.

        Returns:
            (m, k) float64.

        Raises:
            WoodburyError: If an index lies outside.
            WrongType: If they are no indices in one dimension.
        """
        columns = as_tensor(columns, "columns")
        if columns.ndim != 1:
            raise WrongType(f"columns has the shape {tuple(columns.shape)}: give (k,) indices.")
        check_groups(columns[None], self.d)
        return self._whitener @ taken(self.rows, columns).double()

    def _check_keep(self, keep: Tensor) -> Tensor:
        """A mask of kept weights; of ranks, one may keep none of its own."""
        return check_keep(keep, self.d) if self.group is None else check_mask(keep, (self.d,))

    def restrict(self, keep: Tensor) -> LowRank:
        """F_KK: an index on the same rows; their Gram matrix by subtraction if known."""
        keep = self._check_keep(keep)
        rows = restricted(self.rows, keep)
        gram = self._downdated_gram(keep)
        known = None
        if gram is not None:
            known = KnownGram(gram, self._factorization.exact, summed=self._gram_scale)
        return self._with(rows, self.damping, known)

    def _with(self, rows: Rows, damping: float, known: KnownGram | None) -> LowRank:
        """Other rows or damping under the same weights and group."""
        return LowRank.from_gram(rows, damping, known, weights=self.weights, group=self.group)

    def _downdated_gram(self, keep: Tensor) -> Tensor | None:
        """The Gram matrix of the kept columns by subtracting that of the others  (eq. 10).

        None where that is dearer or loses digits.
        """
        if not self._can_downdate(keep):
            return None
        dtype = self._product_dtype(self._factorization.exact)
        return self._less(self._scaled.gram(dtype, ~keep))

    def _can_downdate(self, keep: Tensor) -> bool:
        """Whether subtraction is cheaper than a sum over the kept columns.

        Not so 1. with ranks, which would have to agree; 2. if no Gram matrix is there to subtract
        from; 3. if more is removed than kept.
        """
        return self.group is None and self._is_factored and 2 * int(keep.sum()) >= self.d

    def _less(self, removed: Tensor) -> Tensor | None:
        """The Gram matrix less that of removed columns; None if of some row too little is kept."""
        kept = self.gram - removed
        lossy = bool((kept.diagonal() < MIN_KEPT_SHARE * self._gram_scale).any())
        return None if lossy else kept

    @property
    def _is_factored(self) -> bool:
        return self._known is not None or "_factorization" in vars(self)

    @property
    def _gram_scale(self) -> Tensor:
        """(m,): the diagonal of the Gram matrix that was summed last.

        Its rounding is that of all Gram matrices that were subtracted from it since.
        """
        if self._known is None or self._known.summed is None:
            return self.gram.diagonal()
        return self._known.summed

    def conditional_curvature(self, keep: Tensor) -> Tensor:
        """λ/(1 − Σᵢ W²ᵢq) for kept weights, λ(1 + Σᵢ W²ᵢq) for removed ones  (eq. 57)."""
        keep = self._check_keep(keep)
        kept = self.restrict(keep)
        curvature = torch.empty(self.d, dtype=self.dtype, device=self.device)
        curvature[keep] = self.damping / kept._scaled_inverse_diagonal
        squares_of = kept._whitened_squares()
        with full_precision(self.device):
            # F_qq less what K explains is λ(1 + |L_K⁻¹ S g_q|²), by the range form (eq. 8).
            squares = curvature.new_empty(self.d - int(keep.sum()))

            def of(_: int, part: slice, chunk: Tensor) -> None:
                squares[part] = squares_of(chunk)

            each_chunk(self.rows, self.dtype, of, ~keep)
        curvature[~keep] = self.damping * (1 + squares)
        return check_held(curvature, "The conditional curvature", positive=True)

    def spectral(self) -> LowRank:
        """The same operator with orthogonal rows  (eq. 60).

        From then on the inverse diagonal under another damping costs O(dm), not O(dm²).

        Returns:
            The operator of the rows VᵀSG, V the eigenvectors of the Gram matrix; it holds as many
            rows again. Rows by pages have no room twice: then this operator, as it is.

        Example:
            >>> import torch
            >>> import woodbury
            >>> rows = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
            >>> fisher = woodbury.fisher.LowRank(rows, damping=1.0).spectral()
            >>> fisher.with_damping(2.0).inverse_diagonal()
            tensor([0.3750, 0.3750])
        """
        if not in_memory(self.rows):
            return self
        values, vectors = torch.linalg.eigh(self.gram)
        # √m, as the new operator divides its rows by it again.
        turn = (vectors.mT * self._scaled.scale).to(self.dtype) * self.m**0.5
        rows = torch.empty(self.m, self.d, dtype=self.dtype, device=self.device)
        with full_precision(self.device):
            for part, chunk in column_chunks(self.rows, self.dtype):
                rows[:, part] = turn @ chunk
        gram = values.clamp_min(0).diag()
        known = KnownGram(gram, self._factorization.exact, orthogonal=True)
        return LowRank.from_gram(rows, self.damping, known, group=self.group)

    def with_damping(self, damping: float) -> LowRank:
        """The same rows and Gram matrix under another damping: only the factor is new."""
        known = KnownGram(
            self.gram,
            self._factorization.exact,
            self._orthogonal,
            None if self._known is None else self._known.summed,
        )
        return self._with(self.rows, damping, known)

    def logdet(self) -> float:
        """(d − m) log λ + log det A, d over all ranks."""
        d = int(collectives.all_sum(torch.tensor(self.d, device=self.device), self.group))
        small = 2 * self._factorization.factor.diagonal().log().sum()
        return (d - self.m) * math.log(self.damping) + float(small)

    def compensate(self, keep: Tensor, removed: Tensor, gradient: Tensor | None = None) -> Tensor:
        """F_KK⁻¹ (F_KQ w_Q − g_K), the first part in the range form  (eq. 9): nothing cancels."""
        # 1. F_KQ w_Q lies in the span of the kept columns of the rows, so that (eq. 8) applies: no
        #    division by the damping. 2. Only the Gram matrix of the kept columns is needed, not a
        #    copy of them: what the other columns would add is cut off last.
        keep = self._check_keep(keep)
        removed = check_vector(removed, self.d, columns=False)
        solver, force = self._kept_factorization(keep, removed)
        dtype = self._product_dtype(solver.exact)
        solved = solver.solve(force)
        step = self._scaled.combine(solved, dtype)[keep]
        spanned = -self.damping * solved  # of the whole step: A_K c − force = −λ c
        if gradient is not None:
            # It need not lie in the span: F_KK⁻¹ g_K in the subtractive form (eq. 6).
            slope = check_vector(gradient, self.d, columns=False).to(dtype).masked_fill(~keep, 0)
            solved = solver.solve(self._scaled.times(slope))
            newton = slope - self._scaled.combine(solved, dtype)
            step = step.sub_(newton[keep], alpha=1 / self.damping)
            spanned = spanned - solved
        step = check_held(step.to(self.dtype), "The update")
        if not in_memory(self.rows):
            whole = removed.to(self.dtype).neg().masked_scatter_(keep, step)
            self._moved[:] = [_Moved(whole, spanned)]
        return step

    @cached_property
    def _moved(self) -> list[_Moved]:
        """The last update, where the rows lie on a disk."""
        return []

    def _kept_factorization(self, keep: Tensor, v: Tensor) -> tuple[Factorization, Tensor]:
        """The factor of the kept columns' Gram matrix, and S G v (m,): one read for both."""
        if self._is_factored:
            exact = self._factorization.exact
        else:
            exact = self._scaled.needs_float64(self.damping, keep)
        downdates = self._can_downdate(keep)
        dtype = self._product_dtype(exact)
        gram, force = self._scaled.gram_and_times(~keep if downdates else keep, v.to(dtype))
        if downdates:
            kept = self._less(gram)
            gram = self._scaled.gram(dtype, keep) if kept is None else kept
        solver = self._scaled.refactor_if_inexact(gram, exact, self.damping, keep)
        if solver.exact and dtype != torch.float64:
            force = self._scaled.times(v.double())
        return solver, force
