"""OwnColumns: a rank's own part of an operator whose columns are spread over ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from woodbury.fisher.base import Fisher
from woodbury.fisher.checks import check_mask, check_vector
from woodbury.fisher.lowrank import LowRank
from woodbury.linalg.ranks import Ranks


@dataclass(frozen=True, eq=False, repr=False)
class OwnColumns(Fisher):
    """F over ranks, of which each takes and gives the entries of its own columns.

    What it says to the others are (m, m) and (m,) sums where the columns are coupled by rows, and
    single numbers. Every rank calls the same operations in the same order. A rank may have no
    weight, and may keep none.

    Attributes:
        local: Of this rank's columns: a LowRank with the group's ranks, or blocks that do not reach
            into those of another rank; None where blocks leave this rank without a weight.
        bounds: (ranks + 1), where the columns of each rank begin; the last is the d of all.
        ranks: The ranks.
        damping: λ > 0.
        like: An empty tensor of the dtype and device of the results.
    """

    local: Fisher | None
    bounds: tuple[int, ...]
    ranks: Ranks
    damping: float
    like: Tensor

    @property
    def own(self) -> slice:
        """Where this rank's columns lie among those of all."""
        return slice(self.bounds[self.ranks.rank], self.bounds[self.ranks.rank + 1])

    @property
    def d(self) -> int:
        """The number of weights of this rank; there may be none."""
        return self.own.stop - self.own.start

    @property
    def dtype(self) -> torch.dtype:
        """Of the results."""
        return self.like.dtype

    @property
    def device(self) -> torch.device:
        """Of the results."""
        return self.like.device

    @property
    def is_coupled(self) -> bool:
        """Whether rows couple the columns of the ranks, which then sum inside each operation."""
        return isinstance(self.local, LowRank) and self.local.group is not None

    def __matmul__(self, v: Tensor) -> Tensor:
        """F v: one sum of (m,) numbers."""
        v = check_vector(v, self.d)
        return self._of_own(lambda local: local @ v, v.shape[1:])

    def solve(self, v: Tensor) -> Tensor:
        """F⁻¹ v: sums of (m, m) once and (m,) numbers."""
        v = check_vector(v, self.d)
        return self._of_own(lambda local: local.solve(v), v.shape[1:])

    def quadratic_form(self, v: Tensor) -> float:
        """vᵀFv of all ranks."""
        v = check_vector(v, self.d, columns=False)
        return self._summed(lambda local: local.quadratic_form(v))

    def diagonal(self) -> Tensor:
        """diag(F)."""
        return self._of_own(lambda local: local.diagonal())

    def inverse_diagonal(self) -> Tensor:
        """diag(F⁻¹)."""
        return self._of_own(lambda local: local.inverse_diagonal())

    def inverse_blocks(self, groups: Tensor) -> Tensor:
        """[F⁻¹]_QQ of groups of this rank's weights."""
        size = groups.shape[1]
        return self._of_own(lambda local: local.inverse_blocks(groups), (size, size))

    def restrict(self, keep: Tensor) -> OwnColumns:
        """F_KK: each rank keeps its own columns of K."""
        keep = check_mask(keep, (self.d,))
        sizes = self.counts(keep)
        local = self.local
        if local is not None:
            local = local.restrict(keep) if self._takes_part(keep) else None
        bounds = tuple(accumulate(sizes, initial=0))
        return OwnColumns(local, bounds, self.ranks, self.damping, self.like)

    def with_damping(self, damping: float) -> OwnColumns:
        """The same columns under another damping."""
        local = None if self.local is None else self.local.with_damping(damping)
        return OwnColumns(local, self.bounds, self.ranks, damping, self.like)

    def logdet(self) -> float:
        """The logarithm of the determinant, log det F, of all ranks."""
        return self._summed(lambda local: local.logdet())

    def compensate(self, keep: Tensor, removed: Tensor, gradient: Tensor | None = None) -> Tensor:
        """F_KK⁻¹ (F_KQ w_Q − g_K)  (eq. 9, 12)."""
        keep = check_mask(keep, (self.d,))
        removed = check_vector(removed, self.d, columns=False)
        if not self._takes_part(keep):
            return self.like.new_zeros(0)
        return self._of_own(lambda local: local.compensate(keep, removed, gradient))

    def conditional_curvature(self, keep: Tensor) -> Tensor:
        """The curvature along each weight when the kept ones may move  (eq. 57)."""
        keep = check_mask(keep, (self.d,))
        if self._takes_part(keep):
            return self._of_own(lambda local: local.conditional_curvature(keep))
        return self.diagonal()  # nothing that is kept explains these blocks

    def spectral(self) -> OwnColumns:
        """The same operator, whose inverse diagonal under another damping costs less  (eq. 60)."""
        local = self.local.spectral() if isinstance(self.local, LowRank) else self.local
        return OwnColumns(local, self.bounds, self.ranks, self.damping, self.like)

    def counts(self, chosen: Tensor) -> list[int]:
        """How many weights of each rank are chosen.

        Args:
            chosen: (own d,) bool.

        Returns:
            A number for each rank, the same list on all.
        """
        own = torch.tensor([int(chosen.count_nonzero())])
        return [int(count) for count in self.ranks.all_gather(own)]

    def _takes_part(self, keep: Tensor) -> bool:
        """Whether this rank has something to do: alone it may keep none, others need its sums."""
        return self.is_coupled or (self.local is not None and bool(keep.any()))

    def _of_own(self, compute: Callable[[Fisher], Tensor], shape: tuple[int, ...] = ()) -> Tensor:
        """What the local operator gives; nothing where there is none."""
        if self.local is None:
            return self.like.new_zeros(0, *shape)
        return compute(self.local).to(self.dtype)

    def _summed(self, compute: Callable[[Fisher], float]) -> float:
        """A number that is one sum over all ranks; those of coupled columns have summed already."""
        value = 0.0 if self.local is None else compute(self.local)
        if self.is_coupled:
            return value
        return float(self.ranks.sum(torch.tensor([value], dtype=torch.float64))[0])
