"""BlockDiagonal: any Fishers side by side, each on its own run of weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from woodbury.errors import WoodburyError, WrongType
from woodbury.fisher.base import Fisher
from woodbury.fisher.checks import check_groups, check_keep, check_vector


@dataclass(frozen=True, eq=False, repr=False)
class BlockDiagonal(Fisher):
    """F = diag(F₁, F₂, …), each part a Fisher on consecutive weights  (eq. 11).

    Attributes:
        parts: At least one operator, of any structure, in the order of the weights; all of one
            dtype and device.

    Raises:
        WoodburyError: If there is no part, or their dtypes or devices differ.

    Example:
        >>> import torch
        >>> import woodbury
        >>> first = woodbury.fisher.Diagonal(torch.tensor([1.0]), damping=1.0)
        >>> second = woodbury.fisher.LowRank(torch.tensor([[1.0, 0.0]]), damping=0.5)
        >>> woodbury.fisher.BlockDiagonal((first, second)).diagonal()
        tensor([2.0000, 1.5000, 0.5000])
    """

    parts: tuple[Fisher, ...]

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "parts", tuple(self.parts))
        except TypeError as error:
            raise WrongType(
                f"parts is a {type(self.parts).__name__}: give a tuple of Fishers."
            ) from error
        for part in self.parts:
            if not isinstance(part, Fisher):
                raise WrongType(f"A part is a {type(part).__name__}: give Fishers, such as Dense.")
        if not self.parts:
            raise WoodburyError("A block-diagonal Fisher has no parts: give at least one.")
        dtypes = {part.dtype for part in self.parts}
        devices = {part.device for part in self.parts}
        if len(dtypes) > 1 or len(devices) > 1:
            raise WoodburyError(
                "The parts of a block-diagonal Fisher differ in dtype or device: make them equal."
            )

    @property
    def damping(self) -> float:  # type: ignore[override]
        """The smallest damping of the parts."""
        return min(part.damping for part in self.parts)

    @cached_property
    def _sizes(self) -> list[int]:
        """The number of weights of each part."""
        return [part.d for part in self.parts]

    @cached_property
    def _ends(self) -> list[int]:
        """Where the weights of each part end."""
        return list(accumulate(self._sizes))

    @property
    def d(self) -> int:
        """The number of weights of all parts."""
        return self._ends[-1]

    @property
    def dtype(self) -> torch.dtype:
        """That of the parts."""
        return self.parts[0].dtype

    @property
    def device(self) -> torch.device:
        """That of the parts."""
        return self.parts[0].device

    def _split(self, v: Tensor) -> Iterator[tuple[Fisher, Tensor]]:
        """Each part with its weights' entries of v."""
        yield from zip(self.parts, v.split(self._sizes), strict=True)

    def _masks(self, keep: Tensor) -> Iterator[tuple[Fisher, Tensor]]:
        """Each part with the mask of its weights."""
        yield from zip(self.parts, check_keep(keep, self.d).split(self._sizes), strict=True)

    def _joined(self, pieces: Iterator[Tensor], like: torch.Size | None = None) -> Tensor:
        """The parts' pieces of a result, each written where it belongs as it comes."""
        shape = self.d, *(() if like is None else like[1:])
        result = torch.empty(shape, dtype=self.dtype, device=self.device)
        for end, size, piece in zip(self._ends, self._sizes, pieces, strict=True):
            result[end - size : end] = piece
        return result

    def __matmul__(self, v: Tensor) -> Tensor:
        """F v, part by part."""
        v = check_vector(v, self.d)
        return self._joined((part @ entries for part, entries in self._split(v)), v.shape)

    def solve(self, v: Tensor) -> Tensor:
        """F⁻¹ v, part by part."""
        v = check_vector(v, self.d)
        return self._joined((part.solve(entries) for part, entries in self._split(v)), v.shape)

    def diagonal(self) -> Tensor:
        """diag(F)."""
        return self._joined(part.diagonal() for part in self.parts)

    def inverse_diagonal(self) -> Tensor:
        """diag(F⁻¹)."""
        return self._joined(part.inverse_diagonal() for part in self.parts)

    def inverse_blocks(self, groups: Tensor) -> Tensor:
        """[F⁻¹]_QQ; 0 between weights of different parts. Groups inside one part are batched."""
        groups = check_groups(groups, self.d)
        ends = torch.tensor(self._ends, device=groups.device)
        part_of = torch.searchsorted(ends, groups, right=True)
        blocks = torch.zeros(*groups.shape, groups.shape[1], dtype=self.dtype, device=self.device)
        inside = (part_of == part_of[:, :1]).all(1)
        for index in part_of[inside][:, :1].unique().tolist():
            members = inside & (part_of[:, 0] == index)
            local = groups[members] - self._start(index)
            blocks[members] = self.parts[index].inverse_blocks(local)
        for row in (~inside).nonzero()[:, 0].tolist():
            # A group across parts: nothing couples its pieces, each is a group of its part.
            for index in part_of[row].unique().tolist():
                members = (part_of[row] == index).nonzero()[:, 0]
                local = groups[row, members] - self._start(index)
                piece = self.parts[index].inverse_blocks(local[None])[0]
                blocks[row, members[:, None], members] = piece
        return blocks

    def _start(self, index: int) -> int:
        return self._ends[index] - self._sizes[index]

    def restrict(self, keep: Tensor) -> BlockDiagonal:
        """F_KK; parts of which nothing is kept vanish."""
        return BlockDiagonal(
            tuple(part.restrict(mask) for part, mask in self._masks(keep) if bool(mask.any()))
        )

    def conditional_curvature(self, keep: Tensor) -> Tensor:
        """Part by part; where nothing of a part is kept, its diagonal."""
        return torch.cat(
            [
                part.conditional_curvature(mask) if bool(mask.any()) else part.diagonal()
                for part, mask in self._masks(keep)
            ]
        )

    def with_damping(self, damping: float) -> BlockDiagonal:
        """All parts under one damping."""
        return replace(self, parts=tuple(part.with_damping(damping) for part in self.parts))

    def logdet(self) -> float:
        """The sum of the parts' log det F."""
        return sum(part.logdet() for part in self.parts)

    def compensate(self, keep: Tensor, removed: Tensor, gradient: Tensor | None = None) -> Tensor:
        """The OBS update of the kept weights, part by part."""
        keep = check_keep(keep, self.d)
        removed_of = check_vector(removed, self.d, columns=False).split(self._sizes)
        gradient_of: list[Tensor | None] = [None] * len(self.parts)
        if gradient is not None:
            gradient = check_vector(gradient, self.d, columns=False)
            gradient_of = list(gradient.split(self._sizes))
        result = torch.empty(int(keep.sum()), dtype=self.dtype, device=self.device)
        start = 0
        for index, (part, mask) in enumerate(self._masks(keep)):
            if bool(mask.any()):
                step = part.compensate(mask, removed_of[index], gradient_of[index])
                result[start : start + len(step)] = step
                start += len(step)
        return result
