"""One process at a time writes to a place: a lock that ends with its process, however that ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from woodbury.errors import WoodburyError

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

LOCK_FILE = ".lock"
"""The name of the file where it lies in the folder."""
NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS)
"""What the system says where a folder takes no new file."""
MAX_DIGITS = 20
"""Of a process number."""


class InUse(WoodburyError):
    """Another process writes there."""


@contextmanager
def locked(goal: Path, path: str | os.PathLike) -> Iterator[bool]:
    """Hold the lock of an output folder; the system releases it when the process ends.

    The lock is on a file beside the folder, or in it where nothing can be written beside it. The
    file is removed at the end; what a killed process left of it is no obstacle.

    Args:
        goal: The folder, absolute. The folder that it lies in exists.
        path: Its name as the user wrote it.

    Yields:
        Whether the lock is held: not every file system has locks.

    Raises:
        InUse: At once, if another process holds it; the sentence names the process.
        OSError: If the file cannot be made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place, locked(Path(place, "out"), "out") as held:
        ...     held
        True
    """
    file = goal.with_name(f".{goal.name}.lock")
    try:
        held = _acquired(file, path)
    except OSError as error:
        if error.errno not in NO_PLACE or not goal.is_dir():
            raise
        file = goal / LOCK_FILE
        held = _acquired(file, path)
    try:
        yield held is not None
    finally:
        if held is not None:
            with suppress(OSError):
                file.unlink()
            os.close(held)


def _acquired(file: Path, path: str | os.PathLike) -> int | None:
    """An open file with its lock held; None where the file system has no locks."""
    if fcntl is None:
        return None
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, descriptor):  # else the process before us has just removed it
                os.ftruncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                return descriptor
        except BlockingIOError as error:
            holder = os.pread(descriptor, MAX_DIGITS, 0).decode("ascii", "replace")
            os.close(descriptor)
            raise InUse(
                f"Process {holder or 'of another run'} is writing to the output folder {path}: "
                "wait until it has ended, or choose another folder."
            ) from error
        except OSError as error:
            os.close(descriptor)
            with suppress(OSError):
                file.unlink()
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            return None
        os.close(descriptor)


def _is_at(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False
