"""Dense: curvature that is written out, as one matrix or as a stack of blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from woodbury.errors import WoodburyError, WrongType
from woodbury.fisher.base import Fisher
from woodbury.fisher.block_layout import Sums
from woodbury.fisher.checks import (
    RESOLVED_SHARE,
    as_tensor,
    check_damping,
    check_finite,
    check_groups,
    check_held,
    check_keep,
    check_resolved,
    check_vector,
)
from woodbury.fisher.padded import KeptBlocks, Padding
from woodbury.limits import Limits
from woodbury.linalg.cholesky import damped_cholesky
from woodbury.linalg.packed_blocks import PackedBlocks
from woodbury.linalg.precision import dtype_name, is_wide, wide_dtype
from woodbury.linalg.symmetric_blocks import SymmetricBlocks
from woodbury.linalg.threads import share, threads_on

ROWS_AT_ONCE = 4096
"""Rows of all blocks that are worked on at once: a cache holds them."""


PARTS_PER_THREAD = 4
"""Pieces of work of each thread at least, so that all end at about one time."""


PACKED_ROWS_AT_ONCE = 1 << 15
"""The same for compiled kernels, which hold a few blocks of them at a time."""


GROUPS_AT_ONCE = 1 << 16
"""Groups of weights whose inverse elements are read at once."""


@dataclass(frozen=True, eq=False, repr=False)
class Dense(Fisher):
    """F = curvature + damping·I: one symmetric matrix, or a stack of equal blocks  (eq. 4).

    Factors and solves are in float64, a few blocks at a time: besides the curvature only what has
    the size of a vector is held, and small factors. One block is Optimal Brain Surgeon (Hassibi &
    Stork 1992), many are WoodFisher (Singh & Alistarh 2020).

    Attributes:
        curvature: (d, d), or (b, s, s) for b blocks of s weights each, or `SymmetricBlocks` or
            `PackedBlocks` of such, which nothing is checked of; any float dtype.
        damping: λ > 0, added to the diagonal.
        valid: (b, s) bool, False where a block is padded with zeros; the d weights are the valid
            ones in order. None where nothing is padded.
        result: The dtype of what the operations return; None for the curvature's, or float32 for
            halves.

    Raises:
        WoodburyError: If the curvature is not square, finite and symmetric, or the damping is not
            positive.

    Example:
        >>> import torch
        >>> import woodbury
        >>> curvature = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
        >>> fisher = woodbury.fisher.Dense(curvature, damping=1.0)
        >>> fisher @ torch.tensor([1.0, 0.0])
        tensor([2., 1.])
        >>> keep = torch.tensor([True, False])
        >>> fisher.compensate(keep, removed=torch.tensor([0.0, 4.0]))
        tensor([2.])
    """

    curvature: Tensor | Sums
    damping: float
    valid: Tensor | None = None
    result: torch.dtype | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "damping", check_damping(self.damping))
        if not isinstance(self.curvature, (SymmetricBlocks, PackedBlocks)):
            curvature = as_tensor(self.curvature, "The dense curvature")
            object.__setattr__(self, "curvature", curvature)
            self._check_curvature(curvature)
        shape = len(self._blocks), self._blocks.size
        if self.valid is not None:
            valid = as_tensor(self.valid, "valid")
            object.__setattr__(self, "valid", valid)
            if valid.dtype != torch.bool or valid.shape != shape or not valid.any():
                raise WoodburyError(
                    f"valid is {dtype_name(valid.dtype)} of shape {tuple(valid.shape)}: "
                    f"give bool of shape {shape}, True somewhere."
                )
        if not (self.result is None or is_wide(self.result)):
            raise WrongType(f"result is {self.result!r}: it is torch.float32, float64 or None.")

    def _check_curvature(self, curvature: Tensor) -> None:
        shape = curvature.shape
        if len(shape) not in (2, 3) or shape[-1] != shape[-2] or 0 in shape:
            raise WoodburyError(
                f"A dense curvature has shape {tuple(shape)}: "
                "give (d, d), or (b, s, s) for b blocks."
            )
        check_finite(curvature, "The dense curvature")
        allowed = torch.finfo(curvature.dtype).eps ** 0.5
        for part in self._parts():
            blocks = self._blocks.matrices(part, curvature.dtype)
            difference = (blocks - blocks.mT).abs_().amax((1, 2))
            if bool((difference > allowed * blocks.abs().amax((1, 2))).any()):
                raise WoodburyError("The dense curvature is not symmetric: give (1/m) Σ g gᵀ.")

    @cached_property
    def _blocks(self) -> Sums:
        if not isinstance(self.curvature, Tensor):
            return self.curvature
        return SymmetricBlocks.of(
            self.curvature if self.curvature.ndim == 3 else self.curvature[None]
        )

    @cached_property
    def _padding(self) -> Padding:
        return Padding(len(self._blocks), self._blocks.size, self.valid, self.device)

    @cached_property
    def _kept_factors(self) -> dict[int, Tensor]:
        """First block -> the factors of some blocks; filled only where those of all are small."""
        return {}

    def _factor(self, part: slice) -> Tensor:
        """(c, s, s) lower triangular: L Lᵀ = F of some blocks, padding included."""
        factor = self._kept_factors.get(part.start)
        if factor is None:
            factor = self._resolved_factor(self._matrices(part, torch.float64))
            if len(self._blocks) * self._blocks.size**2 <= Limits.current().temporary:
                self._kept_factors[part.start] = factor
        return factor

    def _resolved_factor(self, matrices: Tensor) -> Tensor:
        """The factor of damped matrices (c, s, s), or an error where rounding decides it."""
        factor = damped_cholesky(matrices, self.damping)
        pivots = factor.diagonal(dim1=1, dim2=2).square()
        diagonal = matrices.diagonal(dim1=1, dim2=2)  # and damping: the squares of L's rows
        if bool((pivots < RESOLVED_SHARE * (diagonal + self.damping)).any()):
            check_resolved(self.damping, float(diagonal.sum(1).max()))
        return factor

    def _matrices(self, which: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """(c, s, s), the curvature of some blocks."""
        return self._blocks.matrices(which, dtype)

    def _parts(self, of: slice | None = None, at_once: int = 0) -> Iterator[slice]:
        """Slices of a few blocks, of all or of some, as large as temporaries may be."""
        first, end = (0, len(self._blocks)) if of is None else (of.start, of.stop)
        at_once = at_once or self._blocks_at_once
        for start in range(first, end, at_once):
            yield slice(start, min(start + at_once, end))

    def _shared(self, of: Callable[[slice], None], at_once: int = 0) -> None:
        """Do work for a few blocks at a time, shared among threads where all have enough of it."""
        parts = list(self._parts(at_once=at_once))
        threads = threads_on(self.device)
        share(of, parts, threads if len(parts) >= PARTS_PER_THREAD * threads else 1)

    def _fill(
        self,
        out: Tensor,
        by_torch: Callable[[slice], None],
        by_kernel: Callable[[PackedBlocks, slice], Tensor | None],
    ) -> None:
        """Fill `out` a few blocks at a time; by torch where no kernel resolves all of them."""
        blocks = self._blocks
        if not isinstance(blocks, PackedBlocks):
            self._shared(by_torch)
            return

        def of(part: slice) -> None:
            found = by_kernel(blocks, part)
            if found is not None:
                out[part] = found.to(out.dtype)
                return
            for few in self._parts(part):
                by_torch(few)

        self._shared(of, max(1, PACKED_ROWS_AT_ONCE // blocks.size))

    @property
    def _blocks_at_once(self) -> int:
        return max(1, ROWS_AT_ONCE // self._blocks.size)

    @property
    def d(self) -> int:
        """The number of weights, padding not counted."""
        return self._padding.d

    @property
    def dtype(self) -> torch.dtype:
        """`result`, else that of the curvature, float32 for halves."""
        return self.result or self._wide

    @property
    def _wide(self) -> torch.dtype:
        """What products are computed in: halves cannot hold 1/damping."""
        return wide_dtype(self._blocks.dtype)

    @property
    def device(self) -> torch.device:
        """That of the curvature."""
        return self._blocks.device

    def _scatter(self, v: Tensor) -> Tensor:
        """(d,) or (d, k) -> (b, s, 1) or (b, s, k), zeros in the padding."""
        return self._padding.scatter(v.reshape(self.d, -1))

    def _gather(self, padded: Tensor, v: Tensor) -> Tensor:
        """(b, s, k) -> the shape of v."""
        return self._padding.gather(padded).to(self.dtype).reshape(v.shape)

    def __matmul__(self, v: Tensor) -> Tensor:
        """F v, O(b s²) for each column."""
        v = check_vector(v, self.d)
        columns = self._scatter(v.to(self._wide))
        result = torch.empty_like(columns)

        def of(part: slice) -> None:
            result[part] = self._matrices(part, self._wide) @ columns[part]

        def by_kernel(blocks: PackedBlocks, part: slice) -> Tensor:
            return blocks.products(part, columns[part, :, 0])[..., None]

        if columns.shape[2] == 1:
            self._fill(result, of, by_kernel)
        else:
            self._shared(of)
        return check_held(self._gather(result.add_(columns, alpha=self.damping), v), "F v")

    def solve(self, v: Tensor) -> Tensor:
        """F⁻¹ v by Cholesky factors: O(b s³), and O(b s²) for each column."""
        v = check_vector(v, self.d)
        columns = self._scatter(v.to(torch.promote_types(v.dtype, self._wide)))
        result = torch.empty_like(columns)

        def of(part: slice) -> None:
            result[part] = torch.cholesky_solve(columns[part].double(), self._factor(part))

        def by_kernel(blocks: PackedBlocks, part: slice) -> Tensor | None:
            found = blocks.solves(part, self.damping, RESOLVED_SHARE, columns[part, :, 0])
            return None if found is None else found[..., None]

        if columns.shape[2] == 1:
            self._fill(result, of, by_kernel)
        else:
            self._shared(of)
        return check_held(self._gather(result, v), "F⁻¹v")

    def diagonal(self) -> Tensor:
        """diag(F), damping included."""
        diagonal = self._padding.gather(self._blocks.diagonal())
        return (diagonal.to(self._wide) + self.damping).to(self.dtype)

    def inverse_diagonal(self) -> Tensor:
        """diag(F⁻¹), O(b s³) once."""
        return self._inverse_diagonal

    @cached_property
    def _inverse_diagonal(self) -> Tensor:
        shape = len(self._blocks), self._blocks.size
        diagonal = torch.empty(shape, dtype=self.dtype, device=self.device)
        eye = torch.eye(self._blocks.size, dtype=torch.float64, device=self.device)

        def of(part: slice) -> None:
            # The columns of L⁻¹ squared: less than half of the time of all of L⁻ᵀL⁻¹.
            inverse = torch.linalg.solve_triangular(self._factor(part), eye, upper=False)
            diagonal[part] = inverse.square_().sum(1).to(self.dtype)

        def by_kernel(blocks: PackedBlocks, part: slice) -> Tensor | None:
            return blocks.inverse_diagonals(part, self.damping, RESOLVED_SHARE)

        self._fill(diagonal, of, by_kernel)
        diagonal = self._padding.gather(diagonal)
        return check_held(diagonal, "The inverse diagonal", positive=True)

    def _inverses(self, wanted: Tensor | None = None) -> Iterator[_Inverse]:
        """The inverses of a few blocks at a time: of those `wanted`, or of all."""
        at_once = self._blocks_at_once
        starts = [part.start for part in self._parts()]
        if wanted is not None:
            starts = (wanted.unique() // at_once * at_once).unique().tolist()
        for start in starts:
            factor = self._factor(slice(start, start + at_once))
            yield _Inverse(start, torch.cholesky_inverse(factor))

    def inverse_blocks(self, groups: Tensor) -> Tensor:
        """[F⁻¹]_QQ; 0 between weights of different blocks."""
        size = self._blocks.size
        groups = check_groups(groups, self.d)
        places = self._padding.places[groups]
        block = places // size
        within = places % size
        shape = (*groups.shape, groups.shape[1])
        result = torch.zeros(shape, dtype=torch.float64, device=self.device)
        for first, inverse in self._inverses(block):
            # A group may lie across blocks, of which only some are inverted here. Its other
            # weights read any element, and `here` sets what they read to 0.
            here = (block >= first) & (block < first + len(inverse))
            for chunk in here.any(1).nonzero()[:, 0].split(GROUPS_AT_ONCE):
                local = (block[chunk] - first).clamp(0, len(inverse) - 1)
                at = within[chunk]
                elements = inverse[local[:, :, None], at[:, :, None], at[:, None, :]]
                result[chunk] += elements * _pairs(here[chunk])
        same_block = block[:, :, None] == block[:, None, :]
        return check_held((result * same_block).to(self.dtype), "An inverse block")

    def restrict(self, keep: Tensor) -> Dense:
        """F_KK: every block without its removed rows and columns, padded to the largest."""
        mask = self._padding.scatter(check_keep(keep, self.d))
        not_empty = mask.any(1)
        used = not_empty.nonzero()[:, 0]
        mask = mask[not_empty]
        width = int(mask.sum(1).max())
        blocks = SymmetricBlocks.zeros(len(used), width, self._blocks.dtype, self.device)
        valid = mask.new_empty(len(used), width)
        for part in self._parts(slice(0, len(used))):
            whole = self._matrices(used[part], self._blocks.dtype)
            kept = KeptBlocks.of(whole, mask[part], width)
            blocks.set(part, kept.matrix)
            valid[part] = kept.valid
        return Dense(blocks, self.damping, None if bool(valid.all()) else valid, self.dtype)

    def conditional_curvature(self, keep: Tensor) -> Tensor:
        """1/[F_KK⁻¹]_qq for kept weights, Schur complements for removed ones  (eq. 57)."""
        mask = self._padding.scatter(check_keep(keep, self.d))
        result = torch.empty(mask.shape, dtype=self.dtype, device=self.device)

        def of(part: slice) -> None:
            blocks = self._matrices(part, torch.float64)
            kept = KeptBlocks.of(blocks, mask[part])
            inverse = torch.cholesky_inverse(self._resolved_factor(kept.matrix))
            # F_qq − F_qK F_KK⁻¹ F_Kq for all q, with the columns F_Kq of every q in `coupling`.
            coupling = kept.gather(blocks)
            explained = (coupling * (inverse @ coupling)).sum(1)
            schur = blocks.diagonal(dim1=1, dim2=2) + self.damping - explained
            # For a kept q that is no Schur complement: put 1/[F_KK⁻¹]_qq there instead.
            pivots = 1 / inverse.diagonal(dim1=1, dim2=2)
            pivots = torch.where(kept.valid, pivots, schur.gather(1, kept.order))
            result[part] = schur.scatter(1, kept.order, pivots)

        self._shared(of)
        curvature = self._padding.gather(result)
        return check_held(curvature, "The conditional curvature", positive=True)

    def with_damping(self, damping: float) -> Dense:
        """The same curvature under another damping; the factor is computed again."""
        return replace(self, damping=damping)

    def logdet(self) -> float:
        """The log det of the factor, less log damping for every place of the padding."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for part in self._parts():
            total += 2 * self._factor(part).diagonal(dim1=1, dim2=2).log().sum()
        places = len(self._blocks) * self._blocks.size
        return float(total) - (places - self.d) * math.log(self.damping)

    def compensate(self, keep: Tensor, removed: Tensor, gradient: Tensor | None = None) -> Tensor:
        """F_KK⁻¹ (F_KQ w_Q − g_K), a few blocks at a time: all F_KK would take as much as F."""
        keep = check_keep(keep, self.d)
        mask = self._padding.scatter(keep)
        values = self._scatter(check_vector(removed, self.d, columns=False))
        slope = None
        if gradient is not None:
            slope = self._scatter(check_vector(gradient, self.d, columns=False))
        step = torch.zeros(mask.shape, dtype=self.dtype, device=self.device)

        def of(part: slice) -> None:
            blocks = self._matrices(part, torch.float64)
            kept = KeptBlocks.of(blocks, mask[part])
            factor = self._resolved_factor(kept.matrix)
            force = (blocks @ values[part].double())[..., 0]
            if slope is not None:
                force = force - slope[part, :, 0].double()
            solved = torch.cholesky_solve(kept.gather(force)[..., None], factor)[..., 0]
            step[part].scatter_(1, kept.order, solved.to(step.dtype))

        def by_kernel(blocks: PackedBlocks, part: slice) -> Tensor | None:
            slopes = None if slope is None else slope[part, :, 0]
            given = mask[part], values[part, :, 0], slopes
            return blocks.compensated(part, self.damping, RESOLVED_SHARE, *given)

        self._fill(step, of, by_kernel)
        return check_held(self._padding.gather(step)[keep], "The update")


class _Inverse(NamedTuple):
    """The inverses (c, s, s) of the blocks from `first` on."""

    first: int
    inverse: Tensor


def _pairs(flags: Tensor) -> Tensor:
    """(g, s) bool -> (g, s, s): whether both weights of a pair are flagged."""
    return flags[:, :, None] & flags[:, None, :]
