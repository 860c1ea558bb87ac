"""Rows that need not lie in memory: read by pages of columns, and restricted by an index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor


class Page(NamedTuple):
    """Neighbouring columns of all rows.

    Attributes:
        columns: Where they lie among the d columns.
        values: (m, c), in the rows' own dtype; valid until the next page is asked for.
    """

    columns: slice
    values: Tensor


class PagedRows(ABC):
    """Rows G (m, d) outside memory, of which a page of columns is in memory at a time.

    Attributes:
        shape: (m, d).
        dtype: Of the numbers as they are stored.
        device: Where the pages are given.
        squares: (d,), the sum of the squares of each column, float32 at least.
    """

    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    squares: Tensor

    @abstractmethod
    def pages(self, wanted: Tensor | None = None) -> Iterator[Page]:
        """The rows in one read, by pages in the order of their columns.

        Args:
            wanted: (d,) bool; a page without any wanted column is left out. None for all pages.

        Yields:
            The pages.
        """

    @abstractmethod
    def take(self, columns: Tensor) -> Tensor:
        """Some columns, in any order.

        Args:
            columns: (c,) int64 in [0, d).

        Returns:
            (m, c), in the rows' own dtype.
        """


@dataclass(frozen=True, eq=False)
class KeptColumns:
    """Some columns of rows that stay where they are: an index, no copy.

    Attributes:
        base: G (m, d).
        keep: (d,) bool, True for the k columns that are kept.

    Example:
        >>> base = torch.tensor([[1.0, 2.0, 3.0]])
        >>> kept = KeptColumns(base, torch.tensor([True, False, True]))
        >>> kept.shape, kept.scattered(torch.tensor([5.0, 6.0]))
        ((1, 2), tensor([5., 0., 6.]))
    """

    base: Tensor | PagedRows
    keep: Tensor

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(m, k)."""
        return self.base.shape[0], int(self.keep.sum())

    @property
    def dtype(self) -> torch.dtype:
        """That of the base."""
        return self.base.dtype

    @property
    def device(self) -> torch.device:
        """That of the base."""
        return self.base.device

    def among_all(self, keep: Tensor | None) -> Tensor:
        """A mask of the kept columns as one of all d.

        Args:
            keep: (k,) bool; None for all k.

        Returns:
            (d,) bool.
        """
        if keep is None:
            return self.keep
        return torch.zeros_like(self.keep).masked_scatter_(self.keep, keep)

    def scattered(self, v: Tensor) -> Tensor:
        """A vector on the kept columns as one on all d, 0 elsewhere.

        Args:
            v: (k,) or (k, c).

        Returns:
            (d,) or (d, c).
        """
        full = v.new_zeros(len(self.keep), *v.shape[1:])
        full[self.keep] = v
        return full


Rows: TypeAlias = Tensor | PagedRows | KeptColumns
"""Rows G (m, d): in memory, by pages, or some columns of either."""


def restricted(rows: Rows, keep: Tensor) -> KeptColumns:
    """Some columns of rows, without a copy.

    Args:
        rows: G (m, d).
        keep: (d,) bool, True = kept.

    Returns:
        An index on the same rows; the index of an index is one on the rows beneath.
    """
    if isinstance(rows, KeptColumns):
        return KeptColumns(rows.base, rows.among_all(keep))
    return KeptColumns(rows, keep)


def taken(rows: Rows, columns: Tensor) -> Tensor:
    """Some columns of rows, in any order, copied.

    Args:
        rows: G (m, d).
        columns: (c,) int64 in [0, d).

    Returns:
        (m, c), in the rows' own dtype.

    Example:
        >>> kept = restricted(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([True, False, True]))
        >>> taken(kept, torch.tensor([1, 0, 1]))
        tensor([[3., 1., 3.]])
    """
    if isinstance(rows, KeptColumns):
        return taken(rows.base, rows.keep.nonzero()[:, 0][columns])
    if isinstance(rows, PagedRows):
        return rows.take(columns)
    return rows.index_select(1, columns)


def known_squares(rows: Rows) -> Tensor | None:
    """The sums of squares of the columns, where they are known without reading the rows.

    Args:
        rows: G (m, d).

    Returns:
        (d,), float32 at least; None for a tensor.
    """
    if isinstance(rows, KeptColumns):
        squares = known_squares(rows.base)
        return None if squares is None else squares[rows.keep]
    return rows.squares if isinstance(rows, PagedRows) else None


def in_memory(rows: Rows) -> bool:
    """Whether all rows lie in memory.

    Args:
        rows: G (m, d).

    Returns:
        False for pages, and for some columns of them.
    """
    return isinstance(rows.base if isinstance(rows, KeptColumns) else rows, Tensor)


def leading(rows: Rows, count: int) -> Rows | None:
    """The first rows, where they can be read without the others.

    Args:
        rows: G (m, d).
        count: How many.

    Returns:
        (count, d); None for pages, which hold all rows.
    """
    if isinstance(rows, KeptColumns):
        first = leading(rows.base, count)
        return None if first is None else restricted(first, rows.keep)
    return rows[:count] if isinstance(rows, Tensor) else None


def pages(rows: Tensor | PagedRows, wanted: Tensor | None = None) -> Iterator[Page]:
    """Rows by pages; those in memory are one.

    Args:
        rows: G (m, d).
        wanted: (d,) bool; a page without any wanted column is left out. None for all pages.

    Yields:
        The pages in the order of their columns.
    """
    if isinstance(rows, PagedRows):
        yield from rows.pages(wanted)
    else:
        yield Page(slice(0, rows.shape[1]), rows)
