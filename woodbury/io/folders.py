"""Output folders and files that are written whole or not at all."""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError

from woodbury.errors import WoodburyError
from woodbury.io.locks import InUse, locked

T = TypeVar("T")


@contextmanager
def output_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a folder to write into, which takes the name `path` when the block has ended well.

    An error or Ctrl-C in the block removes the folder with all that was written. For work that can
    be resumed, see `woodbury.io.run_folder.run_folder`.

    Args:
        path: The folder to make, or an empty one. Missing parents are made.

    Yields:
        A new folder beside `path`.

    Raises:
        WoodburyError: At once, before any work, where `path` is a file, a folder with something in
            it, one that another process writes to, or in a place that cannot be written; at the
            end, where `path` was taken meanwhile.

    Example:
        >>> with tempfile.TemporaryDirectory() as place:
        ...     with output_folder(f"{place}/report") as folder:
        ...         _ = (folder / "numbers.txt").write_text("1 2 3")
        ...     [file.name for file in Path(place, "report").iterdir()]
        ['numbers.txt']
    """
    goal = resolve_output(path)
    if goal.exists() and (goal.is_mount() or goal == Path.cwd()):
        raise WoodburyError(
            f"The output folder {path} cannot be written in one step: name a new folder inside it."
        )
    with new_folders(goal.parent, path), claimed(goal, path) as is_ours:
        check_empty(goal, path)
        with unwritable_explained(path):
            if is_ours:
                _remove_remains(goal)
            partial = Path(
                tempfile.mkdtemp(prefix=f".{goal.name}.", suffix=".partial", dir=goal.parent)
            )
        try:
            yield partial
            with os_errors_explained(
                f"The output folder {path} cannot be finished", "let nothing else write there"
            ):
                partial.chmod(0o777 & ~umask())  # mkdtemp makes folders for the owner alone
                if goal.exists():
                    goal.rmdir()  # it was empty when we began; Windows does not rename over it
                partial.rename(goal)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def first_free(
    path: Path, opened: Callable[[Path], AbstractContextManager[T]]
) -> Iterator[tuple[T, Path]]:
    """Open the first of path, path-2, path-3, … that neither exists nor is being written.

    Args:
        path: The first name to try.
        opened: What opens a folder: `output_folder`, or `run_folder`.

    Yields:
        What `opened` yields, and the name.

    Raises:
        WoodburyError: As `opened`.

    Example:
        >>> with tempfile.TemporaryDirectory() as place:
        ...     Path(place, "run").mkdir()
        ...     with first_free(Path(place, "run"), output_folder) as (folder, name):
        ...         name.name
        'run-2'
    """
    for number in count(1):
        name = path if number == 1 else path.with_name(f"{path.name}-{number}")
        if name.exists():
            continue
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(opened(name))
            except InUse:
                continue
            yield folder, name
            return


@contextmanager
def claimed(goal: Path, path: str | os.PathLike) -> Iterator[bool]:
    """A context in which no other process writes to an output folder, as `locked` with a sentence.

    Args:
        goal: The folder, absolute.
        path: Its name as the user wrote it.

    Yields:
        Whether that is sure: not every file system has locks.

    Raises:
        InUse: If another process does.
        WoodburyError: If the place cannot be written.
    """
    with ExitStack() as stack:
        with unwritable_explained(path):
            held = stack.enter_context(locked(goal, path))
        yield held


def _remove_remains(goal: Path) -> None:
    """Remove what runs that were killed have left beside an output folder."""
    remains = re.compile(rf"\.{re.escape(goal.name)}\.[a-z0-9_]{{8}}\.partial")
    for entry in goal.parent.iterdir():
        if remains.fullmatch(entry.name):
            shutil.rmtree(entry, ignore_errors=True)


def resolve_output(path: str | os.PathLike) -> Path:
    """The absolute path of an output folder.

    Raises:
        WoodburyError: If `path` is a file, or no path.
    """
    try:
        goal = Path(path).expanduser().resolve()
        is_file = goal.exists() and not goal.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name too long
        raise WoodburyError(f"The output folder {path} cannot be ({error}): {WRITABLE}.") from error
    if is_file:
        raise WoodburyError(f"The output folder {path} is a file: choose another name.")
    return goal


def check_empty(goal: Path, path: str | os.PathLike, ignored: Collection[str] = ()) -> None:
    """Refuse an output folder that holds something.

    Args:
        goal: The folder, which need not exist.
        path: Its name as the user wrote it.
        ignored: Names that may be there.

    Raises:
        WoodburyError: If anything else is there, or the folder cannot be read.
    """
    if not goal.exists():
        return
    with unwritable_explained(path):
        names = {entry.name for entry in goal.iterdir()}
    if names - set(ignored):
        raise WoodburyError(
            f"The output folder {path} is not empty: choose a new one or empty it first."
        )


@contextmanager
def new_folders(goal: Path, path: str | os.PathLike) -> Iterator[None]:
    """Make a folder and its missing parents; those of them that are empty at the end are removed.

    Args:
        goal: The folder to make, absolute.
        path: The output folder as the user wrote it, for the sentence of the error.

    Raises:
        WoodburyError: If they cannot be made.
    """
    missing = [folder for folder in (goal, *goal.parents) if not folder.exists()]
    try:
        with unwritable_explained(path):
            goal.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for folder in missing:
            with suppress(OSError):  # it holds something
                folder.rmdir()


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file under a temporary name and rename it at the end: no half file has the name.

    Args:
        path: The file to make or to replace; of a link what it leads to.
        write: Called with the temporary path, in the same folder.

    Raises:
        WoodburyError: If the place cannot be written, or is a folder, a device or a pipe, which
            the new file would replace.
    """
    if not path.name or "\0" in str(path):
        raise WoodburyError(f"{str(path)!r} names no file: give the path of the file to write.")
    with os_errors_explained(f"{path} cannot be written", WRITABLE):
        path = Path(os.path.realpath(path))
        if path.is_symlink():
            raise WoodburyError(f"{path} is a link that leads to itself: choose another name.")
        if path.exists() and not path.is_file():
            raise WoodburyError(f"{path} exists and is no plain file: choose another name.")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with os_errors_explained(f"{path} cannot be written", WRITABLE):
            _remove_remaining_files(path)
            write(partial)
            partial.chmod(0o666 & ~umask())  # safetensors makes files for the owner alone
            partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def check_new_file(path: Path) -> None:
    """Refuse, before any work, a file that exists or cannot be made.

    Args:
        path: The file to write later.

    Raises:
        WoodburyError: If there is such a file, or its folder is missing or cannot be written.
    """
    if not path.name or "\0" in str(path):
        raise WoodburyError(f"{str(path)!r} names no file: give the path of the file to write.")
    with os_errors_explained(f"{path} cannot be written", WRITABLE):
        if path.exists() or path.is_symlink():
            raise WoodburyError(f"{path} exists: choose another name or remove it first.")
        tempfile.TemporaryFile(dir=path.parent).close()


def _remove_remaining_files(path: Path) -> None:
    """Remove what processes that were killed have left of the same file."""
    remains = re.compile(rf"\.{re.escape(path.name)}\.([0-9]+)\.partial")
    for entry in path.parent.iterdir():
        match = remains.fullmatch(entry.name)
        if match and not _is_running(int(match[1])):
            with suppress(OSError):
                entry.unlink()


def _is_running(process: int) -> bool:
    if os.name != "posix":
        return True  # there it cannot be asked without harm
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


WRITABLE = "choose a place with room that you may write to"
"""What to do about a place that cannot be written."""


def unwritable_explained(path: str | os.PathLike) -> AbstractContextManager[None]:
    """A context in which errors of the operating system say that a folder cannot be written."""
    return os_errors_explained(f"The output folder {path} cannot be written", WRITABLE)


@contextmanager
def os_errors_explained(what: str, remedy: str) -> Iterator[None]:
    """Turn errors of the operating system in the block into one sentence.

    Args:
        what: What went wrong, without a period.
        remedy: What to do about it, without a period.

    Raises:
        WoodburyError: In place of an OSError or a SafetensorError.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise WoodburyError(f"{what} ({error}): {remedy}.") from error


def umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def torch_bytes(content: Any) -> memoryview:
    """What `torch.save` writes, in memory.

    A signal that ends a write to a file would leave torch's writer in the middle of it, which then
    ends the whole process; nothing ends one to memory.

    Args:
        content: What `torch.save` takes.

    Returns:
        The bytes.

    Example:
        >>> import io, torch
        >>> torch.load(io.BytesIO(torch_bytes({"a": 1})), weights_only=True)
        {'a': 1}
    """
    written = io.BytesIO()
    torch.save(content, written)
    return written.getbuffer()
