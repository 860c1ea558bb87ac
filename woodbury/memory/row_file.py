"""RowFile: gradient rows in a nameless file of a scratch folder, read by pages of columns."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import FileIO

import numpy
import torch
from torch import Tensor

from woodbury.errors import WoodburyError, reason
from woodbury.limits import Limits
from woodbury.linalg.paged_rows import Page, PagedRows
from woodbury.linalg.precision import wide_dtype
from woodbury.memory.page_cache import aligned, write_at

UNREADABLE = (
    "The gradient rows cannot be read back from their scratch folder: run again with another "
    "(scratch=)."
)


@dataclass(frozen=True, eq=False)
class RowFile(PagedRows):
    """Rows in a file: page after page, a page (m, width) being one stretch of the file.

    The file has no name. It goes with the last operator on it, or with the process, however that
    ends.

    Attributes:
        file: Opened for reading and writing, without a buffer.
        shape: (m, d).
        dtype: Of the numbers in the file.
        device: Where the pages are given.
        width: Columns of a page; the last one may have fewer.
        squares: (d,), the sum of the squares of each column as far as rows are written.
        sums: The sum of the words of each page modulo 2⁶⁴ as far as rows are written, which reading
            compares: twenty times as fast as a CRC, and added up row by row.
    """

    file: FileIO
    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    width: int
    squares: Tensor
    sums: list[int]
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @classmethod
    def empty(
        cls,
        file: FileIO,
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
        page: int,
    ) -> RowFile:
        """Rows that are still to be written.

        Args:
            file: Empty, opened for reading and writing, without a buffer.
            shape: (m, d).
            dtype: Of the numbers in the file.
            device: Where the pages are given.
            page: Bytes of a page at most, if `Limits.page` is not less.

        Returns:
            The rows.
        """
        m, d = shape
        limits = Limits.current()
        width = max(1, min(page, limits.page) // (m * dtype.itemsize))
        if width > limits.row_columns:  # no chunk of a product is then cut by the page's end
            width -= width % limits.row_columns
        squares = torch.zeros(d, dtype=wide_dtype(dtype), device=device)
        sums = [0] * -(-d // width)
        rows = cls(file, shape, dtype, device, width, squares, sums)
        weakref.finalize(rows, file.close)
        return rows

    def pages(self, wanted: Tensor | None = None) -> Iterator[Page]:
        """The rows in one read, the next page read ahead in a thread.

        Args:
            wanted: (d,) bool; a page without any wanted column is left out. None for all pages.

        Yields:
            The pages in the order of their columns, each valid until the next.

        Raises:
            WoodburyError: If the file cannot be read, or is damaged.
        """
        m, d = self.shape
        starts = list(range(0, d, self.width))
        if wanted is not None:
            starts = [start for start in starts if bool(wanted[self._columns(start)].any())]
        buffers = [torch.empty(m * min(self.width, d), dtype=self.dtype) for _ in starts[:2]]
        with ThreadPoolExecutor(1, thread_name_prefix="woodbury-rows") as reader:
            ahead = [reader.submit(self._read, start, buffers[0]) for start in starts[:1]]
            for index, start in enumerate(starts):
                values = ahead.pop().result()
                if index + 1 < len(starts):
                    into = buffers[(index + 1) % 2]
                    ahead.append(reader.submit(self._read, starts[index + 1], into))
                self._check(start, values)
                yield Page(self._columns(start), values.to(self.device))

    def take(self, columns: Tensor) -> Tensor:
        """Some columns, in any order; every page with one of them is read.

        Args:
            columns: (c,) int64 in [0, d).

        Returns:
            (m, c), in the dtype of the file.

        Raises:
            WoodburyError: If the file cannot be read.
        """
        m, d = self.shape
        ordered, places = columns.sort()
        wanted = torch.zeros(d, dtype=torch.bool, device=columns.device)
        wanted[columns] = True
        result = torch.empty(m, len(columns), dtype=self.dtype, device=self.device)
        for page in self.pages(wanted):
            ends = torch.tensor([page.columns.start, page.columns.stop], device=columns.device)
            first, last = torch.searchsorted(ordered, ends).tolist()
            inside = ordered[first:last] - page.columns.start
            result[:, places[first:last]] = page.values.index_select(1, inside)
        return result

    def write(self, first: int, rows: Tensor) -> None:
        """Put some rows into their places, one after the other and each once.

        Args:
            first: The row of the file that is the first of them: the one after the last written.
            rows: (c, d), any float dtype.

        Raises:
            OSError: If the disk takes no more.
        """
        m, d = self.shape
        buffer = aligned(len(rows) * min(self.width, d), self.dtype)
        for start in range(0, d, self.width):
            columns = self._columns(start)
            values = rows[:, columns]
            # All that is done with a piece is done while a cache holds it.
            piece = buffer[: values.numel()].view(values.shape).copy_(values)
            for row in piece.to(self.squares.device, self.squares.dtype):
                self.squares[columns].addcmul_(row, row)
            self.sums[start // self.width] += self._sum(piece)
            position = start * m + first * (columns.stop - start)
            with self._lock:
                write_at(self.file, position * self.dtype.itemsize, piece.view(-1))

    def _columns(self, start: int) -> slice:
        return slice(start, min(start + self.width, self.shape[1]))

    def _sum(self, values: Tensor) -> int:
        """The sum of the words of some rows of a page modulo 2⁶⁴: eight bytes where a row has such.

        NumPy's, which no thread of torch's shares with the products that are under way.
        """
        row = values.shape[1] * self.dtype.itemsize
        word = next(size for size in (8, 4, 2) if row % size == 0)
        words = values.view(-1).view(torch.uint8).numpy().view(f"u{word}")
        return int(words.sum(dtype=numpy.uint64))

    def _read(self, start: int, buffer: Tensor) -> Tensor:
        """The page that begins at a column, in the first part of a buffer, unchecked."""
        m = self.shape[0]
        columns = self._columns(start)
        values = buffer[: m * (columns.stop - start)]
        remaining = _bytes_of(values)
        try:
            with self._lock:
                self.file.seek(start * m * self.dtype.itemsize)
                while remaining:
                    count = self.file.readinto(remaining)
                    if not count:
                        raise OSError("the file is shorter than what was written to it")
                    remaining = remaining[count:]
        except OSError as error:
            raise WoodburyError(f"{UNREADABLE} ({reason(error)})") from error
        return values.view(m, -1)

    def _check(self, start: int, values: Tensor) -> None:
        """Raise unless a page is what was written; done while the next is being read."""
        if self._sum(values) != self.sums[start // self.width] % 2**64:
            raise WoodburyError(
                f"{UNREADABLE} (The file holds other bytes than what was written to it.)"
            )


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return tensor.view(-1).view(torch.uint8).numpy().data
