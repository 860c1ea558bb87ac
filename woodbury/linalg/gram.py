"""Products of which one triangle is enough: half the work of a full one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from woodbury.linalg.column_chunks import LANES, each_chunk
from woodbury.linalg.paged_rows import KeptColumns, Rows, pages
from woodbury.linalg.row_products import full_precision, times

COLUMNS_PER_TRIANGLE = 1024
"""Columns that a triangle is multiplied by at once on a CPU: products that stay in its cache."""


MAX_ROWS_IN_LANES = 1024
"""Rows up to which each lane has a Gram matrix of its own: products of more divide well."""


def _panels(m: int, height: int) -> Iterator[tuple[int, int]]:
    """Row panels of a lower triangle: narrow enough to skip most of the upper half, yet fast."""
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
    lanes = LANES if m <= MAX_ROWS_IN_LANES and rows.device.type == "cpu" else 1
    sums = torch.zeros(lanes, m, m, dtype=torch.float64, device=rows.device)

    def add(lane: int, _: slice, chunk: Tensor) -> None:
        _add_lower_triangle(sums[lane], chunk)

    with full_precision(rows.device):
        each_chunk(rows, dtype, add, keep, lanes)
    gram = sums.sum(0)
    return gram.tril() + gram.tril(-1).mT


def gram_and_times(rows: Rows, keep: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The Gram matrix of some columns and a product of all, in one read of rows on a disk.

    Args:
        rows: G (m, d), any float dtype.
        keep: (d,) bool, the columns K that count in the Gram matrix.
        v: (d,) or (d, k), in the dtype of the products.

    Returns:
        G_K G_Kᵀ (m, m) and G v (m,) or (m, k), float64.

    Example:
        >>> import torch
        >>> rows, keep = torch.tensor([[1.0, 2.0]]), torch.tensor([True, False])
        >>> gram_and_times(rows, keep, torch.tensor([0.0, 3.0]))
        (tensor([[1.]], dtype=torch.float64), tensor([6.], dtype=torch.float64))
    """
    if isinstance(rows, KeptColumns):
        return gram_and_times(rows.base, rows.among_all(keep), rows.scattered(v))
    m = rows.shape[0]
    gram = torch.zeros(m, m, dtype=torch.float64, device=rows.device)
    product = torch.zeros(m, *v.shape[1:], dtype=torch.float64, device=rows.device)
    for page in pages(rows):
        gram += gram_of(page.values, v.dtype, keep[page.columns])
        product += times(page.values, v[page.columns])
    return gram, product


def _add_lower_triangle(gram: Tensor, chunk: Tensor) -> None:
    for start, end in _panels(len(gram), min(max(len(gram) // 4, 64), 512)):
        gram[start:end, :end] += chunk[start:end] @ chunk[:end].mT


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
    m, columns = chunk.shape
    width = COLUMNS_PER_TRIANGLE if chunk.device.type == "cpu" else columns
    sums = torch.zeros(columns, dtype=chunk.dtype, device=chunk.device)
    for first in range(0, columns, width):
        part = slice(first, first + width)
        for start, end in _panels(m, min(max(m // 8, 128), 512)):
            # No name for the product: the next one would have to be made beside it.
            sums[part] += (whitener[start:end, :end] @ chunk[:end, part]).square_().sum(0)
    return sums
