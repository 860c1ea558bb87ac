"""Products of which one triangle is enough: half the work of a full one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from woodbury.linalg.paged_rows import Rows
from woodbury.linalg.row_products import column_chunks, full_precision


def _panels(m: int) -> Iterator[tuple[int, int]]:
    """Row panels of a lower triangle: narrow enough to skip most of the upper half, yet fast."""
    height = min(max(m // 8, 64), 512)
    for start in range(0, m, height):
        yield start, min(start + height, m)


def gram_of(rows: Rows, dtype: torch.dtype, keep: Tensor | None = None) -> Tensor:
    """The Gram matrix G Gᵀ, half of it computed, summed in float64 over column chunks.

    Args:
        rows: G (m, d), any float dtype.
        dtype: What the products of a chunk are taken in.
        keep: (d,) bool, the columns that count; None for all.

    Returns:
        (m, m) float64, symmetric.

    Example:
        >>> import torch
        >>> gram_of(torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.float64)
        tensor([[5., 6.],
                [6., 9.]], dtype=torch.float64)
    """
    m = rows.shape[0]
    gram = torch.zeros(m, m, dtype=torch.float64, device=rows.device)
    with full_precision(rows.device):
        for _, chunk in column_chunks(rows, dtype, keep):
            for start, end in _panels(m):
                gram[start:end, :end] += chunk[start:end] @ chunk[:end].mT
    return gram.tril() + gram.tril(-1).mT


def squared_columns(whitener: Tensor, chunk: Tensor) -> Tensor:
    """The column sums of (whitener @ chunk)², without storing the product.

    Args:
        whitener: (m, m), of which the lower triangle is read.
        chunk: (m, c), in the dtype of the whitener.

    Returns:
        (c,) in the dtype of the chunk.

    Example:
        >>> import torch
        >>> squared_columns(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0], [2.0]]))
        tensor([10.])
    """
    sums = torch.zeros(chunk.shape[1], dtype=chunk.dtype, device=chunk.device)
    for start, end in _panels(chunk.shape[0]):
        # The transposed product: its norms are then taken along contiguous rows. It has no name, as
        # the next one would have to be made beside it.
        sums += torch.linalg.vector_norm(
            chunk[:end].mT @ whitener[start:end, :end].mT, dim=1
        ).square_()
    return sums
