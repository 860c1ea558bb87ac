"""BlockDiagonal: any Fishers side by side, and the choice of form for dense blocks of rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher
from woodbury.fisher.block_diagonal import BlockDiagonal
from woodbury.fisher.checks import check_finite
from woodbury.fisher.dense import Dense
from woodbury.fisher.lowrank import LowRank, check_weights


def dense_blocks(
    rows: Tensor, sizes: Sequence[int], damping: float, weights: Tensor | None = None
) -> Fisher:
    """The blocks of damping·I + (1/m) Σ wᵢ gᵢ gᵢᵀ on consecutive runs of weights, each in its cheaper form  (eq. 11).

    rows (m, d); sizes: lengths of the runs, summing to d. Runs shorter than about m are (s, s) matrices in one batch
    (primal); longer ones keep their columns of the rows and an (m, m) factor (dual). Both compute in float64 what is
    small, and return the dtype of the rows, float32 for halves.
    """
    if rows.ndim != 2 or 0 in rows.shape:
        raise WoodburyError(
            f"The rows have shape {tuple(rows.shape)}: give (m, d) with at least one row."
        )
    if sum(sizes) != rows.shape[1] or min(sizes, default=0) < 1:
        raise WoodburyError(
            f"Blocks of {sum(sizes)} weights in all cannot tile rows of {rows.shape[1]} weights."
        )
    if is_primal(len(rows), sizes):
        check_finite(rows, "A matrix of rows")
        scale = None if weights is None else check_weights(weights, len(rows)).sqrt()
        return summed_blocks([rows], sizes, damping, scale)
    parts = rows.split(list(sizes), dim=1)
    return BlockDiagonal(tuple(LowRank(part, damping, weights) for part in parts))


def is_primal(m: int, sizes: Sequence[int]) -> bool:
    """Whether blocks of m rows are cheaper as (s, s) matrices than through (m, m) ones  (eq. 11)."""
    s = max(sizes)
    primal, dual = (
        m * s**2 + s**3,
        2 * m**2 * s + m**3,
    )  # multiplications of Gram, factor and inverse of one block
    return primal <= dual or s <= 128


def summed_blocks(
    chunks: Iterable[Tensor], sizes: Sequence[int], damping: float, scale: Tensor | None = None
) -> Dense:
    """The primal form of rows that come in chunks (c, d), of which one at a time is in memory, besides s × d sums in float64.

    scale: what to multiply the rows by, (c,), where they come in one chunk.
    """
    s, b, m = max(sizes), len(sizes), 0
    curvature, valid, dtype = torch.empty(0), torch.empty(0), torch.float32
    for chunk in chunks:
        if not m:
            valid = (
                torch.arange(s, device=chunk.device)
                < torch.tensor(sizes, device=chunk.device)[:, None]
            )
            curvature = torch.zeros(b, s, s, dtype=torch.float64, device=chunk.device)
            dtype = torch.promote_types(chunk.dtype, torch.float32)
        _add_products(curvature, chunk, valid, scale)
        m += len(chunk)
    return Dense(curvature.div_(m), damping, None if bool(valid.all()) else valid, dtype)


def _add_products(curvature: Tensor, rows: Tensor, valid: Tensor, scale: Tensor | None) -> None:
    """curvature (b, s, s) += Σ g gᵀ of every block, a few blocks at a time, as float64 columns of all would not fit a cache."""
    at_once, end = max(1, 4096 // valid.shape[1]), 0
    for start in range(0, len(curvature), at_once):
        part = slice(start, start + at_once)
        begin, end = end, end + int(valid[part].sum())
        columns = _padded(rows[:, begin:end], valid[part]).permute(1, 0, 2).contiguous().double()
        columns = columns if scale is None else columns * scale.double()[:, None]
        curvature[part].baddbmm_(columns.mT, columns)


def _padded(columns: Tensor, valid: Tensor) -> Tensor:
    """(m, valid.sum()) -> (m, *valid.shape), zeros where not valid."""
    if bool(valid.all()):
        return columns.reshape(len(columns), *valid.shape)
    padded = columns.new_zeros(len(columns), *valid.shape)
    padded[:, valid] = columns
    return padded
