"""Blocks of C = (1/m) Σ g gᵀ: as (s, s) matrices or through (m, m) ones, whichever is cheaper."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from woodbury.fisher.base import Fisher
from woodbury.fisher.block_diagonal import BlockDiagonal
from woodbury.fisher.checks import (
    as_tensor,
    check_damping,
    check_finite,
    check_rows,
    check_sizes,
    check_weights,
)
from woodbury.fisher.dense import Dense
from woodbury.fisher.lowrank import LowRank
from woodbury.fisher.padded import Padding
from woodbury.linalg.precision import wide_dtype
from woodbury.linalg.symmetric_blocks import SymmetricBlocks, block_bytes
from woodbury.memory.budget import row_bytes

MAX_PRIMAL_SIZE = 128
"""Blocks up to this size are (s, s) matrices whatever the count: in one batch they are cheap."""


COLUMNS_AT_ONCE = 8192
"""Columns of the rows that are worked on at once: those of all would not fit a cache."""

MIN_ROWS_AT_ONCE = 8
"""Rows that are added to the sums at once at least, if they have room."""

MAX_ROWS_AT_ONCE = 32
"""Rows from which on adding to the sums is bound by products and no more by memory."""

ROWS_TO_MEASURE = 64
"""Rows whose traces decide the dtype of the sums."""

MAX_ROUNDING = 1e-3
"""Rounding of the sums as a share of the damping, up to which they are in float32."""


def dense_blocks(
    rows: Tensor, sizes: Sequence[int], damping: float, weights: Tensor | None = None
) -> Fisher:
    """The diagonal blocks of damping·I + (1/m) Σ wᵢ gᵢ gᵢᵀ, in the cheaper form  (eq. 11).

    Blocks shorter than about m weights are (s, s) matrices in one batch (primal). Longer ones keep
    their columns of the rows and an (m, m) factor (dual). Both compute in float64 what is small,
    and return the dtype of the rows, float32 for halves. WoodFisher in blocks (Singh & Alistarh
    2020) and M-FAC in blocks (Frantar et al. 2021) are this one matrix.

    Args:
        rows: (m, d), any float dtype, at least one row.
        sizes: The lengths s of consecutive blocks, summing to d.
        damping: λ > 0, added to the diagonal.
        weights: (m,), positive; None for 1.

    Returns:
        A `Dense` stack (primal) or a `BlockDiagonal` of `LowRank` parts (dual).

    Raises:
        WoodburyError: If the sizes do not sum to d, or rows, weights or damping do not fit.

    Example:
        >>> import torch
        >>> import woodbury
        >>> rows = torch.tensor([[1.0, 1.0, 1.0]])
        >>> fisher = woodbury.fisher.dense_blocks(rows, sizes=(2, 1), damping=1.0)
        >>> fisher @ torch.tensor([1.0, 0.0, 0.0])
        tensor([2., 1., 0.])
    """
    rows = as_tensor(rows, "The matrix of rows")
    check_rows(rows)
    sizes = check_sizes(sizes, rows.shape[1])
    check_damping(damping)
    if is_primal(len(rows), sizes):
        check_finite(rows, "A matrix of rows")
        scale = None if weights is None else check_weights(weights, len(rows)).sqrt()
        return summed_blocks([rows], sizes, damping, scale)
    columns = rows.split(sizes, dim=1)
    return BlockDiagonal(tuple(LowRank(part, damping, weights) for part in columns))


def is_primal(m: int, sizes: Sequence[int]) -> bool:
    """Whether blocks of m rows are cheaper as (s, s) matrices than through (m, m) ones  (eq. 11).

    Args:
        m: The number of rows.
        sizes: The lengths of the blocks, of which the largest decides.

    Returns:
        True for the primal form.

    Example:
        >>> is_primal(1000, (50, 50)), is_primal(2, (200, 200))
        (True, False)
    """
    s = max(sizes)
    # Multiplications of the Gram matrix, the factor and the inverse of one block.
    primal = m * s**2 + s**3
    dual = 2 * m**2 * s + m**3
    return primal <= dual or s <= MAX_PRIMAL_SIZE


def summed_blocks(
    chunks: Iterable[Tensor], sizes: Sequence[int], damping: float, scale: Tensor | None = None
) -> Dense:
    """The primal form of rows that come in chunks, some of which are in memory at a time.

    Besides these rows, little more than a triangle of each block is held: in float32 where its
    rounding is small beside the damping or where float64 has no room, else in float64.

    Args:
        chunks: Rows (c, d), m in all.
        sizes: The lengths s of consecutive blocks, summing to d.
        damping: λ > 0, added to the diagonal.
        scale: (c,), what to multiply the rows by, where they come in one chunk; None for 1.

    Returns:
        The blocks, padded to the largest size.

    Raises:
        WoodburyError: If the sums are not finite, or the damping is not positive.

    Example:
        >>> import torch
        >>> chunks = [torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, -1.0]])]
        >>> summed_blocks(chunks, sizes=(2,), damping=1.0).diagonal()
        tensor([2., 2.])
    """
    lengths = torch.tensor(sizes)
    size = max(sizes)
    m = 0
    sums: SymmetricBlocks | None = None
    padding = Padding(len(sizes), size, None, lengths.device)
    dtype = torch.float32
    for rows in gathered(chunks, rows_at_once(sizes)):
        if sums is None:  # only the first chunk tells device and dtype
            padding = _padding(lengths.to(rows.device), size)
            dtype = wide_dtype(rows.dtype)
            sums_in = sums_dtype(rows, padding, damping, scale)
            sums = SymmetricBlocks.zeros(len(sizes), size, sums_in, rows.device)
        for part, columns in _columns(rows, padding, scale, sums.dtype):
            sums.add_products(part, columns)
        m += len(rows)
    assert sums is not None  # chunks of no row are an error of whoever makes them
    # |Σ gᵢgⱼ| ≤ max Σ gᵢ²: where the diagonal is finite, all is.
    check_finite(sums.scale_(1 / m).diagonal(), "The sum of the blocks")
    return Dense(sums, damping, padding.valid, dtype)


def rows_at_once(sizes: Sequence[int]) -> int:
    """Rows that are added to the sums at once: each time the sums are read and written.

    Args:
        sizes: The lengths of the blocks.

    Returns:
        As many as take half of what the sums take in float32, between `MIN_ROWS_AT_ONCE` and
        `MAX_ROWS_AT_ONCE`, if they have room beside them.
    """
    sums = block_bytes(len(sizes), max(sizes), torch.float32)
    per_row = 4 * sum(sizes)
    wanted = min(MAX_ROWS_AT_ONCE, max(MIN_ROWS_AT_ONCE, sums // (2 * per_row)))
    return max(1, min(wanted, (row_bytes() - sums) // per_row))


def gathered(chunks: Iterable[Tensor], count: int) -> Iterator[Tensor]:
    """Chunks of rows, small ones copied into one buffer of `count` rows.

    Args:
        chunks: Rows (c, d).
        count: The most rows of the buffer.

    Yields:
        Chunks of the same rows in the same order, each valid until the next.

    Example:
        >>> [len(rows) for rows in gathered([torch.ones(1, 2)] * 5, 2)]
        [2, 2, 1]
    """
    buffer: Tensor | None = None
    filled = 0
    for chunk in chunks:
        if buffer is not None and filled + len(chunk) > len(buffer):
            yield buffer[:filled]
            filled = 0
        if 2 * len(chunk) > count:
            if filled and buffer is not None:
                yield buffer[:filled]
                filled = 0
            yield chunk
            continue
        if buffer is None:
            buffer = chunk.new_empty(count, chunk.shape[1])
        buffer[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    if filled and buffer is not None:
        yield buffer[:filled]


def sums_dtype(rows: Tensor, padding: Padding, damping: float, scale: Tensor | None) -> torch.dtype:
    """The dtype that sums over rows like these need.

    Rounding changes F by about ε·tr C, and F⁻¹ by that share of the damping at most.

    Args:
        rows: (c, d), some of the rows.
        padding: Of the blocks.
        damping: λ.
        scale: (c,) or None, what the rows are multiplied by.

    Returns:
        float32 or float64.
    """
    if rows.dtype == torch.float64:
        return torch.float64
    step = max(1, len(rows) // ROWS_TO_MEASURE)
    some = rows[::step]
    scale = None if scale is None else scale[::step]
    traces = [
        columns.square().sum((0, 2)).max() / len(some)
        for _, columns in _columns(some, padding, scale, torch.float32)
    ]
    allowed = MAX_ROUNDING * damping / torch.finfo(torch.float32).eps
    if float(torch.stack(traces).max()) <= allowed:
        return torch.float32
    exact = block_bytes(padding.blocks, padding.size, torch.float64)
    return torch.float64 if exact <= row_bytes() else torch.float32


def _padding(lengths: Tensor, size: int) -> Padding:
    valid = torch.arange(size, device=lengths.device) < lengths[:, None]
    all_valid = bool(valid.all())
    return Padding(len(lengths), size, None if all_valid else valid, lengths.device)


def _columns(
    rows: Tensor, padding: Padding, scale: Tensor | None, dtype: torch.dtype
) -> Iterator[tuple[slice, Tensor]]:
    """A few blocks at a time, and their columns (m, c, s) in a dtype, zeros in the padding."""
    size = padding.size
    end = 0
    for part in _runs(padding, max(1, COLUMNS_AT_ONCE // size)):
        blocks = part.stop - part.start
        length = size if padding.valid is None else int(padding.valid[part.start].sum())
        begin, end = end, end + blocks * length
        columns = rows[:, begin:end].to(dtype)
        if scale is not None:
            columns = columns * scale.to(dtype)[:, None]
        columns = columns.unflatten(1, (blocks, length))
        yield part, columns if length == size else pad(columns, (0, size - length))


def _runs(padding: Padding, at_once: int) -> Iterator[slice]:
    """Blocks next to each other of one length, so that whole ones need no copy."""
    if padding.valid is None:
        ends = [padding.blocks]
    else:
        lengths = padding.valid.sum(1)
        ends = [*(lengths.diff().nonzero()[:, 0] + 1).tolist(), padding.blocks]
    for first, last in pairwise([0, *ends]):
        for start in range(first, last, at_once):
            yield slice(start, min(start + at_once, last))
