"""Blocks of C = (1/m) Σ g gᵀ: as (s, s) matrices or through (m, m) ones, whichever is cheaper."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from woodbury.fisher.base import Fisher
from woodbury.fisher.block_diagonal import BlockDiagonal
from woodbury.fisher.block_layout import Layout, Sums
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
from woodbury.linalg.packed_blocks import PackedBlocks, packed_bytes
from woodbury.linalg.precision import wide_dtype
from woodbury.linalg.symmetric_blocks import block_bytes
from woodbury.memory.budget import row_bytes, sums_bytes

MAX_PRIMAL_SIZE = 128
"""Blocks up to this size are (s, s) matrices whatever the count: in one batch they are cheap."""

DUAL_SECONDS = 1.5
"""Seconds of a multiplication through (m, m) matrices, in those of one of (s, s) matrices: these
are summed in float32 and once, in batches; measured at 100, 400 and 1,000 rows. At equal seconds
the (s, s) matrices hold a sixth of the bytes."""

MIN_ROWS_AT_ONCE = 8
"""Rows that are added to the sums at once at least, if they have room."""

MAX_ROWS_AT_ONCE = 32
"""Rows from which on adding to the sums is bound by products and no more by memory."""

PACKED_ROWS_AT_ONCE = 16
"""The same for compiled kernels, whose products are fast from the first row on: the system takes
longer to give more rows their memory than they save."""

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
    return primal <= DUAL_SECONDS * dual or s <= MAX_PRIMAL_SIZE


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
    m = 0
    sums: Sums | None = None
    layout: Layout | None = None
    dtype = torch.float32
    for rows in gathered(chunks, lambda first: rows_at_once(sizes, first)):
        if sums is None or layout is None:  # only the first chunk tells device and dtype
            layout = Layout.of(sizes, rows[0])
            dtype = wide_dtype(rows[0].dtype)
            sums = layout.zeros(sums_dtype(rows, layout, damping, scale))
        layout.add_products(sums, rows, scale)
        m += sum(len(chunk) for chunk in rows)
        del rows  # before the next are computed
    assert sums is not None and layout is not None  # no row is an error of whoever makes them
    # |Σ gᵢgⱼ| ≤ max Σ gᵢ²: where the diagonal is finite, all is.
    check_finite(sums.scale_(1 / m).diagonal(), "The sum of the blocks")
    return Dense(sums, damping, layout.padding.valid, dtype)


def rows_at_once(sizes: Sequence[int], rows: Tensor) -> int:
    """Rows that are added to the sums at once: each time the sums are read and written.

    Args:
        sizes: The lengths of the blocks.
        rows: Some rows (c, d) like those that are added.

    Returns:
        As many as take half of what the sums take in float32, between `MIN_ROWS_AT_ONCE` and
        `MAX_ROWS_AT_ONCE`, if they have room beside them.
    """
    count, size = len(sizes), max(sizes)
    packed = PackedBlocks.pay(count, size, wide_dtype(rows.dtype), rows.device)
    sums = packed_bytes(count, size) if packed else block_bytes(count, size, torch.float32)
    d = sum(sizes)
    per_row = 4 * d
    wanted = min(MAX_ROWS_AT_ONCE, max(MIN_ROWS_AT_ONCE, sums // (2 * per_row)))
    if packed:
        wanted = PACKED_ROWS_AT_ONCE
    return max(1, min(wanted, (sums_bytes(d) - sums) // per_row))


def gathered(chunks: Iterable[Tensor], count_of: Callable[[Tensor], int]) -> Iterator[list[Tensor]]:
    """Chunks of rows, several small ones at a time.

    Args:
        chunks: Rows (c, d).
        count_of: The first chunk -> the most rows of several chunks together.

    Yields:
        Chunks that follow each other, of `count` rows at most or one chunk.

    Example:
        >>> [len(chunks) for chunks in gathered([torch.ones(1, 2)] * 5, lambda first: 2)]
        [2, 2, 1]
    """
    waiting: list[Tensor] = []
    rows = count = 0
    for chunk in chunks:
        count = count or count_of(chunk)
        if waiting and rows + len(chunk) > count:
            yield waiting
            waiting, rows = [], 0
        waiting.append(chunk)
        rows += len(chunk)
        del chunk  # before the next is computed
        if rows >= count:
            yield waiting
            waiting, rows = [], 0
    if waiting:
        yield waiting


def sums_dtype(
    rows: Sequence[Tensor], layout: Layout, damping: float, scale: Tensor | None
) -> torch.dtype:
    """The dtype that sums over rows like these need.

    Rounding changes F by about ε·tr C, and F⁻¹ by that share of the damping at most.

    Args:
        rows: Chunks (c, d) of some of the rows.
        layout: Of the blocks.
        damping: λ.
        scale: (c,) or None, what the rows of the one chunk are multiplied by.

    Returns:
        float32 or float64.
    """
    if rows[0].dtype == torch.float64:
        return torch.float64
    step = max(1, sum(len(chunk) for chunk in rows) // ROWS_TO_MEASURE)
    some = [chunk[::step] for chunk in rows]
    scale = None if scale is None else scale[::step]
    count = sum(len(chunk) for chunk in some)
    allowed = MAX_ROUNDING * damping / torch.finfo(torch.float32).eps
    if layout.largest_trace(some, scale) <= allowed * count:
        return torch.float32
    padding = layout.padding
    exact = block_bytes(padding.blocks, padding.size, torch.float64)
    return torch.float64 if exact <= row_bytes() else torch.float32
