"""Dense: curvature that is written out, as one matrix or as a stack of blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

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
from woodbury.fisher.padded import KeptBlocks, Padding
from woodbury.linalg.cholesky import damped_cholesky
from woodbury.linalg.precision import wide_dtype

ROWS_AT_ONCE = 4096
"""Rows of all blocks that are worked on at once: whole, an inverse takes as much memory as F."""


GROUPS_AT_ONCE = 1 << 16
"""Groups of weights whose inverse elements are read at once."""


@dataclass(frozen=True, eq=False)
class Dense(Fisher):
    """F = curvature + damping·I: one symmetric matrix, or a stack of equal blocks  (eq. 4).

    Factors and solves are in float64. One block is Optimal Brain Surgeon (Hassibi & Stork 1992),
    many are WoodFisher (Singh & Alistarh 2020).

    Attributes:
        curvature: (d, d), or (b, s, s) for b blocks of s weights each; any float dtype.
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

    curvature: Tensor
    damping: float
    valid: Tensor | None = None
    result: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_damping(self.damping)
        shape = self.curvature.shape
        if len(shape) not in (2, 3) or shape[-1] != shape[-2] or 0 in shape:
            raise WoodburyError(
                f"A dense curvature has shape {tuple(shape)}: "
                "give (d, d), or (b, s, s) for b blocks."
            )
        check_finite(self.curvature, "The dense curvature")
        self._check_symmetry()
        if self.valid is not None and (
            self.valid.dtype != torch.bool or self.valid.shape != self._blocks.shape[:2]
        ):
            raise WoodburyError(
                f"valid has shape {tuple(self.valid.shape)}: "
                f"give bool of shape {tuple(self._blocks.shape[:2])}."
            )

    def _check_symmetry(self) -> None:
        allowed = torch.finfo(self.curvature.dtype).eps ** 0.5
        for part in self._parts():
            blocks = self._blocks[part]
            difference = (blocks - blocks.mT).abs_().amax((1, 2))
            if bool((difference > allowed * blocks.abs().amax((1, 2))).any()):
                raise WoodburyError("The dense curvature is not symmetric: give (1/m) Σ g gᵀ.")

    @property
    def _blocks(self) -> Tensor:
        """(b, s, s)."""
        return self.curvature if self.curvature.ndim == 3 else self.curvature[None]

    @cached_property
    def _padding(self) -> Padding:
        b, s, _ = self._blocks.shape
        return Padding(b, s, self.valid, self.device)

    @cached_property
    def _factor(self) -> Tensor:
        """(b, s, s) lower triangular: L Lᵀ = F, padding included."""
        return damped_cholesky(self._blocks.double(), self.damping)

    def _parts(self, count: int | None = None) -> Iterator[slice]:
        """Slices of a few blocks, of all or of `count`, as large as temporaries may be."""
        at_once = self._blocks_at_once
        for start in range(0, len(self._blocks) if count is None else count, at_once):
            yield slice(start, start + at_once)

    @property
    def _blocks_at_once(self) -> int:
        return max(1, ROWS_AT_ONCE // self._blocks.shape[1])

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
        return wide_dtype(self.curvature.dtype)

    @property
    def device(self) -> torch.device:
        """That of the curvature."""
        return self.curvature.device

    def _scatter(self, v: Tensor) -> Tensor:
        """(d,) or (d, k) -> (b, s, 1) or (b, s, k), zeros in the padding."""
        return self._padding.scatter(check_vector(v, self.d).reshape(self.d, -1))

    def _gather(self, padded: Tensor, v: Tensor) -> Tensor:
        """(b, s, k) -> the shape of v."""
        return self._padding.gather(padded).to(self.dtype).reshape(v.shape)

    def __matmul__(self, v: Tensor) -> Tensor:
        """F v, O(b s²) for each column."""
        columns = self._scatter(v.to(self._wide))
        return self._gather(self._blocks.to(self._wide) @ columns + self.damping * columns, v)

    def solve(self, v: Tensor) -> Tensor:
        """F⁻¹ v by the Cholesky factor: O(b s³) once, O(b s²) for each column."""
        return self._gather(torch.cholesky_solve(self._scatter(v.double()), self._factor), v)

    def diagonal(self) -> Tensor:
        """diag(F), damping included."""
        diagonal = self._padding.gather(self._blocks.diagonal(dim1=1, dim2=2))
        return (diagonal.to(self._wide) + self.damping).to(self.dtype)

    def inverse_diagonal(self) -> Tensor:
        """diag(F⁻¹), O(b s³) once."""
        return self._inverse_diagonal

    @cached_property
    def _inverse_diagonal(self) -> Tensor:
        chunks = [inverse.diagonal(dim1=1, dim2=2) for _, inverse in self._inverses()]
        return self._padding.gather(torch.cat(chunks)).to(self.dtype)

    def _inverses(self, wanted: Tensor | None = None) -> Iterator[_Inverse]:
        """The inverses of a few blocks at a time: of those `wanted`, or of all."""
        at_once = self._blocks_at_once
        starts = [part.start for part in self._parts()]
        if wanted is not None:
            starts = (wanted.unique() // at_once * at_once).unique().tolist()
        for start in starts:
            factor = self._factor[start : start + at_once]
            yield _Inverse(start, torch.cholesky_inverse(factor))

    def inverse_blocks(self, groups: Tensor) -> Tensor:
        """[F⁻¹]_QQ; 0 between weights of different blocks."""
        size = self._blocks.shape[1]
        places = self._padding.places[check_groups(groups, self.d)]
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
        return (result * same_block).to(self.dtype)

    def restrict(self, keep: Tensor) -> Dense:
        """F_KK: every block without its removed rows and columns, padded to the largest."""
        mask = self._padding.scatter(check_keep(keep, self.d))
        not_empty = mask.any(1)
        used = not_empty.nonzero()[:, 0]
        mask = mask[not_empty]
        width = int(mask.sum(1).max())
        curvature = self.curvature.new_empty(len(used), width, width)
        valid = mask.new_empty(len(used), width)
        for part in self._parts(len(used)):
            kept = KeptBlocks.of(self._blocks[used[part]], mask[part], width)
            curvature[part] = kept.matrix
            valid[part] = kept.valid
        return Dense(curvature, self.damping, None if bool(valid.all()) else valid, self.result)

    def conditional_curvature(self, keep: Tensor) -> Tensor:
        """1/[F_KK⁻¹]_qq for kept weights, Schur complements for removed ones  (eq. 57)."""
        chunks = []
        mask = self._padding.scatter(check_keep(keep, self.d))
        for part in self._parts():
            blocks = self._blocks[part].double()
            kept = KeptBlocks.of(blocks, mask[part])
            inverse = torch.cholesky_inverse(damped_cholesky(kept.matrix, self.damping))
            # F_qq − F_qK F_KK⁻¹ F_Kq for all q, with the columns F_Kq of every q in `coupling`.
            coupling = kept.gather(blocks)
            explained = (coupling * (inverse @ coupling)).sum(1)
            schur = blocks.diagonal(dim1=1, dim2=2) + self.damping - explained
            # For a kept q that is no Schur complement: put 1/[F_KK⁻¹]_qq there instead.
            pivots = 1 / inverse.diagonal(dim1=1, dim2=2)
            pivots = torch.where(kept.valid, pivots, schur.gather(1, kept.order))
            chunks.append(schur.scatter(1, kept.order, pivots))
        return self._padding.gather(torch.cat(chunks)).to(self.dtype)

    def with_damping(self, damping: float) -> Dense:
        """The same curvature under another damping; the factor is computed again."""
        return replace(self, damping=damping)

    def logdet(self) -> float:
        """The log det of the factor, less log damping for every place of the padding."""
        b, s, _ = self._blocks.shape
        total = 2 * self._factor.diagonal(dim1=1, dim2=2).log().sum()
        return float(total) - (b * s - self.d) * math.log(self.damping)

    def compensate(self, keep: Tensor, removed: Tensor, gradient: Tensor | None = None) -> Tensor:
        """F_KK⁻¹ (F_KQ w_Q − g_K), a few blocks at a time: all F_KK would take as much as F."""
        b, s, _ = self._blocks.shape
        mask = self._padding.scatter(check_keep(keep, self.d))
        values = self._scatter(removed.double())
        slope = torch.zeros_like(values) if gradient is None else self._scatter(gradient.double())
        step = torch.zeros(b, s, dtype=torch.float64, device=self.device)
        for part in self._parts():
            blocks = self._blocks[part].double()
            kept = KeptBlocks.of(blocks, mask[part])
            factor = damped_cholesky(kept.matrix, self.damping)
            force = kept.gather((blocks @ values[part] - slope[part])[..., 0])
            solved = torch.cholesky_solve(force[..., None], factor)[..., 0]
            step[part].scatter_(1, kept.order, solved)
        return self._padding.gather(step)[keep].to(self.dtype)


class _Inverse(NamedTuple):
    """The inverses (c, s, s) of the blocks from `first` on."""

    first: int
    inverse: Tensor


def _pairs(flags: Tensor) -> Tensor:
    """(g, s) bool -> (g, s, s): whether both weights of a pair are flagged."""
    return flags[:, :, None] & flags[:, None, :]
