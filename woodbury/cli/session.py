"""A run of training that may be stopped at any moment and goes on to the same bits.

It is the one driver of `train` and of `prune --epochs`.
"""

from __future__ import annotations

import io
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from woodbury.cli.console import print_note
from woodbury.cli.launched import launcher
from woodbury.cli.output import print_how_to_load
from woodbury.errors import WoodburyError
from woodbury.io.fingerprint import check_same, facts_of
from woodbury.io.folders import first_free
from woodbury.io.run_folder import REPORT_FILE, RunFolder, is_finished, run_folder
from woodbury.linalg.ranks import Ranks
from woodbury.model.batches import Batch
from woodbury.model.likelihood import Likelihood
from woodbury.monitor import whole
from woodbury.reporting.files import in_json, read_json, versions
from woodbury.training.finetuning import finetune

SAVE_EVERY_SECONDS = 60.0
"""After which the state of a run is saved also where nothing else asks for it."""


class Stateful(Protocol):
    """What has a state that can be saved and loaded."""

    def state_dict(self) -> dict[str, Any]:
        """The state, readable by `torch.load(weights_only=True)`."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Go on from a saved state."""
        ...


@dataclass(frozen=True)
class Parts:
    """What a run changes: all of it is saved.

    Attributes:
        model: The network.
        optimizer: Its optimizer.
        scheduler: The learning rate; one step a batch.
        others: Whatever else has a state, by name.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    others: Mapping[str, Stateful] = field(default_factory=dict)

    def by_name(self) -> dict[str, Stateful]:
        """All of them."""
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            **self.others,
        }


@contextmanager
def resumable(
    out: Path | None, default: Path, resume: bool, settings: Mapping[str, Any]
) -> Iterator[tuple[RunFolder, Path]]:
    """Yield the folder of a run that `--resume` goes on with; Ctrl-C says by which command.

    Args:
        out: The folder; None for the first of default, default-2, … that is free.
        default: That name.
        resume: Whether an unfinished run is continued.
        settings: What the run is made with.

    Yields:
        The folder, and its name for the user.

    Raises:
        WoodburyError: If the folder cannot be used, or holds a run with other settings.
    """

    def opened(name: Path) -> AbstractContextManager[RunFolder]:
        words = [*launcher(), "woodbury", *sys.argv[1:]]
        words += [] if out is not None else ["--out", str(name)]
        words += [] if "--resume" in words else ["--resume"]
        message = f"Interrupted. To go on:  {shlex.join(words)}"
        return run_folder(name, resume=resume, how_to_resume="--resume", on_interrupt=message)

    ranks = Ranks.current()
    if ranks.rank:  # rank 0 saves and writes; what the others make is thrown away
        with tempfile.TemporaryDirectory() as place:
            yield RunFolder(Path(place), _of_rank_0(ranks, None)), out or default
        return
    if out is None:
        if resume:
            raise WoodburyError("--resume goes on with the run in a folder: give its --out.")
        with first_free(default, opened) as (folder, name):
            _of_rank_0(ranks, None)
            yield folder, name
        return
    with opened(out) as folder:
        if folder.saved:
            check_same(folder.saved["settings"], settings, f"The run in {out}")
        _of_rank_0(ranks, folder.saved)
        yield folder, out


def _of_rank_0(ranks: Ranks, saved: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The saved state that rank 0 has, which all ranks go on from."""
    if ranks.size == 1:
        return saved
    written = io.BytesIO()
    torch.save(saved, written)
    sent = ranks.broadcast_object(written.getvalue())
    return torch.load(io.BytesIO(sent), weights_only=True)


def already_finished(out: Path | None, resume: bool, settings: Mapping[str, Any]) -> bool:
    """Whether a run that is to be continued has ended; a line says so then.

    Args:
        out: The folder.
        resume: Whether an unfinished run is continued.
        settings: What the run is made with.

    Raises:
        WoodburyError: If it was made with other settings.
    """
    ranks = Ranks.current()
    if out is None or not resume:
        return False
    if not ranks.broadcast_object(ranks.rank == 0 and is_finished(out)):
        return False
    if ranks.rank == 0:
        made_with = read_json(out.expanduser() / REPORT_FILE).get("asked", {})
        check_same(made_with, in_json(settings), f"The finished run in {out}")
    print_note(f"The run in {out} is finished: there is nothing left to do.")
    print_how_to_load(out)
    return True


class Session:
    """A run of training: what is recorded, saved and restored.

    Make it, make the parts, `restore` them, `train`.

    Attributes:
        record: What has happened so far, in numbers, texts and lists. It is saved with the parts.
        done: Optimizer steps that are done.
        is_new: Whether nothing was saved yet.
    """

    def __init__(
        self,
        folder: RunFolder,
        settings: Mapping[str, Any],
        model: nn.Module,
        samples: int,
    ) -> None:
        """See whether the saved run, if there is one, is of the same model and data.

        Args:
            folder: Where it is saved.
            settings: What it is made with.
            model: The network, as it is before the run.
            samples: How many training samples there are.

        Raises:
            WoodburyError: If the saved run is of another model or other data.
        """
        self._folder = folder
        self._settings = dict(settings)
        self._facts = facts_of(model, samples)
        saved = folder.saved
        if saved:
            check_same(saved["facts"], self._facts, "The unfinished run")
        self.is_new = saved is None
        self.done: int = saved["done"] if saved else 0
        self.record: dict[str, Any] = (
            dict(saved["record"]) if saved else {"seconds": 0.0, "made": versions()}
        )
        self._parts: Parts | None = None
        self._began = self._saved_at = time.monotonic()

    def restore(self, parts: Parts) -> None:
        """Take the parts of the run, and give them the saved state if there is one."""
        self._parts = parts
        saved = self._folder.saved
        if not saved:
            return
        for name, part in parts.by_name().items():
            part.load_state_dict(saved[name])
        torch.set_rng_state(saved["rng"])
        for what, now in versions().items():
            began = self.record["made"].get(what)
            if began != now:
                print_note(
                    f"The run began with {what} {began} and goes on with {now}: its last bits may "
                    "differ from then on."
                )

    def train(
        self,
        batches: Iterable[Batch],
        total: int,
        likelihood: Likelihood,
        after: Callable[[int], None],
    ) -> None:
        """Train to the end, from wherever the run is.

        Args:
            batches: What is trained on next.
            total: Optimizer steps of the whole run.
            likelihood: The loss.
            after: Called with the number of each step when it is done.
        """
        parts = self._needed()
        with whole("step", "training", total - self.done) as steps:

            def and_told(step: int) -> None:
                after(step)
                steps.advance()

            finetune(
                parts.model,
                parts.optimizer,
                batches,
                range(self.done + 1, total + 1),
                likelihood=likelihood,
                scheduler=parts.scheduler,
                after=and_told,
            )

    def save(self, step: int) -> None:
        """Save the state after a step; that of rank 0 is the state of all."""
        self._saved_at = time.monotonic()
        if Ranks.current().rank:
            return
        states = {name: part.state_dict() for name, part in self._needed().by_name().items()}
        self._folder.save(
            {
                "settings": self._settings,
                "facts": self._facts,
                "record": self.record | {"seconds": self.seconds},
                "done": step,
                "rng": torch.get_rng_state(),
                **states,
            }
        )

    @property
    def is_save_due(self) -> bool:
        """Whether the last save was long ago."""
        return time.monotonic() - self._saved_at > SAVE_EVERY_SECONDS

    @property
    def seconds(self) -> float:
        """Wall-clock time of all parts of the run."""
        return self.record["seconds"] + time.monotonic() - self._began

    def _needed(self) -> Parts:
        assert self._parts, "restore comes first"
        return self._parts
