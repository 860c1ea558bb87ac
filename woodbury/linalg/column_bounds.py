"""Where the columns of each rank begin."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


def column_bounds(sizes: Sequence[int], ranks: int) -> list[int]:
    """Where the columns of each rank begin, so that no block is cut.

    Args:
        sizes: Of the blocks, in order.
        ranks: How many ranks there are.

    Returns:
        (ranks + 1), from 0 to sum(sizes); as even as the blocks allow.

    Example:
        >>> column_bounds([4, 4, 4, 1], ranks=2), column_bounds([1] * 5, ranks=2)
        ([0, 8, 13], [0, 3, 5])
    """
    ends = [0, *accumulate(sizes)]
    bounds = [0]
    for rank in range(1, ranks):
        ideal = ends[-1] * rank / ranks
        after = bisect_left(ends, ideal)
        before = max(after - 1, 0)
        nearest = before if ideal - ends[before] < ends[after] - ideal else after
        bounds.append(max(ends[nearest], bounds[-1]))
    return [*bounds, ends[-1]]


def blocks_of_rank(sizes: Sequence[int], bounds: Sequence[int], rank: int) -> list[int]:
    """Which blocks are a rank's.

    Args:
        sizes: Of the blocks, in order.
        bounds: As `column_bounds` gives them.
        rank: The rank.

    Returns:
        Their indices.

    Example:
        >>> blocks_of_rank([4, 4, 4, 1], [0, 8, 13], rank=1)
        [2, 3]
    """
    firsts = list(accumulate(sizes, initial=0))[:-1]
    start, stop = bounds[rank], bounds[rank + 1]
    return [index for index, first in enumerate(firsts) if start <= first < stop]


def even_bounds(d: int, ranks: int) -> list[int]:
    """The same for columns that may be cut anywhere.

    Args:
        d: How many there are.
        ranks: How many ranks there are.

    Example:
        >>> even_bounds(5, ranks=2)
        [0, 2, 5]
    """
    return [d * rank // ranks for rank in range(ranks + 1)]
