"""Reading the rows, and nothing else: column chunks, and products with one vector at the memory's own speed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from woodbury.limits import Limits

FAST = 1 << 14
"""Columns of a product by one BLAS call: at the memory's speed, and the sum goes on in float64."""


WIDE, FEW = 1 << 16, 4
"""Columns and rows that are converted at once, to float64 (to float32, four times the rows): what a cache holds."""


def chunks(
    rows: Tensor, dtype: torch.dtype, columns: Tensor | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """The rows (m, d), or some of their columns, by column chunks in `dtype`: the only place where memory moves."""
    step = width(rows) // (2 if dtype == torch.float64 else 1)
    for start in range(0, rows.shape[1] if columns is None else len(columns), step):
        part = slice(start, start + step)
        yield (
            part,
            (rows[:, part] if columns is None else rows.index_select(1, columns[part])).to(dtype),
        )


def width(rows: Tensor) -> int:
    """Columns per chunk: enough for a full-speed product, few enough to stay in a processor's cache."""
    return Limits.current().row_columns if rows.device.type == "cpu" else 1 << 16


def times(rows: Tensor, v: Tensor) -> Tensor:
    """G v in float64, in one read of the rows: (m, d) and (d,) or (d, k) -> (m,) or (m, k)."""
    with full_precision(rows.device):
        if rows.dtype != v.dtype and _by_pieces(v):
            return _converted_times(rows, v)
        if rows.dtype != v.dtype:
            return (
                torch.stack([chunk @ v[part] for part, chunk in chunks(rows, v.dtype)])
                .double()
                .sum(0)
            )
        return (_summed(rows, v) if _workers(rows, v) > 1 else rows @ v).double()


def combine(rows: Tensor, c: Tensor) -> Tensor:
    """Gᵀ c in the dtype of c, in one read of the rows: (m, d) and (m,) or (m, k) -> (d,) or (d, k)."""
    with full_precision(rows.device):
        if rows.dtype != c.dtype and _by_pieces(c):
            return _converted_combine(rows, c)
        if rows.dtype != c.dtype:
            return torch.cat([chunk.mT @ c for _, chunk in chunks(rows, c.dtype)])
        if _workers(rows, c) == 1:
            return rows.mT @ c
        combined = torch.empty(rows.shape[1], dtype=c.dtype, device=rows.device)
        _shared(rows, c, lambda _, part: torch.mv(rows[:, part].mT, c, out=combined[part]))
        return combined


def products(rows: Tensor, v: Tensor, exact: bool) -> Tensor:
    """G v in float64, (m, d) and (d,) -> (m,): by float32 products of chunks that are summed in float64, or exactly."""
    v = v.to(torch.float64 if exact or rows.dtype == torch.float64 else torch.float32)
    with full_precision(rows.device):
        return _summed(rows, v) if rows.dtype == v.dtype else _converted_times(rows, v)


def combination(rows: Tensor, c: Tensor, exact: bool) -> Tensor:
    """Gᵀ c, (m, d) and (m,) float64 -> (d,): float64 for such rows, else float32, rounded once if `exact`."""
    c = c.to(torch.float64 if exact or rows.dtype == torch.float64 else torch.float32)
    if rows.dtype == c.dtype:
        return combine(rows, c)
    with full_precision(rows.device):
        return _converted_combine(rows, c).to(torch.promote_types(rows.dtype, torch.float32))


def _summed(rows: Tensor, v: Tensor) -> Tensor:
    """G v for one vector of the rows' own dtype, summed in float64 over column chunks, in their order."""
    parts = torch.empty(len(_pieces(rows)), len(rows), dtype=v.dtype, device=rows.device)
    _shared(rows, v, lambda index, part: torch.mv(rows[:, part], v[part], out=parts[index]))
    return parts.double().sum(0)


def _pieces(rows: Tensor) -> list[slice]:
    step = FAST if rows.device.type == "cpu" else 16 * FAST
    return [slice(start, start + step) for start in range(0, rows.shape[1], step)]


def _workers(rows: Tensor, vector: Tensor) -> int:
    """How many threads a product with one vector is worth: one BLAS call leaves a third of the memory's rate unused."""
    if (
        rows.device.type != "cpu"
        or vector.ndim > 1
        or rows.numel() < Limits.current().thread_elements
        or vector.requires_grad
    ):
        return 1
    return min(torch.get_num_threads(), 8)


def _shared(rows: Tensor, vector: Tensor, work: Callable[[int, slice], Tensor]) -> None:
    """work(index, part) for all column pieces, every thread taking its turn."""
    pieces, workers = list(enumerate(_pieces(rows))), _workers(rows, vector)

    def turns(first: int) -> None:
        for index, part in pieces[first::workers]:
            work(index, part)

    if workers == 1:
        turns(0)
    else:
        list(_pool(workers, os.getpid()).map(turns, range(workers)))


def _by_pieces(vector: Tensor) -> bool:
    """Whether a product with rows of another dtype is by pieces, whose buffer autograd must not see."""
    return vector.ndim == 1 and not vector.requires_grad


def _converted_times(rows: Tensor, v: Tensor) -> Tensor:
    """G v in float64, the rows converted to the dtype of v."""
    found = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for some, part, piece in _converted(rows, v.dtype):
        found[some] += piece @ v[part]
    return found


def _converted_combine(rows: Tensor, c: Tensor) -> Tensor:
    """Gᵀ c, the rows converted to the dtype of c."""
    combined = torch.zeros(rows.shape[1], dtype=c.dtype, device=rows.device)
    for some, part, piece in _converted(rows, c.dtype):
        combined[part].addmv_(piece.mT, c[some])
    return combined


def _converted(rows: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, slice, Tensor]]:
    """The rows in another dtype by pieces, each valid until the next."""
    few = FEW * (1 if dtype == torch.float64 else 4) * (1 if rows.device.type == "cpu" else 32)
    buffer = torch.empty(few * min(WIDE, rows.shape[1]), dtype=dtype, device=rows.device)
    for start in range(0, rows.shape[1], WIDE):
        part = slice(start, min(start + WIDE, rows.shape[1]))
        for row in range(0, len(rows), few):
            piece = rows[row : row + few, part]
            yield (
                slice(row, row + few),
                part,
                buffer[: piece.numel()].view(piece.shape).copy_(piece),
            )


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Idle threads, kept, as new ones cost a tenth of a product; those of a forked parent are not there, hence `process`."""
    return ThreadPoolExecutor(threads, thread_name_prefix=f"woodbury-{process}")


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No TF32 in the products inside, on CUDA; the caller's setting is put back."""
    if device.type != "cuda":
        yield
        return
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
