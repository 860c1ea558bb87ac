"""Products of the rows with vectors, at the memory's own speed."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from woodbury.kernels.loading import vector_kernels
from woodbury.limits import Limits
from woodbury.linalg.column_chunks import column_chunks
from woodbury.linalg.paged_rows import KeptColumns, PagedRows, Rows
from woodbury.linalg.precision import wide_dtype
from woodbury.linalg.threads import share

COLUMNS_PER_PRODUCT = 1 << 13
"""Columns of a product by one BLAS call: at the memory's speed, and the sum goes on in float64."""

COLUMNS_PER_CONVERSION = 1 << 16
"""Columns that are converted to another dtype at once."""

ROWS_PER_CONVERSION = 4
"""Rows that are converted to float64 at once, to float32 four times as many: a cache holds them."""

GPU_FACTOR = 16
"""A GPU takes so many times the columns of a product in one call."""


def times(rows: Rows, v: Tensor) -> Tensor:
    """G v in one read of the rows, products in the dtype of v.

    Args:
        rows: G (m, d), any float dtype.
        v: (d,) or (d, k).

    Returns:
        (m,) or (m, k), float64.

    Example:
        >>> import torch
        >>> times(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0, 4.0]))
        tensor([11.], dtype=torch.float64)
    """
    if isinstance(rows, KeptColumns):
        return times(rows.base, rows.scattered(v))
    if isinstance(rows, PagedRows):
        parts = (times(page.values, v[page.columns]) for page in rows.pages())
        return functools.reduce(operator.add, parts)
    with full_precision(rows.device):
        if rows.dtype != v.dtype:
            if _fits_buffer(v):
                return _converted_times(rows, v)
            chunks = column_chunks(rows, v.dtype)
            return torch.stack([chunk @ v[part] for part, chunk in chunks]).double().sum(0)
        if _num_threads(rows, v) > 1 or _kernels(rows, v) is not None:
            return _chunked_times(rows, v)
        return (rows @ v).double()


def combine(rows: Rows, c: Tensor) -> Tensor:
    """Gᵀ c in one read of the rows, products in the dtype of c.

    Args:
        rows: G (m, d), any float dtype.
        c: (m,) or (m, k).

    Returns:
        (d,) or (d, k) in the dtype of c.

    Example:
        >>> import torch
        >>> combine(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0]))
        tensor([3., 6.])
    """
    if isinstance(rows, KeptColumns):
        return combine(rows.base, c)[rows.keep]
    if isinstance(rows, PagedRows):
        result = c.new_empty(rows.shape[1], *c.shape[1:])
        for page in rows.pages():
            result[page.columns] = combine(page.values, c)
        return result
    with full_precision(rows.device):
        if rows.dtype != c.dtype:
            if _fits_buffer(c):
                return _converted_combine(rows, c)
            return torch.cat([chunk.mT @ c for _, chunk in column_chunks(rows, c.dtype)])
        kernels = _kernels(rows, c)
        threads = _num_threads(rows, c)
        if threads == 1 and kernels is None:
            return rows.mT @ c
        multiply = _torch_combine if kernels is None else kernels.combine
        combined = torch.empty(rows.shape[1], dtype=c.dtype, device=rows.device)
        c = c.contiguous()

        def of(part: slice) -> None:
            multiply(rows[:, part], c, combined[part])

        share(of, _product_slices(rows, kernels), threads)
        return combined


def _torch_combine(rows: Tensor, c: Tensor, out: Tensor) -> None:
    torch.mv(rows.mT, c, out=out)


def column_squares(rows: Tensor) -> Tensor:
    """Σᵢ gᵢ² of each column, in one read of the rows.

    Args:
        rows: G (m, d), float32 or float64.

    Returns:
        (d,) in the dtype of the rows.

    Example:
        >>> import torch
        >>> column_squares(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
        tensor([10.,  4.])
    """
    squares = rows.new_zeros(rows.shape[1])
    if rows.device.type != "cpu":
        for part, chunk in column_chunks(rows, rows.dtype):
            squares[part] = chunk.square().sum(0)
        return squares
    # torch's own sums over the rows of a large matrix take fifteen times as long.
    for start in range(0, rows.shape[1], COLUMNS_PER_CONVERSION):
        part = slice(start, start + COLUMNS_PER_CONVERSION)
        for row in rows[:, part]:
            squares[part].addcmul_(row, row)
    return squares


def products(rows: Tensor, v: Tensor, exact: bool) -> Tensor:
    """G v for one vector, in float32 chunks that are summed in float64, or all in float64.

    Args:
        rows: G (m, d), any float dtype.
        v: (d,).
        exact: Whether to take the products in float64; those of float64 rows always are.

    Returns:
        (m,) float64.

    Example:
        >>> import torch
        >>> products(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0, 4.0]), exact=False)
        tensor([11.], dtype=torch.float64)
    """
    v = v.to(_inner_dtype(rows, exact))
    with full_precision(rows.device):
        return _chunked_times(rows, v) if rows.dtype == v.dtype else _converted_times(rows, v)


def combination(rows: Tensor, c: Tensor, exact: bool) -> Tensor:
    """Gᵀ c for one vector of coefficients.

    Args:
        rows: G (m, d), any float dtype.
        c: (m,) float64.
        exact: Whether to add up in float64 and to round once, at the end.

    Returns:
        (d,), float64 for float64 rows, else float32.

    Example:
        >>> import torch
        >>> combination(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0]).double(), exact=True)
        tensor([3., 6.])
    """
    c = c.to(_inner_dtype(rows, exact))
    if rows.dtype == c.dtype:
        return combine(rows, c)
    with full_precision(rows.device):
        return _converted_combine(rows, c).to(wide_dtype(rows.dtype))


def _inner_dtype(rows: Tensor, exact: bool) -> torch.dtype:
    return torch.float64 if exact or rows.dtype == torch.float64 else torch.float32


def _chunked_times(rows: Tensor, v: Tensor) -> Tensor:
    """G v for one vector of the rows' own dtype, summed in float64 over chunks in their order."""
    kernels = _kernels(rows, v)
    multiply = _torch_times if kernels is None else kernels.times
    slices = _product_slices(rows, kernels)
    parts = torch.empty(len(slices), len(rows), dtype=v.dtype, device=rows.device)
    v = v.contiguous()

    def of(index: int) -> None:
        multiply(rows[:, slices[index]], v[slices[index]], parts[index])

    share(of, range(len(slices)), _num_threads(rows, v))
    return parts.double().sum(0)


def _torch_times(rows: Tensor, v: Tensor, out: Tensor) -> None:
    torch.mv(rows, v, out=out)


def _kernels(rows: Tensor, vector: Tensor) -> ModuleType | None:
    """The compiled products with one vector, where they pay."""
    if vector.ndim > 1 or vector.requires_grad or rows.requires_grad or rows.stride(1) != 1:
        return None
    m, d = rows.shape
    return vector_kernels(rows.device, rows.dtype, m**2 * d)


def _product_slices(rows: Tensor, kernels: ModuleType | None) -> list[slice]:
    """The column slices of a product with one vector."""
    step = COLUMNS_PER_PRODUCT * (1 if rows.device.type == "cpu" else GPU_FACTOR)
    if kernels is not None:
        step = kernels.COLUMNS_AT_ONCE
    return [slice(start, start + step) for start in range(0, rows.shape[1], step)]


def _num_threads(rows: Tensor, vector: Tensor) -> int:
    """Threads for a product with one vector: one BLAS call leaves a third of the memory's rate."""
    if (
        rows.device.type != "cpu"
        or vector.ndim > 1
        or rows.numel() < Limits.current().thread_elements
        or vector.requires_grad
    ):
        return 1
    return torch.get_num_threads()


def _fits_buffer(vector: Tensor) -> bool:
    """Whether rows of another dtype are converted into one buffer, which autograd must not see."""
    return vector.ndim == 1 and not vector.requires_grad


def _converted_times(rows: Tensor, v: Tensor) -> Tensor:
    """G v in float64, the rows converted to the dtype of v."""
    result = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for block in _converted(rows, v.dtype):
        result[block.rows] += block.values @ v[block.columns]
    return result


def _converted_combine(rows: Tensor, c: Tensor) -> Tensor:
    """Gᵀ c, the rows converted to the dtype of c."""
    combined = torch.zeros(rows.shape[1], dtype=c.dtype, device=rows.device)
    for block in _converted(rows, c.dtype):
        combined[block.columns].addmv_(block.values.mT, c[block.rows])
    return combined


class _Block(NamedTuple):
    """Some rows and columns in another dtype."""

    rows: slice
    columns: slice
    values: Tensor


def _converted(rows: Tensor, dtype: torch.dtype) -> Iterator[_Block]:
    """The rows in another dtype by blocks in one buffer, each valid until the next."""
    height = ROWS_PER_CONVERSION
    if dtype != torch.float64:
        height *= 4
    if rows.device.type != "cpu":
        height *= 32
    width = min(COLUMNS_PER_CONVERSION, rows.shape[1])
    buffer = torch.empty(height * width, dtype=dtype, device=rows.device)
    for start in range(0, rows.shape[1], COLUMNS_PER_CONVERSION):
        columns = slice(start, min(start + COLUMNS_PER_CONVERSION, rows.shape[1]))
        for first in range(0, len(rows), height):
            some_rows = slice(first, first + height)
            source = rows[some_rows, columns]
            values = buffer[: source.numel()].view(source.shape).copy_(source)
            yield _Block(some_rows, columns, values)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No TF32 in the products inside, on CUDA; the caller's setting is restored after.

    Args:
        device: Where the products are taken.

    Yields:
        Nothing.
    """
    if device.type != "cuda":
        yield
        return
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
