"""The folder of a run that may be stopped at any moment and resumed from its last saved state."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from woodbury.errors import WoodburyError, user_code
from woodbury.io.checkpoints import check_zip
from woodbury.io.fingerprint import digest
from woodbury.io.folders import (
    WRITABLE,
    check_empty,
    claimed,
    new_folders,
    resolve_output,
    torch_bytes,
    unwritable_explained,
)
from woodbury.io.locks import LOCK_FILE

STATE_FILE = "unfinished.pt"
"""The last saved state; it is there as long as the run is unfinished."""
REPORT_FILE = "report.json"
"""A file by which a finished run is recognised."""
PARTIAL_STATE = ".unfinished.partial"
PARTIAL_RESULTS = ".results.partial"


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run while it is unfinished.

    At any moment, and after a crash of whatever kind, it holds either the last saved state or the
    one before it, whole. `run_folder` makes it.

    Attributes:
        path: The folder, absolute.
        saved: The state that an earlier run left there, None for a new run.
    """

    path: Path
    saved: Mapping[str, Any] | None

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the last saved state.

        Args:
            state: What `torch.load(weights_only=True)` can read; its "settings" are compared by
                `woodbury.io.fingerprint.check_same` when the run is resumed.

        Raises:
            WoodburyError: If it cannot be written; the last state is still there then.
        """
        content = {"checksum": digest(state), "state": dict(state)}
        partial = self.path / PARTIAL_STATE
        try:
            with user_code(f"The output folder {self.path} cannot be written: {WRITABLE}."):
                with partial.open("wb") as file:
                    file.write(torch_bytes(content))
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(self.path / STATE_FILE)
                _sync_folder(self.path)
        finally:
            partial.unlink(missing_ok=True)

    @contextmanager
    def finishing(self) -> Iterator[Path]:
        """Yield a folder for the results, which move into the run's when the block ends well.

        Each file appears there whole. The saved state is removed last, so that a run that is killed
        in between is resumed from it.

        Raises:
            WoodburyError: If they cannot be written.
        """
        results = self.path / PARTIAL_RESULTS
        with unwritable_explained(self.path):
            shutil.rmtree(results, ignore_errors=True)  # of a run that was killed here
            results.mkdir()
            try:
                yield results
                for file in results.iterdir():
                    file.replace(self.path / file.name)
                _sync_folder(self.path)
                # Before the state: a run that is stopped from here on is resumed, and cleans up.
                shutil.rmtree(results)
                (self.path / STATE_FILE).unlink(missing_ok=True)
            finally:
                shutil.rmtree(results, ignore_errors=True)


@contextmanager
def run_folder(
    path: str | os.PathLike,
    *,
    resume: bool = False,
    how_to_resume: str = "resume=True",
    on_interrupt: str | None = None,
) -> Iterator[RunFolder]:
    """Yield the folder of a run, new or to be resumed.

    If nothing was saved when the block ends, the folder is removed with those of its parents that
    were made for it.

    Args:
        path: The folder: new, empty, or with the state of an unfinished run.
        resume: Whether to go on with an unfinished run. Where there is none, a new one begins.
        how_to_resume: How the user asks for `resume`, for the sentence of the error.
        on_interrupt: The message that Ctrl-C gets once a state was saved; None for its own.

    Yields:
        The folder, with the saved state if there is one.

    Raises:
        WoodburyError: At once, before any work, where the folder holds something else, or an
            unfinished run without `resume`, or a finished run with it, or cannot be written, or
            another process writes to it.

    Example:
        >>> with tempfile.TemporaryDirectory() as place:
        ...     with run_folder(f"{place}/run") as folder:  # stopped after one step
        ...         folder.save({"settings": {"lr": 0.1}, "step": 1})
        ...     with run_folder(f"{place}/run", resume=True) as folder:
        ...         print(folder.saved["step"])
        ...         with folder.finishing() as results:
        ...             _ = (results / "report.json").write_text("{}")
        ...     [file.name for file in Path(place, "run").iterdir()]
        1
        ['report.json']
    """
    goal = resolve_output(path)
    with new_folders(goal.parent, path), claimed(goal, path), new_folders(goal, path):
        saved = _saved_state(goal, path, resume, how_to_resume)
        with unwritable_explained(path):
            tempfile.TemporaryFile(dir=goal).close()
        try:
            yield RunFolder(goal, saved)
        except KeyboardInterrupt as interrupt:
            if on_interrupt and (goal / STATE_FILE).exists():
                raise KeyboardInterrupt(on_interrupt) from interrupt
            raise


def is_finished(path: str | os.PathLike) -> bool:
    """Whether a folder holds a finished run, with nothing to go on with.

    Args:
        path: The folder.

    Raises:
        WoodburyError: If `path` is a file, or no path, or another process writes to it.
    """
    goal = resolve_output(path)
    if not (goal / REPORT_FILE).exists():
        return False
    with claimed(goal, path):  # which removes the lock of a process that was killed at its end
        return _has_ended(goal)


def _has_ended(goal: Path) -> bool:
    return (goal / REPORT_FILE).exists() and not (goal / STATE_FILE).exists()


def _saved_state(
    goal: Path, path: str | os.PathLike, resume: bool, how_to_resume: str
) -> Mapping[str, Any] | None:
    """The state to go on from, None for a new run."""
    if (goal / STATE_FILE).exists():
        if not resume:
            raise WoodburyError(
                f"{path} holds an unfinished run: go on with {how_to_resume}, or choose another "
                "folder."
            )
        return _read_state(goal / STATE_FILE, path)
    if resume and _has_ended(goal):
        raise WoodburyError(f"The run in {path} is finished: there is nothing to resume.")
    check_empty(goal, path, ignored=(PARTIAL_STATE, PARTIAL_RESULTS, LOCK_FILE))
    return None


def _read_state(file: Path, path: str | os.PathLike) -> Mapping[str, Any]:
    try:
        check_zip(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
        state = content["state"]
        state["settings"]  # every state has them
        if content["checksum"] != digest(state):
            raise WoodburyError("Its checksum does not match.")
    except Exception as error:  # a damaged file shows itself as one of half a dozen types
        raise WoodburyError(
            f"{path}/{STATE_FILE} is damaged or no state of a run: remove {path} to start again."
        ) from error
    return state


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder survive a power failure, where folders can be opened."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
