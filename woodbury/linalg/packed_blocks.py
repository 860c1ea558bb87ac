"""PackedBlocks: lower triangles of many symmetric matrices, for compiled kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from woodbury.kernels.loading import block_kernels

MAX_SIZE = 128
"""Rows of a block up to which the caches of a core hold one in each lane of a vector."""

MIN_ROWS = 32
"""Rows whose sums, with one inverse, count as the work of a block: it depends on sizes alone."""


@dataclass(frozen=True, eq=False)
class PackedBlocks:
    """b symmetric (s, s) matrices in float32 on the CPU, the lower triangle of each row by row.

    Attributes:
        triangles: (b, s(s+1)/2) float32, contiguous.
        size: s.

    Example:
        >>> import pytest; _ = pytest.importorskip("numba")
        >>> blocks = PackedBlocks.zeros(1, 50)
        >>> blocks.add_products(slice(0, 1), [torch.ones(5, 50)], 0, 50)
        >>> blocks.matrices(slice(0, 1), torch.float64).unique()
        tensor([5.], dtype=torch.float64)
    """

    triangles: Tensor
    size: int

    @staticmethod
    def pay(count: int, size: int, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether sums and inverses of blocks are faster so, and there are kernels for them.

        Args:
            count: b.
            size: s.
            dtype: Of the sums.
            device: Where they are.

        Returns:
            False on a GPU, in another dtype than float32, for large blocks and for little work.
        """
        multiplications = 0.5 * count * size**2 * (MIN_ROWS + size)
        return size <= MAX_SIZE and block_kernels(device, dtype, multiplications)

    @classmethod
    def zeros(cls, count: int, size: int) -> PackedBlocks:
        """Blocks of zeros.

        Args:
            count: b.
            size: s.

        Returns:
            The blocks.
        """
        return cls(torch.zeros(count, size * (size + 1) // 2), size)

    def __len__(self) -> int:
        """b, the number of blocks."""
        return len(self.triangles)

    @property
    def dtype(self) -> torch.dtype:
        """float32."""
        return self.triangles.dtype

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return self.triangles.device

    @cached_property
    def _diagonal_places(self) -> Tensor:
        rows = torch.arange(self.size)
        return rows * (rows + 3) // 2

    @cached_property
    def _places(self) -> Tensor:
        """(s²,), where in a triangle the elements of a matrix are."""
        rows = torch.arange(self.size)
        low = torch.maximum(rows[:, None], rows)
        return (low * (low + 1) // 2 + torch.minimum(rows[:, None], rows)).flatten()

    def matrices(self, which: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """Some of the blocks, whole.

        Args:
            which: A slice, or indices (c,) int64.
            dtype: Of the result.

        Returns:
            (c, s, s), a copy.
        """
        whole = self.triangles[which].index_select(1, self._places)
        return whole.view(-1, self.size, self.size).to(dtype)

    def add_products(
        self,
        which: slice,
        rows: Sequence[Tensor],
        first: int,
        length: int,
        scale: Tensor | None = None,
    ) -> None:
        """Add Σ g gᵀ to some blocks of one length, in place.

        Args:
            which: The blocks.
            rows: Chunks (c, d) of m rows in all, float32, the elements of each side by side.
            first: The column of the first block's first weight.
            length: Weights of each block, at most s.
            scale: (m,) float32, what the rows are multiplied by; None for 1.
        """
        from woodbury.kernels import block_sums

        block_sums.add_products(rows, first, length, self.triangles[which], scale)

    def scale_(self, factor: float) -> PackedBlocks:
        """Multiply all elements, in place."""
        self.triangles.mul_(factor)
        return self

    def diagonal(self) -> Tensor:
        """(b, s), the diagonals; a copy."""
        return self.triangles.index_select(1, self._diagonal_places)

    def products(self, which: slice, vectors: Tensor) -> Tensor:
        """The products of some blocks with one vector each, in float64.

        Args:
            which: The blocks.
            vectors: (c, s).

        Returns:
            (c, s) float64.
        """
        from woodbury.kernels import small_blocks

        return small_blocks.products(self.triangles[which], self.size, vectors)

    def inverse_diagonals(self, which: slice, damping: float, share: float) -> Tensor | None:
        """The diagonals of (block + damping·I)⁻¹ of some blocks, by factors in float64.

        Args:
            which: The blocks.
            damping: λ.
            share: What share of its diagonal element each pivot has at least.

        Returns:
            (c, s) float64; None if a pivot has less.
        """
        from woodbury.kernels import small_blocks

        return small_blocks.inverse_diagonals(self.triangles[which], self.size, damping, share)

    def solves(self, which: slice, damping: float, share: float, v: Tensor) -> Tensor | None:
        """The solutions of (block + damping·I) x = v of some blocks, by factors in float64.

        Args:
            which: The blocks.
            damping: λ.
            share: As for `inverse_diagonals`.
            v: (c, s).

        Returns:
            (c, s) float64; None if a pivot is not resolved.
        """
        nothing = torch.zeros_like(v)
        keep = torch.ones_like(v, dtype=torch.bool)
        return self.compensated(which, damping, share, keep, nothing, -v)

    def compensated(
        self,
        which: slice,
        damping: float,
        share: float,
        keep: Tensor,
        removed: Tensor,
        slopes: Tensor | None,
    ) -> Tensor | None:
        """F_KK⁻¹ (F_KQ w_Q − g_K) of some blocks F = block + damping·I, by factors in float64.

        Args:
            which: The blocks.
            damping: λ.
            share: As for `inverse_diagonals`.
            keep: (c, s) bool, True = kept (K).
            removed: (c, s), w, zero where a weight is kept.
            slopes: (c, s), g; None for zero.

        Returns:
            (c, s) float64, zero where a weight is removed; None if a pivot is not resolved.
        """
        from woodbury.kernels import small_blocks

        return small_blocks.compensated(
            self.triangles[which], self.size, damping, share, keep, removed, slopes
        )


def packed_bytes(count: int, size: int) -> int:
    """What `PackedBlocks.zeros` takes, in bytes.

    Args:
        count: b.
        size: s.

    Returns:
        Bytes.

    Example:
        >>> packed_bytes(1, 50)
        5100
    """
    return count * size * (size + 1) // 2 * torch.float32.itemsize
