"""Sharded: an operator whose columns are spread over ranks; vectors are whole on each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from woodbury.fisher.base import Fisher
from woodbury.fisher.checks import check_groups, check_keep, check_vector
from woodbury.fisher.lowrank import LowRank
from woodbury.linalg.ranks import Ranks

COLUMNS_AT_ONCE = 4096
"""Columns of the rows that are gathered at once."""


@dataclass(frozen=True, eq=False, repr=False)
class Sharded(Fisher):
    """F of which each rank holds some columns; it takes and gives vectors of all d weights.

    A rank holds the rows of its own columns, or its own blocks. What it says to the others are the
    d numbers of a result, and (m, m) or (m,) sums where the columns are coupled by rows. Every rank
    calls the same operations in the same order, and gets the same bits.

    Attributes:
        local: Of this rank's columns: a LowRank with the group's ranks, or blocks that do not reach
            into those of another rank; None where blocks leave this rank without a weight.
        bounds: (ranks + 1), where the columns of each rank begin; the last is d.
        ranks: The ranks.
        damping: λ > 0.
        like: An empty tensor of the dtype and device of the results.
    """

    local: Fisher | None
    bounds: tuple[int, ...]
    ranks: Ranks
    damping: float
    like: Tensor

    @classmethod
    def of(
        cls, local: Fisher | None, bounds: tuple[int, ...] | list[int], damping: float, like: Tensor
    ) -> Sharded:
        """An operator over the current ranks."""
        return cls(local, tuple(bounds), Ranks.current(), damping, like.new_empty(0))

    @property
    def d(self) -> int:
        """The number of weights, of all ranks."""
        return self.bounds[-1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the results."""
        return self.like.dtype

    @property
    def device(self) -> torch.device:
        """Of the results."""
        return self.like.device

    @property
    def own(self) -> slice:
        """Where this rank's columns lie."""
        return slice(self.bounds[self.ranks.rank], self.bounds[self.ranks.rank + 1])

    @property
    def is_coupled(self) -> bool:
        """Whether rows couple the columns of the ranks, which then sum inside each operation."""
        return isinstance(self.local, LowRank) and self.local.group is not None

    def __matmul__(self, v: Tensor) -> Tensor:
        """F v: one sum of (m,) numbers, and d numbers that are gathered."""
        v = check_vector(v, self.d)
        return self._joined(lambda local: local @ v[self.own], v.shape[1:])

    def solve(self, v: Tensor) -> Tensor:
        """F⁻¹ v: sums of (m, m) once and (m,) numbers, and d numbers that are gathered."""
        v = check_vector(v, self.d)
        return self._joined(lambda local: local.solve(v[self.own]), v.shape[1:])

    def quadratic_form(self, v: Tensor) -> float:
        """vᵀFv."""
        v = check_vector(v, self.d, columns=False)
        return self._summed(lambda local: local.quadratic_form(v[self.own]))

    def diagonal(self) -> Tensor:
        """diag(F), gathered."""
        return self._joined(lambda local: local.diagonal())

    def inverse_diagonal(self) -> Tensor:
        """diag(F⁻¹), gathered."""
        return self._joined(lambda local: local.inverse_diagonal())

    def inverse_blocks(self, groups: Tensor) -> Tensor:
        """[F⁻¹]_QQ: a group is computed where its columns are, or of columns that are gathered."""
        groups = check_groups(groups, self.d)
        size = groups.shape[1]
        mine = (groups >= self.own.start) & (groups < self.own.stop)
        blocks = torch.zeros(len(groups), size, size, dtype=self.dtype, device=self.device)
        if self.local is not None and self.own.stop > self.own.start:
            # What lies with other ranks is read as a weight of this one, and left out afterwards.
            here = torch.where(mine, groups - self.own.start, 0)
            inside = mine.all(1) if self.is_coupled else mine.any(1)
            found = self.local.inverse_blocks(here[inside])
            both = mine[inside][:, :, None] & mine[inside][:, None, :]
            blocks[inside] = found.masked_fill(~both, 0)
        blocks = self.ranks.sum(blocks)
        if self.is_coupled:
            whole = self.ranks.sum(mine.all(1).to(torch.uint8)).bool()
            if not bool(whole.all()):
                blocks[~whole] = self._across(groups[~whole])
        return blocks

    def _across(self, groups: Tensor) -> Tensor:
        """The blocks of groups whose columns lie with several ranks, from columns of all."""
        assert isinstance(self.local, LowRank)
        size = groups.shape[1]
        blocks = torch.empty(len(groups), size, size, dtype=self.dtype, device=self.device)
        at_once = max(1, COLUMNS_AT_ONCE // size)
        for start in range(0, len(groups), at_once):
            chunk = groups[start : start + at_once]
            flat = chunk.flatten()
            mine = (flat >= self.own.start) & (flat < self.own.stop)
            columns = torch.zeros(self.local.m, len(flat), dtype=torch.float64, device=self.device)
            columns[:, mine] = self.local.whitened(flat[mine] - self.own.start)
            white = self.ranks.sum(columns).view(self.local.m, len(chunk), size).permute(1, 0, 2)
            identity = (chunk[:, :, None] == chunk[:, None, :]).double()
            blocks[start : start + at_once] = (identity - white.mT @ white) / self.damping
        return blocks

    def restrict(self, keep: Tensor) -> Sharded:
        """F_KK: each rank keeps its own columns of K."""
        keep = check_keep(keep, self.d)
        sizes = self._kept(keep)
        local = self.local
        if local is not None:
            keeps_some = self.is_coupled or sizes[self.ranks.rank]
            local = local.restrict(keep[self.own]) if keeps_some else None
        return Sharded(
            local, tuple(accumulate(sizes, initial=0)), self.ranks, self.damping, self.like
        )

    def with_damping(self, damping: float) -> Sharded:
        """The same columns under another damping."""
        local = None if self.local is None else self.local.with_damping(damping)
        return Sharded(local, self.bounds, self.ranks, damping, self.like)

    def logdet(self) -> float:
        """The logarithm of the determinant, log det F."""
        return self._summed(lambda local: local.logdet())

    def compensate(self, keep: Tensor, removed: Tensor, gradient: Tensor | None = None) -> Tensor:
        """F_KK⁻¹ (F_KQ w_Q − g_K), gathered  (eq. 9, 12)."""
        keep = check_keep(keep, self.d)
        removed = check_vector(removed, self.d, columns=False)
        sizes = self._kept(keep)
        own = self.own
        mine = None if gradient is None else gradient[own]
        step = self.like.new_zeros(0)
        if self.local is not None and (self.is_coupled or sizes[self.ranks.rank]):
            step = self.local.compensate(keep[own], removed[own], mine)
        return self.ranks.all_gather_parts(step.to(self.dtype), sizes)

    def conditional_curvature(self, keep: Tensor) -> Tensor:
        """The curvature along each weight when the kept ones may move, gathered  (eq. 57)."""
        keep = check_keep(keep, self.d)
        kept = keep[self.own]

        def curvature(local: Fisher) -> Tensor:
            if self.is_coupled or bool(kept.any()):
                return local.conditional_curvature(kept)
            return local.diagonal()  # nothing that is kept explains these blocks

        return self._joined(curvature)

    def spectral(self) -> Sharded:
        """The same operator, whose inverse diagonal under another damping costs less  (eq. 60)."""
        local = self.local.spectral() if isinstance(self.local, LowRank) else self.local
        return Sharded(local, self.bounds, self.ranks, self.damping, self.like)

    def _kept(self, keep: Tensor) -> list[int]:
        """How many weights of each rank are kept."""
        return [int(keep[start:stop].sum()) for start, stop in pairwise(self.bounds)]

    def _joined(self, compute: Callable[[Fisher], Tensor], columns: tuple[int, ...] = ()) -> Tensor:
        """The results of all ranks in one tensor."""
        sizes = [stop - start for start, stop in pairwise(self.bounds)]
        if self.local is None:
            part = self.like.new_zeros(0, *columns)
        else:
            part = compute(self.local).to(self.dtype)
        return self.ranks.all_gather_parts(part, sizes)

    def _summed(self, compute: Callable[[Fisher], float]) -> float:
        """A number that is one sum over all ranks; those of coupled columns have summed already."""
        value = 0.0 if self.local is None else compute(self.local)
        if self.is_coupled:
            return value
        return float(self.ranks.sum(torch.tensor([value], dtype=torch.float64))[0])
