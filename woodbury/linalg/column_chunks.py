"""The rows by chunks of columns, one after the other or shared among threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from woodbury.limits import Limits
from woodbury.linalg.paged_rows import KeptColumns, Page, Rows, pages
from woodbury.linalg.threads import share, threads_on

COLUMNS_PER_INDEX = 1 << 20
"""Columns of a mask that become indices at once: those of all would be two more vectors."""

CHUNK_COLUMNS_ON_GPU = 1 << 16
"""Columns of one chunk on a GPU."""

LANES = 8
"""Parts that chunks are dealt to, whatever the number of threads: sums do not depend on it."""

CHUNKS_AT_ONCE = 64
"""Chunks that are dealt at once."""


def column_chunks(
    rows: Rows, dtype: torch.dtype, keep: Tensor | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """The rows by column chunks in `dtype`, in one read.

    Args:
        rows: G (m, d), any float dtype.
        dtype: Of the chunks.
        keep: (d,) bool, the columns to read; None for all.

    Yields:
        Where a chunk lies among the columns read, and the chunk (m, ≤ chunk_width(rows)); float64
        chunks are half as wide. It is valid until the next: a chunk of all columns in the rows' own
        dtype is a view.
    """
    for page, places in _places(rows, dtype, keep):
        for place in places:
            yield place.part, _read(page, place, dtype)


def each_chunk(
    rows: Rows,
    dtype: torch.dtype,
    work: Callable[[int, slice, Tensor], object],
    keep: Tensor | None = None,
    lanes: int = LANES,
) -> None:
    """Do work for all column chunks in one read, shared among threads on a CPU.

    Args:
        rows: G (m, d), any float dtype.
        dtype: Of the chunks.
        work: (lane, part, chunk) -> anything: the lane in 0 … lanes − 1, and what `column_chunks`
            yields. The chunks of one lane come one after the other, in an order that is always the
            same; those of others meanwhile.
        keep: (d,) bool, the columns to read; None for all.
        lanes: How many there are; with one, each chunk has all of torch's threads.

    Example:
        >>> sums = torch.zeros(3)
        >>> def add(lane: int, part: slice, chunk: Tensor) -> None:
        ...     sums[part] = chunk.sum(0)
        >>> each_chunk(torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]), torch.float32, add)
        >>> sums
        tensor([1., 3., 3.])
    """
    for page, places in _places(rows, dtype, keep):
        while some := list(islice(places, CHUNKS_AT_ONCE)):

            def in_lane(lane: int, page: Page = page, some: list[_Place] = some) -> None:
                for place in some[lane::lanes]:
                    work(lane, place.part, _read(page, place, dtype))

            share(in_lane, range(min(lanes, len(some))), _threads(rows, len(some)))


def chunk_width(rows: Rows) -> int:
    """Columns per chunk: enough for a full-speed product, few enough for a processor's cache.

    Args:
        rows: The rows, of which only the device matters.

    Returns:
        `Limits.row_columns` on a CPU.
    """
    if rows.device.type == "cpu":
        return Limits.current().row_columns
    return CHUNK_COLUMNS_ON_GPU


class _Place(NamedTuple):
    """A chunk of columns.

    Attributes:
        part: Among the columns that are read.
        columns: Among those of its page.
    """

    part: slice
    columns: slice | Tensor


def _threads(rows: Rows, chunks: int) -> int:
    """Threads that share some chunks, where each has work enough."""
    threads = threads_on(rows.device)
    return threads if chunks >= 2 * threads else 1


def _places(
    rows: Rows, dtype: torch.dtype, keep: Tensor | None
) -> Iterator[tuple[Page, Iterator[_Place]]]:
    """The pages of the rows, each with its chunks."""
    if isinstance(rows, KeptColumns):
        rows, keep = rows.base, rows.among_all(keep)
    step = chunk_width(rows) // (2 if dtype == torch.float64 else 1)
    done = 0
    for page in pages(rows, keep):
        yield page, _places_in(page, step, keep, done)
        done += page.values.shape[1] if keep is None else int(keep[page.columns].sum())


def _places_in(page: Page, step: int, keep: Tensor | None, done: int) -> Iterator[_Place]:
    """The columns of a page that are kept, at most `step` at a time."""
    width = page.values.shape[1]
    if keep is None:
        for start in range(0, width, step):
            end = min(start + step, width)
            yield _Place(slice(done + start, done + end), slice(start, end))
        return
    kept = keep[page.columns]
    for first in range(0, width, COLUMNS_PER_INDEX):
        columns = kept[first : first + COLUMNS_PER_INDEX].nonzero()[:, 0] + first
        for some in columns.split(step):
            if len(some):
                yield _Place(slice(done, done + len(some)), some)
            done += len(some)


def _read(page: Page, place: _Place, dtype: torch.dtype) -> Tensor:
    """The columns of a chunk (m, c)."""
    if isinstance(place.columns, slice):
        return page.values[:, place.columns].to(dtype)
    return page.values.index_select(1, place.columns).to(dtype)
