"""Where gradient rows lie: in memory if they have room there, else in a scratch folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from io import FileIO
from pathlib import Path
from typing import NoReturn, cast

import torch
from torch import Tensor

from woodbury.errors import WoodburyError, reason
from woodbury.linalg.paged_rows import PagedRows
from woodbury.linalg.ranks import Ranks
from woodbury.linalg.threads import in_background
from woodbury.memory.budget import budget_bytes, parse_bytes, row_bytes, rows_share
from woodbury.memory.row_file import RowFile

REMEDY = "give another folder (scratch=), more memory (memory=) or fewer rows"


PAGES_IN_ROOM = 8
"""Pages that would have room where all rows have none; two are in memory."""

MIN_PAGE = 2**25
"""Bytes of a page at least: smaller pieces take a disk longer."""

_scratch: ContextVar[Path | None] = ContextVar("scratch", default=None)
"""Where rows without room in memory lie; None for the system's temporary folder."""


@contextmanager
def scratch_in(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Let rows that have no room in memory lie in a folder, inside the block.

    Args:
        folder: It; None for what holds already.

    Raises:
        WoodburyError: At once, if it is missing or cannot be written.

    Example:
        >>> with scratch_in("nowhere"):
        ...     pass
        Traceback (most recent call last):
        woodbury.errors.WoodburyError: The scratch folder 'nowhere' does not exist: make it, or ...
    """
    if folder is None:
        yield
        return
    path = Path(folder).expanduser()
    _check_writable(path)
    token = _scratch.set(path)
    try:
        yield
    finally:
        _scratch.reset(token)


def _check_writable(path: Path) -> None:
    if not path.is_dir():
        raise WoodburyError(
            f"The scratch folder {str(path)!r} does not exist: make it, or give another."
        )
    try:
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise WoodburyError(
            f"The scratch folder {str(path)!r} cannot be written ({reason(error)}): give another."
        ) from error


def stored_rows(
    chunks: Iterable[Tensor],
    shape: tuple[int, int],
    dtype: torch.dtype,
    *,
    device: torch.device | str = "cpu",
    memory: int | float | str | None = None,
    scratch: str | os.PathLike[str] | None = None,
) -> Tensor | PagedRows:
    """Gradient rows as they come, in memory or on a disk.

    Args:
        chunks: m rows in all, (c, d) at a time, finite. None is asked for before there is room. A
            chunk is still read while the next is computed.
        shape: (m, d).
        dtype: What they are stored in: float32, float64, or bfloat16 for half of the room.
        device: Where they are computed with.
        memory: The budget of the run as for `parse_bytes`, of which the rows may take half; None
            for `row_bytes()`.
        scratch: A folder for rows that have no room in memory; None for that of `scratch_in`, else
            the system's temporary one. The file there has no name and is gone when the rows are,
            or the process.

    Returns:
        (m, d): a tensor, or pages in a file.

    Raises:
        WoodburyError: If the scratch folder is missing, cannot be written or has no room.

    Example:
        >>> chunks = [torch.ones(1, 3), 2 * torch.ones(1, 3)]
        >>> stored_rows(chunks, (2, 3), torch.float32)
        tensor([[1., 1., 1.],
                [2., 2., 2.]])
        >>> rows = stored_rows(chunks, (2, 3), torch.float32, memory=10)
        >>> rows.shape, rows.take(torch.tensor([1]))
        ((2, 3), tensor([[1.],
                [2.]]))
    """
    m, d = shape
    size = m * d * dtype.itemsize
    room = row_bytes() if memory is None else rows_share(parse_bytes(memory))
    if Ranks.current().minimum(size <= room):  # on all ranks or on none, so that they do the same
        return _in_memory(chunks, torch.empty(shape, dtype=dtype, device=device))
    folder = Path(scratch or _scratch.get() or tempfile.gettempdir())
    page = max(room // PAGES_IN_ROOM, MIN_PAGE)
    rows = RowFile.empty(_open(folder, size), shape, dtype, torch.device(device), page)
    _fill(rows, chunks, folder)
    return rows


def check_room(
    shape: tuple[int, int],
    dtype: torch.dtype,
    *,
    device: torch.device | str = "cpu",
    memory: int | float | str | None = None,
) -> None:
    """Raise unless rows that must lie in memory have room there.

    Args:
        shape: (m, d).
        dtype: What they are stored in.
        device: Where they lie.
        memory: The budget of the run, of which they may take all; None for the default.

    Raises:
        WoodburyError: If they are larger than the budget.

    Example:
        >>> check_room((2, 3), torch.float32, memory=24)
    """
    size, room = shape[0] * shape[1] * dtype.itemsize, budget_bytes(memory, device)
    if size > room:
        raise WoodburyError(
            f"The gradient rows of such large blocks need {size / 1e9:.3g} GB and the budget is "
            f"{room / 1e9:.3g} GB: give blocks of at most half as many weights as rows, "
            "block=None (those rows may lie on a disk), fewer rows or more memory (memory=)."
        )


def _in_memory(chunks: Iterable[Tensor], rows: Tensor) -> Tensor:
    done = 0
    for chunk in chunks:
        rows[done : done + len(chunk)] = chunk
        done += len(chunk)
        del chunk  # before the next is computed
    return rows


def _fill(rows: RowFile, chunks: Iterable[Tensor], folder: Path) -> None:
    """Write the chunks, each while the next is computed."""
    done = 0

    def write(chunk: Tensor) -> None:
        nonlocal done
        try:
            rows.write(done, chunk)
        except OSError as error:
            raise WoodburyError(
                f"The scratch folder {str(folder)!r} took {done} of {rows.shape[0]} gradient "
                f"rows: {REMEDY}. ({reason(error)})"
            ) from error
        done += len(chunk)

    writing: Future[None] | None = None
    try:
        for chunk in chunks:
            if writing is not None:
                writing.result()
            writing = in_background(partial(write, chunk))
            del chunk  # before the next is computed
        if writing is not None:
            writing.result()
    except BaseException:
        if writing is not None:
            wait([writing])
        rows.file.close()  # an error or Ctrl-C keeps the frame, and with it the file, for a while
        raise


def _open(folder: Path, size: int) -> FileIO:
    """A file without a name, with the room that it needs."""
    if not folder.is_dir():
        raise WoodburyError(
            f"The gradient rows need {size / 1e9:.3g} GB and the scratch folder "
            f"{str(folder)!r} does not exist: make it, or {REMEDY}."
        )
    try:
        file = cast(FileIO, tempfile.TemporaryFile(dir=folder, buffering=0))  # noqa: SIM115
    except OSError as error:
        _refuse(folder, size, error)
    try:
        free = shutil.disk_usage(folder).free
        if free < size:
            raise OSError(f"{free / 1e9:.3g} GB are left")
        if hasattr(os, "posix_fallocate"):  # the room is ours from here on
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        file.close()
        _refuse(folder, size, error)
    return file


def _refuse(folder: Path, size: int, error: OSError) -> NoReturn:
    raise WoodburyError(
        f"The gradient rows need {size / 1e9:.3g} GB and the scratch folder {str(folder)!r} cannot "
        f"take them: {REMEDY}. ({reason(error)})"
    ) from error
