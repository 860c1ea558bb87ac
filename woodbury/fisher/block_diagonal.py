"""BlockDiagonal: any Fishers side by side, and the choice of form for dense blocks of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher
from woodbury.fisher.checks import check_groups, check_keep, check_vector


@dataclass(frozen=True, eq=False)
class BlockDiagonal(Fisher):
    """F = diag(F₁, F₂, …), each part a Fisher on its own run of weights  (eq. 11)."""

    parts: tuple[Fisher, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise WoodburyError("A block-diagonal Fisher has no parts: give at least one.")
        if (
            len({part.dtype for part in self.parts}) > 1
            or len({part.device for part in self.parts}) > 1
        ):
            raise WoodburyError(
                "The parts of a block-diagonal Fisher differ in dtype or device: make them equal."
            )

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
        yield from zip(
            self.parts, check_vector(v, self.d).split([part.d for part in self.parts]), strict=True
        )

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
            blocks[mine] = self.parts[index].inverse_blocks(
                groups[mine] - (self._ends[index] - self.parts[index].d)
            )
        for row in (
            (~whole).nonzero()[:, 0].tolist()
        ):  # a group across parts: nothing couples its pieces
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
        return torch.cat(
            [part.conditional(own) if bool(own.any()) else part.diagonal() for part, own in parts]
        )

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
            [None] * len(sizes)
            if gradient is None
            else check_vector(gradient, self.d).split(sizes),
            strict=True,
        )
        return torch.cat(
            [
                part.compensate(own, gone, slope)
                for part, own, gone, slope in pieces
                if bool(own.any())
            ]
        )
