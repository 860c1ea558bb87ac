"""Gradient rows that come on every rank, for the columns that each rank holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from woodbury.fisher.base import Fisher
from woodbury.fisher.block_diagonal import BlockDiagonal
from woodbury.fisher.blocks_of_rows import dense_blocks, is_primal, summed_blocks
from woodbury.fisher.lowrank import LowRank
from woodbury.fisher.sharded import Sharded
from woodbury.linalg.column_bounds import column_bounds, even_bounds
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
        columns = ranks.exchanged(next(remaining, none), bounds)
        if columns is None:
            return
        yield columns


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
    chunks: Iterable[Tensor], m: int, sizes: Sequence[int], damping: float, like: Tensor
) -> Fisher:
    """The dense diagonal blocks of rows that each rank computes a part of  (eq. 11).

    Args:
        chunks: Rows (c, d) of this rank.
        m: The rows of all ranks.
        sizes: Of the blocks, summing to d.
        damping: λ > 0.
        like: A tensor of the dtype and device of the rows.

    Returns:
        The blocks, in the cheaper form; over ranks a `Sharded` operator, each rank with whole
        blocks.
    """
    ranks = Ranks.current()
    bounds = column_bounds(sizes, ranks.size)
    own = _blocks_within(sizes, bounds[ranks.rank], bounds[ranks.rank + 1])
    columns = own_columns(chunks, bounds, like)
    local: Fisher | None = None
    if not own:
        for _ in columns:  # the other ranks wait for what this one has computed
            pass
    elif is_primal(m, sizes):
        local = summed_blocks(columns, own, damping)
    else:
        local = dense_blocks(torch.cat(list(columns)), own, damping)
    if ranks.size == 1:
        assert local is not None
        return local
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
    own = slice(bounds[ranks.rank], bounds[ranks.rank + 1])
    firsts = list(accumulate(sizes, initial=0))[:-1]
    mine = [index for index, first in enumerate(firsts) if own.start <= first < own.stop]
    local = BlockDiagonal(tuple(part(index) for index in mine)) if mine else None
    if ranks.size == 1 and local is not None:
        return local
    return Sharded.of(local, bounds, damping, _result_like(like))


def _blocks_within(sizes: Sequence[int], start: int, stop: int) -> tuple[int, ...]:
    """The sizes of the blocks that lie between two bounds."""
    firsts = accumulate(sizes, initial=0)
    return tuple(size for size, first in zip(sizes, firsts, strict=False) if start <= first < stop)


def _result_like(like: Tensor) -> Tensor:
    return like.new_empty(0, dtype=wide_dtype(like.dtype))
