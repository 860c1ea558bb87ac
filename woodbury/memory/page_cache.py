"""Writing past the system's page cache: a third of the time, and none of a processor's."""

from __future__ import annotations

import errno
import os
from io import FileIO

import torch

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

BLOCK = 4096
"""What position, length and address of a write past the cache are multiples of, on any disk."""


def aligned(count: int, dtype: torch.dtype) -> torch.Tensor:
    """Memory that a write past the cache may read.

    Args:
        count: Numbers.
        dtype: Theirs.

    Returns:
        (count,), not initialised, whose address is a multiple of `BLOCK`.

    Example:
        >>> aligned(3, torch.float32).data_ptr() % BLOCK
        0
    """
    size = dtype.itemsize
    memory = torch.empty(count + BLOCK // size, dtype=dtype)
    first = -memory.data_ptr() % BLOCK // size
    return memory[first : first + count]


def write_at(file: FileIO, position: int, values: torch.Tensor) -> None:
    """Write numbers past the page cache where the system can, else through it.

    Of rows that are read back after much else was written, the cache keeps nothing: a copy to it
    and its emptying take most of the time of such a write.

    Args:
        file: Opened for writing, without a buffer; used by nobody else meanwhile.
        position: Of the first byte.
        values: (n,), contiguous, on the CPU; past the cache if from `aligned` and as many as make
            whole blocks at a multiple of `BLOCK`.

    Raises:
        OSError: If the disk takes no more.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryFile(buffering=0) as file:
        ...     write_at(file, 0, torch.ones(2, dtype=torch.uint8))
        ...     _ = file.seek(0)
        ...     list(file.read())
        [1, 1]
    """
    remaining = values.view(torch.uint8).numpy().data
    file.seek(position)
    if position % BLOCK == len(remaining) % BLOCK == values.data_ptr() % BLOCK == 0:
        try:
            while remaining and _set_past_cache(file, True):
                remaining = remaining[file.write(remaining) :]
        except OSError as error:
            if error.errno != errno.EINVAL:  # of a file system that took the flag only
                raise
        finally:
            _set_past_cache(file, False)
    while remaining:
        remaining = remaining[file.write(remaining) :]


def _set_past_cache(file: FileIO, past: bool) -> bool:
    """Whether what follows goes past the cache."""
    direct = getattr(os, "O_DIRECT", 0)
    if fcntl is None or not direct:
        return False
    try:
        flags = fcntl.fcntl(file, fcntl.F_GETFL)
        fcntl.fcntl(file, fcntl.F_SETFL, flags | direct if past else flags & ~direct)
    except OSError:  # a file system in memory, or of another machine
        return False
    return past
