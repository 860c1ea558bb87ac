"""Blocks of C = (1/m) Σ g gᵀ: as (s, s) matrices or through (m, m) ones, whichever is cheaper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher
from woodbury.fisher.block_diagonal import BlockDiagonal
from woodbury.fisher.checks import check_finite, check_rows, check_weights
from woodbury.fisher.dense import Dense
from woodbury.fisher.lowrank import LowRank
from woodbury.linalg.precision import wide_dtype

MAX_PRIMAL_SIZE = 128
"""Blocks up to this size are (s, s) matrices whatever the count: in one batch they are cheap."""


COLUMNS_AT_ONCE = 4096
"""Columns of the rows that are converted to float64 at once: those of all would not fit a cache."""


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
    check_rows(rows)
    if sum(sizes) != rows.shape[1] or min(sizes, default=0) < 1:
        raise WoodburyError(
            f"Blocks of {sum(sizes)} weights in all cannot tile rows of {rows.shape[1]} weights: "
            "give positive sizes that sum to d."
        )
    if is_primal(len(rows), sizes):
        check_finite(rows, "A matrix of rows")
        scale = None if weights is None else check_weights(weights, len(rows)).sqrt()
        return summed_blocks([rows], sizes, damping, scale)
    columns = rows.split(list(sizes), dim=1)
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
    """The primal form of rows that come in chunks, one of which is in memory at a time.

    Besides the chunk, s × d sums in float64 are held.

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
    s = max(sizes)
    m = 0
    curvature = valid = torch.empty(0)
    dtype = torch.float32
    for chunk in chunks:
        if not m:  # only the first chunk tells device and dtype
            lengths = torch.tensor(sizes, device=chunk.device)
            valid = torch.arange(s, device=chunk.device) < lengths[:, None]
            curvature = torch.zeros(len(sizes), s, s, dtype=torch.float64, device=chunk.device)
            dtype = wide_dtype(chunk.dtype)
        _add_products(curvature, chunk, valid, scale)
        m += len(chunk)
    return Dense(curvature.div_(m), damping, None if bool(valid.all()) else valid, dtype)


def _add_products(curvature: Tensor, rows: Tensor, valid: Tensor, scale: Tensor | None) -> None:
    """Add Σ g gᵀ of every block to curvature (b, s, s), a few blocks at a time."""
    at_once = max(1, COLUMNS_AT_ONCE // valid.shape[1])
    end = 0
    for start in range(0, len(curvature), at_once):
        part = slice(start, start + at_once)
        begin, end = end, end + int(valid[part].sum())
        # (m, c, s) -> (c, m, s): the blocks as a batch, contiguous before the conversion.
        columns = _padded(rows[:, begin:end], valid[part]).permute(1, 0, 2).contiguous().double()
        if scale is not None:
            columns = columns * scale.double()[:, None]
        curvature[part].baddbmm_(columns.mT, columns)


def _padded(columns: Tensor, valid: Tensor) -> Tensor:
    """(m, valid.sum()) -> (m, *valid.shape), zeros where not valid."""
    if bool(valid.all()):
        return columns.reshape(len(columns), *valid.shape)
    padded = columns.new_zeros(len(columns), *valid.shape)
    padded[:, valid] = columns
    return padded
