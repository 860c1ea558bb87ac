"""SymmetricBlocks: many symmetric matrices of one size, little more than a triangle of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_PANELS = 4
"""Panels of a block: four take 5/8 of it, two 3/4."""

MIN_PANEL_ROWS = 25
"""Rows of a panel: products of fewer are slow."""


@dataclass(frozen=True, eq=False)
class SymmetricBlocks:
    """b symmetric (s, s) matrices, stored as panels of rows up to the end of the diagonal.

    Panel p has the rows [e_p, e_p+1) of every block and the columns [0, e_p+1): with one panel that
    is the whole block, with four 5/8 of it.

    Attributes:
        panels: Each (b, rows of the panel, columns up to the panel's last row), one dtype.

    Example:
        >>> blocks = SymmetricBlocks.zeros(1, 50, torch.float32)
        >>> [tuple(panel.shape) for panel in blocks.panels]
        [(1, 25, 25), (1, 25, 50)]
        >>> blocks.add_products(slice(0, 1), torch.ones(5, 1, 50))
        >>> blocks.matrices(slice(0, 1), torch.float64).unique()
        tensor([5.], dtype=torch.float64)
    """

    panels: tuple[Tensor, ...]

    @classmethod
    def zeros(
        cls, count: int, size: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> SymmetricBlocks:
        """Blocks of zeros, in as many panels as pay.

        Args:
            count: b.
            size: s.
            dtype: Of the elements.
            device: Where they are.

        Returns:
            The blocks.
        """
        ends = _panel_ends(size)
        shapes = zip([0, *ends], ends, strict=False)
        return cls(
            tuple(
                torch.zeros(count, end - start, end, dtype=dtype, device=device)
                for start, end in shapes
            )
        )

    @classmethod
    def of(cls, matrices: Tensor) -> SymmetricBlocks:
        """Matrices (b, s, s) as they are, without a copy."""
        return cls((matrices,))

    def __len__(self) -> int:
        """b, the number of blocks."""
        return len(self.panels[0])

    @property
    def size(self) -> int:
        """s, the rows of a block."""
        return self.panels[-1].shape[2]

    @property
    def dtype(self) -> torch.dtype:
        """That of the elements."""
        return self.panels[0].dtype

    @property
    def device(self) -> torch.device:
        """Where the elements are."""
        return self.panels[0].device

    def matrices(self, which: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """Some of the blocks, whole.

        Args:
            which: A slice, or indices (c,) int64.
            dtype: Of the result.

        Returns:
            (c, s, s); a view where the one panel is in that dtype already and a slice is asked for.
        """
        if len(self.panels) == 1:
            return self.panels[0][which].to(dtype)
        last = self.panels[-1][which]
        size = self.size
        whole = torch.empty(len(last), size, size, dtype=dtype, device=self.device)
        start = 0
        for panel in self.panels:
            rows = last if panel is self.panels[-1] else panel[which]
            end = panel.shape[2]
            whole[:, start:end, :end] = rows
            whole[:, :start, start:end] = rows[:, :, :start].mT
            start = end
        return whole

    def add_products(self, which: slice, columns: Tensor) -> None:
        """Add Σ g gᵀ to some blocks, in place.

        Args:
            which: The blocks.
            columns: (m, c, s), their columns of m rows; products are taken in this dtype.
        """
        batch = columns.permute(1, 0, 2)
        # Of many rows the whole product takes less time than those of narrow panels.
        whole = batch.mT @ batch if len(columns) >= self.size and len(self.panels) > 1 else None
        start = 0
        for panel in self.panels:
            end = panel.shape[2]
            left, right = batch[:, :, start:end].mT, batch[:, :, :end]
            if whole is not None:
                panel[which] += whole[:, start:end, :end]
            elif panel.dtype == columns.dtype:
                panel[which].baddbmm_(left, right)
            else:
                panel[which] += left @ right
            start = end

    def set(self, which: slice, matrices: Tensor) -> None:
        """Overwrite some blocks.

        Args:
            which: The blocks.
            matrices: (c, s, s), symmetric.
        """
        start = 0
        for panel in self.panels:
            end = panel.shape[2]
            panel[which] = matrices[:, start:end, :end]
            start = end

    def scale_(self, factor: float) -> SymmetricBlocks:
        """Multiply all elements, in place."""
        for panel in self.panels:
            panel.mul_(factor)
        return self

    def diagonal(self) -> Tensor:
        """(b, s), the diagonals; a copy."""
        starts = [0, *(panel.shape[2] for panel in self.panels)]
        return torch.cat(
            [
                panel.diagonal(offset=start, dim1=1, dim2=2)
                for start, panel in zip(starts, self.panels, strict=False)
            ],
            dim=1,
        )


def block_bytes(count: int, size: int, dtype: torch.dtype) -> int:
    """What `SymmetricBlocks.zeros` takes, in bytes.

    Args:
        count: b.
        size: s.
        dtype: Of the elements.

    Returns:
        Bytes.

    Example:
        >>> block_bytes(1, 50, torch.float32)
        7500
    """
    ends = _panel_ends(size)
    elements = sum((end - start) * end for start, end in zip([0, *ends], ends, strict=False))
    return count * elements * dtype.itemsize


def _panel_ends(size: int) -> list[int]:
    panels = min(MAX_PANELS, max(1, size // MIN_PANEL_ROWS))
    return [size * (panel + 1) // panels for panel in range(panels)]
