"""Products of which one triangle is enough: half the work of a full one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from woodbury.kernels.loading import triangle_kernels
from woodbury.linalg.column_chunks import LANES, each_chunk
from woodbury.linalg.paged_rows import KeptColumns, Rows, pages
from woodbury.linalg.row_products import full_precision, times

WHOLE_ON_CPU, WHOLE_ON_GPU = 64, 512
"""Rows up to which a triangle is multiplied as a square: half of that is waste, but one call."""

COLUMNS_ON_CPU, NUMBERS_ON_CPU = 2048, 1 << 21
"""Columns that a triangle is multiplied by at once, and numbers of that product, on a CPU."""

MAX_ROWS_IN_LANES = 1024
"""Rows up to which each lane has a Gram matrix of its own: products of more divide well."""


def gram_of(rows: Rows, dtype: torch.dtype, keep: Tensor | None = None, known: int = 0) -> Tensor:
    """The Gram matrix G Gᵀ, half of it computed, summed in float64 over column chunks.

    Args:
        rows: G (m, d), any float dtype.
        dtype: What the products of a chunk are taken in.
        keep: (d,) bool, the columns that count; None for all.
        known: The first rows, whose products with each other are known and left out.

    Returns:
        (m, m) float64, symmetric; zero where it is known.

    Example:
        >>> import torch
        >>> gram_of(torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.float64)
        tensor([[5., 6.],
                [6., 9.]], dtype=torch.float64)
    """
    m, d = rows.shape
    lanes = LANES if m <= MAX_ROWS_IN_LANES and rows.device.type == "cpu" else 1
    kernels = triangle_kernels(rows.device, dtype, m**2 * d) if lanes > 1 else None
    size = m if kernels is None else kernels.gram_rows(m)
    sums = torch.zeros(lanes, size, size, dtype=torch.float64, device=rows.device)

    def add(lane: int, _: slice, chunk: Tensor) -> None:
        if kernels is not None:
            kernels.add_gram(chunk, sums[lane], known)
            return
        new, gram = chunk[known:], sums[lane, known:]
        gram[:, :known] += new @ chunk[:known].mT
        _add_lower_triangle(gram[:, known:], new, _whole(chunk))

    with full_precision(rows.device):
        each_chunk(rows, dtype, add, keep, lanes)
    gram = sums.sum(0)[:m, :m]
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


def _whole(chunk: Tensor) -> int:
    return WHOLE_ON_CPU if chunk.device.type == "cpu" else WHOLE_ON_GPU


def _add_lower_triangle(gram: Tensor, chunk: Tensor, whole: int) -> None:
    """Add chunk · chunkᵀ below the diagonal: a square of half the size, and two triangles."""
    if len(chunk) <= whole:
        gram += chunk @ chunk.mT
        return
    half = len(chunk) // 2
    first, second = chunk[:half], chunk[half:]
    _add_lower_triangle(gram[:half, :half], first, whole)
    gram[half:, :half] += second @ first.mT
    _add_lower_triangle(gram[half:, half:], second, whole)


def _triangular_product(triangle: Tensor, chunk: Tensor, whole: int, out: Tensor) -> None:
    """The product of a lower triangle and a chunk, into `out`."""
    if len(chunk) <= whole:
        torch.mm(triangle, chunk, out=out)
        return
    half = len(chunk) // 2
    _triangular_product(triangle[:half, :half], chunk[:half], whole, out[:half])
    _triangular_product(triangle[half:, half:], chunk[half:], whole, out[half:])
    out[half:].addmm_(triangle[half:, :half], chunk[:half])


def whitened_squares(whitener: Tensor, columns: int) -> Callable[[Tensor], Tensor]:
    """What computes the column sums of (whitener @ chunk)² for chunks of rows.

    Args:
        whitener: (m, m), lower triangular.
        columns: Of all chunks together.

    Returns:
        chunk (m, c) in the dtype of the whitener -> (c,).
    """
    kernels = triangle_kernels(whitener.device, whitener.dtype, len(whitener) ** 2 * columns)
    if kernels is not None:
        return kernels.Triangle(whitener).squared_columns
    return partial(squared_columns, whitener)


def squared_columns(whitener: Tensor, chunk: Tensor) -> Tensor:
    """The column sums of (whitener @ chunk)², without storing the product.

    Args:
        whitener: (m, m), lower triangular.
        chunk: (m, c), in the dtype of the whitener.

    Returns:
        (c,) in the dtype of the chunk.

    Example:
        >>> import torch
        >>> squared_columns(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0], [2.0]]))
        tensor([10.])
    """
    m, columns = chunk.shape
    width = columns
    if chunk.device.type == "cpu":
        width = min(columns, COLUMNS_ON_CPU, max(NUMBERS_ON_CPU // m, 1))
    sums, product = chunk.new_empty(columns), chunk.new_empty(m, width)
    for first in range(0, columns, width):
        part = chunk[:, first : first + width]
        made = product[:, : part.shape[1]]
        _triangular_product(whitener, part, _whole(chunk), made)
        torch.sum(made.square_(), 0, out=sums[first : first + width])
    return sums
