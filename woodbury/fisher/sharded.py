"""Sharded: an operator whose columns are spread over ranks; vectors are whole on each."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from woodbury.fisher.base import Fisher
from woodbury.fisher.checks import check_groups, check_keep, check_vector
from woodbury.fisher.lowrank import LowRank
from woodbury.fisher.own_columns import OwnColumns
from woodbury.linalg.ranks import Ranks

COLUMNS_AT_ONCE = 4096
"""Columns of the rows that are gathered at once."""


@dataclass(frozen=True, eq=False, repr=False)
class Sharded(Fisher):
    """F of which each rank holds some columns; it takes and gives vectors of all d weights.

    It cuts a vector, asks the rank's own columns, and gathers the d numbers of the result. Every
    rank calls the same operations in the same order, and gets the same bits. Who has no need of
    whole vectors asks `part`.

    Attributes:
        part: This rank's own columns.
    """

    part: OwnColumns

    @classmethod
    def of(
        cls, local: Fisher | None, bounds: tuple[int, ...] | list[int], damping: float, like: Tensor
    ) -> Sharded:
        """An operator over the current ranks."""
        ranks = Ranks.current()
        return cls(OwnColumns(local, tuple(bounds), ranks, damping, like.new_empty(0)))

    @property
    def damping(self) -> float:  # type: ignore[override]
        """λ > 0."""
        return self.part.damping

    @property
    def d(self) -> int:
        """The number of weights, of all ranks."""
        return self.part.bounds[-1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the results."""
        return self.part.dtype

    @property
    def device(self) -> torch.device:
        """Of the results."""
        return self.part.device

    def __matmul__(self, v: Tensor) -> Tensor:
        """F v: one sum of (m,) numbers, and d numbers that are gathered."""
        v = check_vector(v, self.d)
        return self._gathered(self.part @ v[self.part.own])

    def solve(self, v: Tensor) -> Tensor:
        """F⁻¹ v: sums of (m, m) once and (m,) numbers, and d numbers that are gathered."""
        v = check_vector(v, self.d)
        return self._gathered(self.part.solve(v[self.part.own]))

    def quadratic_form(self, v: Tensor) -> float:
        """vᵀFv."""
        v = check_vector(v, self.d, columns=False)
        return self.part.quadratic_form(v[self.part.own])

    def diagonal(self) -> Tensor:
        """diag(F), gathered."""
        return self._gathered(self.part.diagonal())

    def inverse_diagonal(self) -> Tensor:
        """diag(F⁻¹), gathered."""
        return self._gathered(self.part.inverse_diagonal())

    def inverse_blocks(self, groups: Tensor) -> Tensor:
        """[F⁻¹]_QQ: a group is computed where its columns are, or of columns that are gathered."""
        groups = check_groups(groups, self.d)
        part, own = self.part, self.part.own
        size = groups.shape[1]
        mine = (groups >= own.start) & (groups < own.stop)
        blocks = torch.zeros(len(groups), size, size, dtype=self.dtype, device=self.device)
        if part.local is not None and own.stop > own.start:
            # What lies with other ranks is read as a weight of this one, and left out afterwards.
            here = torch.where(mine, groups - own.start, 0)
            inside = mine.all(1) if part.is_coupled else mine.any(1)
            found = part.local.inverse_blocks(here[inside])
            both = mine[inside][:, :, None] & mine[inside][:, None, :]
            blocks[inside] = found.masked_fill(~both, 0)
        blocks = part.ranks.sum(blocks)
        if part.is_coupled:
            whole = part.ranks.sum(mine.all(1).to(torch.uint8)).bool()
            if not bool(whole.all()):
                blocks[~whole] = self._across(groups[~whole])
        return blocks

    def _across(self, groups: Tensor) -> Tensor:
        """The blocks of groups whose columns lie with several ranks, from columns of all."""
        part, own = self.part, self.part.own
        assert isinstance(part.local, LowRank)
        size = groups.shape[1]
        blocks = torch.empty(len(groups), size, size, dtype=self.dtype, device=self.device)
        at_once = max(1, COLUMNS_AT_ONCE // size)
        for start in range(0, len(groups), at_once):
            chunk = groups[start : start + at_once]
            flat = chunk.flatten()
            mine = (flat >= own.start) & (flat < own.stop)
            columns = torch.zeros(part.local.m, len(flat), dtype=torch.float64, device=self.device)
            columns[:, mine] = part.local.whitened(flat[mine] - own.start)
            white = part.ranks.sum(columns).view(part.local.m, len(chunk), size).permute(1, 0, 2)
            identity = (chunk[:, :, None] == chunk[:, None, :]).double()
            blocks[start : start + at_once] = (identity - white.mT @ white) / self.damping
        return blocks

    def restrict(self, keep: Tensor) -> Sharded:
        """F_KK: each rank keeps its own columns of K."""
        keep = check_keep(keep, self.d)
        return Sharded(self.part.restrict(keep[self.part.own]))

    def with_damping(self, damping: float) -> Sharded:
        """The same columns under another damping."""
        return Sharded(self.part.with_damping(damping))

    def logdet(self) -> float:
        """The logarithm of the determinant, log det F."""
        return self.part.logdet()

    def compensate(self, keep: Tensor, removed: Tensor, gradient: Tensor | None = None) -> Tensor:
        """F_KK⁻¹ (F_KQ w_Q − g_K), gathered  (eq. 9, 12)."""
        keep = check_keep(keep, self.d)
        removed = check_vector(removed, self.d, columns=False)
        own = self.part.own
        mine = None if gradient is None else gradient[own]
        step = self.part.compensate(keep[own], removed[own], mine)
        parts = pairwise(self.part.bounds)
        sizes = [int(keep[start:stop].count_nonzero()) for start, stop in parts]
        return self.part.ranks.all_gather_parts(step, sizes)

    def conditional_curvature(self, keep: Tensor) -> Tensor:
        """The curvature along each weight when the kept ones may move, gathered  (eq. 57)."""
        keep = check_keep(keep, self.d)
        return self._gathered(self.part.conditional_curvature(keep[self.part.own]))

    def spectral(self) -> Sharded:
        """The same operator, whose inverse diagonal under another damping costs less  (eq. 60)."""
        return Sharded(self.part.spectral())

    def _gathered(self, own: Tensor) -> Tensor:
        """The results of all ranks in one tensor."""
        sizes = [stop - start for start, stop in pairwise(self.part.bounds)]
        return self.part.ranks.all_gather_parts(own, sizes)
