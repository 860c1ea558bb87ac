"""Weights out and in: sparse safetensors (a bit per weight, and the values that stay); folders whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from woodbury.errors import WoodburyError


@contextmanager
def output_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A folder to write into, which becomes `path` when the block ends well and vanishes when not (Ctrl-C included).

    Raises WoodburyError at once, before any work, where `path` is a file, a folder with something in it, or lies where
    nothing can be written. Missing parents are made.
    """
    goal = Path(path).expanduser().resolve()
    if goal.exists() and not goal.is_dir():
        raise WoodburyError(f"The output folder {path} is a file: choose another name.")
    if goal.exists() and (goal.is_mount() or goal == Path.cwd()):
        raise WoodburyError(
            f"The output folder {path} cannot be written in one step: name a new folder inside it."
        )
    with os_errors_explained(
        f"The output folder {path} cannot be written", "choose a place that you may write to"
    ):
        if goal.exists() and any(goal.iterdir()):
            raise WoodburyError(
                f"The output folder {path} is not empty: choose a new one or empty it first."
            )
        made = [parent for parent in goal.parents if not parent.exists()]
        goal.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(
            tempfile.mkdtemp(prefix=f".{goal.name}.", suffix=".partial", dir=goal.parent)
        )
    try:
        yield partial
        with os_errors_explained(
            f"The output folder {path} cannot be finished",
            "did somebody else write there meanwhile?",
        ):
            partial.chmod(0o777 & ~umask())
            if goal.exists():
                goal.rmdir()  # it was empty when we began; Windows does not rename over it
            partial.rename(goal)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary sibling of `path` and rename that at the end, so that no half file has the name."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with os_errors_explained(
            f"{path} cannot be written", "choose a place that you may write to"
        ):
            write(partial)
            partial.chmod(0o666 & ~umask())  # safetensors makes files for the owner alone
            partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


@contextmanager
def os_errors_explained(what: str, remedy: str) -> Iterator[None]:
    """Operating-system errors in the block come out as one sentence."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise WoodburyError(f"{what} ({error}): {remedy}.") from error


def umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
