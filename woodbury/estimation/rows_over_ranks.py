"""Gradient rows that come on every rank, for the columns that each rank holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from woodbury.fisher.base import Fisher
from woodbury.fisher.block_diagonal import BlockDiagonal
from woodbury.fisher.blocks_of_rows import dense_blocks, summed_blocks
from woodbury.fisher.lowrank import LowRank
from woodbury.fisher.sharded import Sharded
from woodbury.linalg.column_bounds import blocks_of_rank, column_bounds, even_bounds
from woodbury.linalg.paged_rows import Rows
from woodbury.linalg.precision import wide_dtype
from woodbury.linalg.ranks import Ranks


def own_columns(chunks: Iterable[Tensor], bounds: Sequence[int], like: Tensor) -> Iterator[Tensor]:
    """This rank's columns of the rows of all ranks, by one all-to-all for each chunk.

    Args:
        chunks: Rows (c, d) of this rank, some at a time; ranks may have different numbers of them.
        bounds: (ranks + 1), where the columns of each rank begin.
        like: A tensor of the dtype and device of the rows.

    Yields:
        (Σ c, own columns), in the order of the ranks.
    """
    ranks = Ranks.current()
    if ranks.size == 1:
        yield from chunks
        return
    none = like.new_empty(0, bounds[-1])
    remaining = iter(chunks)
    while True:
        columns = ranks.all_to_all(next(remaining, none), bounds)
        if columns is None:
            return
        yield columns
        del columns  # before the next row is computed: it is as long as all weights


def whole_matrix(
    stored: Callable[[Iterable[Tensor], int], Rows],
    chunks: Iterable[Tensor],
    d: int,
    damping: float,
    like: Tensor,
) -> Fisher:
    """The low-rank Fisher of rows that each rank computes a part of  (eq. 2).

    Args:
        stored: (chunks of columns, their number) -> where the rows lie.
        chunks: Rows (c, d) of this rank.
        d: The number of weights.
        damping: λ > 0.
        like: A tensor of the dtype and device of the rows.

    Returns:
        A `LowRank`; over ranks a `Sharded` one.
    """
    ranks = Ranks.current()
    if ranks.size == 1:
        return LowRank.from_gram(stored(chunks, d), damping, None)
    bounds = even_bounds(d, ranks.size)
    width = bounds[ranks.rank + 1] - bounds[ranks.rank]
    rows = stored(own_columns(chunks, bounds, like), width)
    local = LowRank.from_gram(rows, damping, None, group=ranks.group)
    return Sharded.of(local, bounds, damping, _result_like(like))


def blocks(
    chunks: Iterable[Tensor],
    sizes: Sequence[int],
    damping: float,
    like: Tensor,
    *,
    primal: bool,
) -> Fisher:
    """The dense diagonal blocks of rows that each of several ranks computes a part of  (eq. 11).

    Args:
        chunks: Rows (c, d) of this rank.
        sizes: Of the blocks, summing to d.
        damping: λ > 0.
        like: A tensor of the dtype and device of the rows.
        primal: Whether (s, s) sums are held in place of rows, as for `is_primal`.

    Returns:
        A `Sharded` operator, each rank with whole blocks.
    """
    ranks = Ranks.current()
    bounds = column_bounds(sizes, ranks.size)
    own = [sizes[index] for index in blocks_of_rank(sizes, bounds, ranks.rank)]
    columns = own_columns(chunks, bounds, like)
    local: Fisher | None = None
    if not own:
        for _ in columns:  # the other ranks wait for what this one has computed
            pass
    elif primal:
        local = summed_blocks(columns, own, damping)
    else:
        local = dense_blocks(torch.cat(list(columns)), own, damping)
    return Sharded.of(local, bounds, damping, _result_like(like))


def parts(
    sizes: Sequence[int], part: Callable[[int], Fisher], damping: float, like: Tensor
) -> Fisher:
    """Operators of consecutive weights, each made by one rank alone.

    Args:
        sizes: How many weights each has.
        part: Which one -> the operator.
        damping: Theirs.
        like: A tensor of the dtype and device of the results.

    Returns:
        A `BlockDiagonal`; over ranks a `Sharded` one.
    """
    ranks = Ranks.current()
    bounds = column_bounds(sizes, ranks.size)
    mine = blocks_of_rank(sizes, bounds, ranks.rank)
    local = BlockDiagonal(tuple(part(index) for index in mine)) if mine else None
    if ranks.size == 1 and local is not None:
        return local
    return Sharded.of(local, bounds, damping, _result_like(like))


def _result_like(like: Tensor) -> Tensor:
    return like.new_empty(0, dtype=wide_dtype(like.dtype))
