"""Padded blocks: where weights lie in a stack of equal blocks, and the kept ones moved forward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

PLACES_AT_ONCE = 1 << 20
"""Places whose values are moved at once: an index takes twice the memory of a float32."""


@dataclass(frozen=True, eq=False)
class Padding:
    """Where d weights lie among the b·s places of b blocks, some of which are padding.

    Attributes:
        blocks: b.
        size: s, places of a block.
        valid: (b, s) bool, False where a place is padding; None where all are weights.
        device: Of the weights.

    Example:
        >>> import torch
        >>> valid = torch.tensor([[True, True], [True, False]])
        >>> padding = Padding(2, 2, valid, valid.device)
        >>> padding.scatter(torch.tensor([1, 2, 3]))
        tensor([[1, 2],
                [3, 0]])
        >>> padding.gather(torch.tensor([[1, 2], [3, 0]]))
        tensor([1, 2, 3])
    """

    blocks: int
    size: int
    valid: Tensor | None
    device: torch.device

    @cached_property
    def places(self) -> Tensor:
        """(d,) int64: the place of each weight among the b·s."""
        places = torch.arange(self.blocks * self.size, device=self.device)
        return places if self.valid is None else places[self.valid.flatten()]

    @cached_property
    def d(self) -> int:
        """The number of weights."""
        return self.blocks * self.size if self.valid is None else int(self.valid.sum())

    def scatter(self, values: Tensor) -> Tensor:
        """Values of the weights at their places.

        Args:
            values: (d,) or (d, k).

        Returns:
            (b, s) or (b, s, k), zeros in the padding.
        """
        shape = self.blocks, self.size, *values.shape[1:]
        if self.valid is None:
            return values.reshape(shape)
        padded = values.new_zeros(shape)
        for part, weights in self._parts(self.valid):
            padded[part][self.valid[part]] = values[weights]
        return padded

    def gather(self, padded: Tensor) -> Tensor:
        """The values at the weights' places.

        Args:
            padded: (b, s) or (b, s, k).

        Returns:
            (d,) or (d, k).
        """
        if self.valid is None:
            return padded.flatten(0, 1)
        values = padded.new_empty(self.d, *padded.shape[2:])
        for part, weights in self._parts(self.valid):
            values[weights] = padded[part][self.valid[part]]
        return values

    def _parts(self, valid: Tensor) -> Iterator[tuple[slice, slice]]:
        """Some blocks and their weights, so that no index of all weights is made."""
        at_once = max(1, PLACES_AT_ONCE // self.size)
        end = 0
        for first in range(0, self.blocks, at_once):
            part = slice(first, first + at_once)
            start, end = end, end + int(valid[part].sum())
            yield part, slice(start, end)


class KeptBlocks(NamedTuple):
    """The kept weights of some blocks, moved to the front of each and padded to one width w.

    Attributes:
        matrix: (c, w, w), the blocks of the kept weights, zeros in the padding.
        order: (c, w) int64, where in its block each row was; in the padding, removed weights.
        valid: (c, w) bool, False in the padding.
    """

    matrix: Tensor
    order: Tensor
    valid: Tensor

    @classmethod
    def of(cls, blocks: Tensor, keep: Tensor, width: int | None = None) -> KeptBlocks:
        """Drop the removed rows and columns of some blocks.

        Args:
            blocks: (c, s, s).
            keep: (c, s) bool, True = kept.
            width: w, at least the most that a block keeps; None for just that.

        Returns:
            The kept weights, in their old order.
        """
        width = width or int(keep.sum(1).max())
        # A stable sort by the mask moves the kept ones forward and leaves their order alone.
        order = keep.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
        valid = keep.gather(1, order)
        size = blocks.shape[1]
        places = size * order[:, :, None] + order[:, None, :]  # by one index: half of the time
        matrix = blocks.flatten(1).gather(1, places.flatten(1)).view(places.shape)
        matrix.mul_(valid[:, :, None]).mul_(valid[:, None, :])
        return cls(matrix, order, valid)

    def gather(self, values: Tensor) -> Tensor:
        """The values of the kept weights.

        Args:
            values: (c, s), or the rows (c, s, t) of a matrix.

        Returns:
            (c, w) or (c, w, t), zeros in the padding.
        """
        if values.ndim == 2:
            return values.gather(1, self.order) * self.valid
        order = self.order[..., None].expand(-1, -1, values.shape[-1])
        return values.gather(1, order) * self.valid[..., None]
