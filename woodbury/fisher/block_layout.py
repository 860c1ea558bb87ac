"""Layout: where the weights of blocks are in gradient rows, and sums of the rows' products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from woodbury.fisher.padded import Padding
from woodbury.linalg.packed_blocks import PackedBlocks
from woodbury.linalg.precision import wide_dtype
from woodbury.linalg.symmetric_blocks import SymmetricBlocks
from woodbury.linalg.threads import share, threads_on

Sums = SymmetricBlocks | PackedBlocks
"""Sums of blocks: panels by torch, or packed triangles by compiled kernels."""

COLUMNS_AT_ONCE = 8192
"""Columns of the rows that are worked on at once: those of all would not fit a cache."""

PACKED_COLUMNS_AT_ONCE = 1 << 17
"""The same for kernels, which take one block after the other: a call takes 0.1 ms besides."""


class Run(NamedTuple):
    """A few blocks of one length that follow each other.

    Attributes:
        blocks: Which.
        columns: Their weights.
        length: Weights of each.
    """

    blocks: slice
    columns: slice
    length: int


@dataclass(frozen=True)
class Layout:
    """Where the weights of the blocks are.

    Attributes:
        padding: Of the blocks.
        runs: The blocks, a few at a time.
        packed: Whether sums in float32 are `PackedBlocks`.

    Example:
        >>> rows = torch.ones(1, 5)
        >>> layout = Layout.of((2, 2, 1), rows)
        >>> sums = layout.zeros(torch.float32)
        >>> layout.add_products(sums, [rows])
        >>> sums.diagonal().tolist()
        [[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]]
    """

    padding: Padding
    runs: tuple[Run, ...]
    packed: bool

    @classmethod
    def of(cls, sizes: Sequence[int], rows: Tensor) -> Layout:
        """The layout of blocks in rows.

        Args:
            sizes: The lengths of the blocks.
            rows: Some of the rows (c, d).

        Returns:
            The layout, every block padded to the largest.
        """
        size, device = max(sizes), rows.device
        valid = torch.arange(size, device=device) < torch.tensor(sizes, device=device)[:, None]
        padding = Padding(len(sizes), size, None if bool(valid.all()) else valid, device)
        packed = PackedBlocks.pay(len(sizes), size, wide_dtype(rows.dtype), device)
        columns = PACKED_COLUMNS_AT_ONCE if packed else COLUMNS_AT_ONCE
        at_once = max(1, columns // size)
        runs = []
        begin = first = 0
        for length, equal in groupby(sizes):
            last = first + len(list(equal))
            for start in range(first, last, at_once):
                blocks = slice(start, min(start + at_once, last))
                end = begin + (blocks.stop - blocks.start) * length
                runs.append(Run(blocks, slice(begin, end), length))
                begin = end
            first = last
        return cls(padding, tuple(runs), packed)

    def zeros(self, dtype: torch.dtype) -> Sums:
        """Sums to begin with.

        Args:
            dtype: Theirs.

        Returns:
            One matrix for each block.
        """
        padding = self.padding
        if self.packed and dtype == torch.float32:
            return PackedBlocks.zeros(padding.blocks, padding.size)
        return SymmetricBlocks.zeros(padding.blocks, padding.size, dtype, padding.device)

    def add_products(self, sums: Sums, rows: Sequence[Tensor], scale: Tensor | None = None) -> None:
        """Add Σ g gᵀ of some rows to all blocks, a few blocks in each thread.

        Args:
            sums: What `zeros` gave.
            rows: Chunks (c, d).
            scale: (c,), what the rows of the one chunk are multiplied by; None for 1.
        """
        if isinstance(sums, PackedBlocks):
            rows = [chunk.to(sums.dtype).contiguous() for chunk in rows]
            scale = None if scale is None else scale.to(sums.dtype)

        def of(run: Run) -> None:
            if isinstance(sums, PackedBlocks):
                sums.add_products(run.blocks, rows, run.columns.start, run.length, scale)
            else:
                sums.add_products(run.blocks, self.columns(rows, run, scale, sums.dtype))

        share(of, self.runs, threads_on(sums.device))

    def largest_trace(self, rows: Sequence[Tensor], scale: Tensor | None = None) -> float:
        """The largest trace of a block of Σ g gᵀ.

        Args:
            rows: As for `add_products`.
            scale: As for `add_products`.

        Returns:
            Of all blocks.
        """
        traces: list[Tensor] = []

        def of(run: Run) -> None:
            squares = [
                self.columns([chunk], run, scale, torch.float32).square().sum((0, 2))
                for chunk in rows
            ]
            traces.append(torch.stack(squares).sum(0).max())

        share(of, self.runs, threads_on(self.padding.device))
        return float(torch.stack(traces).max())

    def columns(
        self, rows: Sequence[Tensor], run: Run, scale: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """The columns of a few blocks.

        Args:
            rows: As for `add_products`, m in all.
            run: Which blocks, c of them.
            scale: As for `add_products`.
            dtype: Of the result.

        Returns:
            (m, c, s), zeros in the padding.
        """
        parts = [chunk[:, run.columns] for chunk in rows]
        columns = (torch.cat(parts) if len(parts) > 1 else parts[0]).to(dtype)
        if scale is not None:
            columns = columns * scale.to(dtype)[:, None]
        columns = columns.unflatten(1, (-1, run.length))
        missing = self.padding.size - run.length
        return pad(columns, (0, missing)) if missing else columns
