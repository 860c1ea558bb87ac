"""The folder of a run that may be stopped at any moment: one checkpoint in it, until the results take its place."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from woodbury.errors import WoodburyError
from woodbury.io.fingerprint import checksum

STATE = "unfinished.pt"
PARTIAL, RESULTS = ".unfinished.partial", ".results.partial"


class RunFolder:
    """`path` while a run is on; `saved` is what an earlier one left there, None for a new run."""

    def __init__(self, path: Path, saved: Mapping[str, Any] | None) -> None:
        self.path, self.saved = path, saved

    def save(self, state: Mapping[str, Any]) -> None:
        """Put `state` in the place of the last one: after a crash, of whatever kind, one of the two is there, whole."""
        with _told(self.path):
            partial = self.path / PARTIAL
            with partial.open("wb") as file:
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path / STATE)
            _sync(self.path)

    @contextmanager
    def finishing(self) -> Iterator[Path]:
        """A folder for the results, each of which moves into `path` whole; the checkpoint goes last."""
        results = self.path / RESULTS
        with _told(self.path):
            shutil.rmtree(results, ignore_errors=True)  # of a run killed here
            results.mkdir()
            try:
                yield results
                for file in results.iterdir():
                    file.replace(self.path / file.name)
                _sync(self.path)
                (self.path / STATE).unlink()
            finally:
                shutil.rmtree(results, ignore_errors=True)


@contextmanager
def run_folder(out: Path, resume: bool) -> Iterator[RunFolder]:
    """The folder `out`: new or empty, or with a run to go on with if `resume`. It is gone again where nothing was saved.

    Raises WoodburyError at once, before any work, where it is neither or cannot be written. Ctrl-C says how to go on.
    """
    path = Path(out).expanduser().resolve()
    saved = _saved(path, out, resume)
    with _told(out):
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    try:
        yield RunFolder(path, saved)
    except KeyboardInterrupt as interrupt:
        if (path / STATE).exists():
            raise KeyboardInterrupt(f"Interrupted. To go on:  {_again()}") from interrupt
        raise
    finally:
        for folder in made:
            with suppress(OSError):  # it holds something
                folder.rmdir()


def _saved(path: Path, out: Path, resume: bool) -> Mapping[str, Any] | None:
    if path.exists() and not path.is_dir():
        raise WoodburyError(f"The output folder {out} is a file: choose another name.")
    if (path / STATE).exists():
        if not resume:
            raise WoodburyError(
                f"{out} holds an unfinished run: go on with --resume, or choose another folder."
            )
        try:
            state = torch.load(path / STATE, map_location="cpu", weights_only=True)
            if "settings" not in state:
                raise KeyError("settings")
            return state
        except Exception as error:  # a damaged file shows itself as one of half a dozen types
            raise WoodburyError(
                f"{out}/{STATE} is damaged or no state of a run: remove {out} to start anew."
            ) from error
    if path.exists() and (names := {entry.name for entry in path.iterdir()} - {PARTIAL, RESULTS}):
        if resume and "report.json" in names:
            raise WoodburyError(f"The run in {out} is finished: there is nothing to resume.")
        raise WoodburyError(
            f"The output folder {out} is not empty: choose a new one or empty it first."
        )
    return None


def facts_of(model: nn.Module, data: Dataset) -> dict[str, Any]:
    """What tells a network before its run, and the data, from others: checksums of the weights, and how many samples."""
    sums = {
        f"a checksum of {name}": checksum(tensor) for name, tensor in model.state_dict().items()
    }
    return {"a number of training samples": len(data), **sums}  # type: ignore[arg-type]


def _again() -> str:
    words = sys.argv[1:]
    return shlex.join(["woodbury", *words, *([] if "--resume" in words else ["--resume"])])


def _sync(folder: Path) -> None:
    """Make a rename in the folder survive a power failure, where folders can be opened."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _told(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WoodburyError(
            f"The output folder {out} cannot be written ({error}): choose a place that you may write to."
        ) from error
