"""BlockDiagonal: any Fishers side by side, and the choice of form for dense blocks of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.explicit import Dense
from woodbury.fisher.lowrank import LowRank, check_weights
from woodbury.fisher.operator import Fisher, check_finite, check_groups, check_keep, check_vector


@dataclass(frozen=True, eq=False)
class BlockDiagonal(Fisher):
    """F = diag(F₁, F₂, …), each part a Fisher on its own run of weights  (eq. 11)."""

    parts: tuple[Fisher, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise WoodburyError("A block-diagonal Fisher has no parts: give at least one.")
        if len({part.dtype for part in self.parts}) > 1 or len({part.device for part in self.parts}) > 1:
            raise WoodburyError("The parts of a block-diagonal Fisher differ in dtype or device: make them equal.")

    @property
    def damping(self) -> float:  # type: ignore[override]
        """The smallest damping of the parts."""
        return min(part.damping for part in self.parts)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(part.d for part in self.parts))

    @property
    def d(self) -> int:
        return self._ends[-1]

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    def _split(self, v: Tensor) -> Iterator[tuple[Fisher, Tensor]]:
        yield from zip(self.parts, check_vector(v, self.d).split([part.d for part in self.parts]), strict=True)

    def _each(self, verb: Callable[[Fisher], Tensor]) -> Tensor:
        return torch.cat([verb(part) for part in self.parts])

    def __matmul__(self, v: Tensor) -> Tensor:
        return torch.cat([part @ own for part, own in self._split(v)])

    def solve(self, v: Tensor) -> Tensor:
        return torch.cat([part.solve(own) for part, own in self._split(v)])

    def diagonal(self) -> Tensor:
        return self._each(lambda part: part.diagonal())

    def inverse_diagonal(self) -> Tensor:
        return self._each(lambda part: part.inverse_diagonal())

    def inverse_blocks(self, groups: Tensor) -> Tensor:
        ends = torch.tensor(self._ends, device=groups.device)
        part_of = torch.searchsorted(ends, check_groups(groups, self.d), right=True)
        blocks = torch.zeros(*groups.shape, groups.shape[1], dtype=self.dtype, device=self.device)
        whole = (part_of == part_of[:, :1]).all(1)
        for index in part_of[whole][:, :1].unique().tolist():
            mine = whole & (part_of[:, 0] == index)
            blocks[mine] = self.parts[index].inverse_blocks(groups[mine] - (self._ends[index] - self.parts[index].d))
        for row in (~whole).nonzero()[:, 0].tolist():  # a group across parts: nothing couples its pieces
            for index in part_of[row].unique().tolist():
                own = (part_of[row] == index).nonzero()[:, 0]
                local = groups[row, own] - (self._ends[index] - self.parts[index].d)
                blocks[row, own[:, None], own] = self.parts[index].inverse_blocks(local[None])[0]
        return blocks

    def restrict(self, keep: Tensor) -> BlockDiagonal:
        pieces = check_keep(keep, self.d).split([part.d for part in self.parts])
        parts = zip(self.parts, pieces, strict=True)
        return BlockDiagonal(tuple(part.restrict(own) for part, own in parts if bool(own.any())))

    def conditional(self, keep: Tensor) -> Tensor:
        pieces = check_keep(keep, self.d).split([part.d for part in self.parts])
        parts = zip(self.parts, pieces, strict=True)
        return torch.cat([part.conditional(own) if bool(own.any()) else part.diagonal() for part, own in parts])

    def with_damping(self, damping: float) -> BlockDiagonal:
        return replace(self, parts=tuple(part.with_damping(damping) for part in self.parts))

    def logdet(self) -> float:
        return sum(part.logdet() for part in self.parts)

    def compensate(self, keep: Tensor, removed: Tensor, gradient: Tensor | None = None) -> Tensor:
        sizes = [part.d for part in self.parts]
        pieces = zip(
            self.parts,
            check_keep(keep, self.d).split(sizes),
            check_vector(removed, self.d).split(sizes),
            [None] * len(sizes) if gradient is None else check_vector(gradient, self.d).split(sizes),
            strict=True,
        )
        return torch.cat([part.compensate(own, gone, slope) for part, own, gone, slope in pieces if bool(own.any())])


def dense_blocks(rows: Tensor, sizes: Sequence[int], damping: float, weights: Tensor | None = None) -> Fisher:
    """The blocks of damping·I + (1/m) Σ wᵢ gᵢ gᵢᵀ on consecutive runs of weights, each in its cheaper form  (eq. 11).

    rows (m, d); sizes: lengths of the runs, summing to d. Runs shorter than about m are (s, s) matrices in one batch
    (primal); longer ones keep their columns of the rows and an (m, m) factor (dual). Both compute in float64 what is
    small, and return the dtype of the rows, float32 for halves.
    """
    if rows.ndim != 2 or 0 in rows.shape:
        raise WoodburyError(f"The rows have shape {tuple(rows.shape)}: give (m, d) with at least one row.")
    if sum(sizes) != rows.shape[1] or min(sizes, default=0) < 1:
        raise WoodburyError(f"Blocks of {sum(sizes)} weights in all cannot tile rows of {rows.shape[1]} weights.")
    if is_primal(len(rows), sizes):
        check_finite(rows, "A matrix of rows")
        scale = None if weights is None else check_weights(weights, len(rows)).sqrt()
        return summed_blocks([rows], sizes, damping, scale)
    parts = rows.split(list(sizes), dim=1)
    return BlockDiagonal(tuple(LowRank(part, damping, weights) for part in parts))


def is_primal(m: int, sizes: Sequence[int]) -> bool:
    """Whether blocks of m rows are cheaper as (s, s) matrices than through (m, m) ones  (eq. 11)."""
    s = max(sizes)
    primal, dual = m * s**2 + s**3, 2 * m**2 * s + m**3  # multiplications of Gram, factor and inverse of one block
    return primal <= dual or s <= 128


def summed_blocks(chunks: Iterable[Tensor], sizes: Sequence[int], damping: float, scale: Tensor | None = None) -> Dense:
    """The primal form of rows that come in chunks (c, d), of which one at a time is in memory, besides s × d sums in float64.

    scale: what to multiply the rows by, (c,), where they come in one chunk.
    """
    s, b, m = max(sizes), len(sizes), 0
    curvature, valid, dtype = torch.empty(0), torch.empty(0), torch.float32
    for chunk in chunks:
        if not m:
            valid = torch.arange(s, device=chunk.device) < torch.tensor(sizes, device=chunk.device)[:, None]
            curvature = torch.zeros(b, s, s, dtype=torch.float64, device=chunk.device)
            dtype = torch.promote_types(chunk.dtype, torch.float32)
        _add_products(curvature, chunk, valid, scale)
        m += len(chunk)
    return Dense(curvature.div_(m), damping, None if bool(valid.all()) else valid, dtype)


def _add_products(curvature: Tensor, rows: Tensor, valid: Tensor, scale: Tensor | None) -> None:
    """curvature (b, s, s) += Σ g gᵀ of every block, a few blocks at a time, as float64 columns of all would not fit a cache."""
    at_once, end = max(1, 4096 // valid.shape[1]), 0
    for start in range(0, len(curvature), at_once):
        part = slice(start, start + at_once)
        begin, end = end, end + int(valid[part].sum())
        columns = _padded(rows[:, begin:end], valid[part]).permute(1, 0, 2).contiguous().double()
        columns = columns if scale is None else columns * scale.double()[:, None]
        curvature[part].baddbmm_(columns.mT, columns)


def _padded(columns: Tensor, valid: Tensor) -> Tensor:
    """(m, valid.sum()) -> (m, *valid.shape), zeros where not valid."""
    if bool(valid.all()):
        return columns.reshape(len(columns), *valid.shape)
    padded = columns.new_zeros(len(columns), *valid.shape)
    padded[:, valid] = columns
    return padded
