"""The command that runs now, and what repeats it and loads what it has written."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from woodbury.cli.inputs.model import NAMED_LIBRARIES
from woodbury.reporting.page import Code

OPTION = "--config"
"""Names the file of a command's options."""
AGAIN = "-again"
"""What a second run's folder is named by."""

_words: ContextVar[tuple[str, ...]] = ContextVar("words", default=())


@contextmanager
def invoked(words: Sequence[str]) -> Iterator[None]:
    """The words of the command that runs inside the block.

    Args:
        words: Those after `woodbury`.
    """
    token = _words.set(tuple(words))
    try:
        yield
    finally:
        _words.reset(token)


def command_line() -> str:
    """The command that runs now, as a shell takes it."""
    return shlex.join(["woodbury", *_words.get()])


def repeating(run_file: Path | None = None) -> Code:
    """What repeats the command that runs now, for the terminal and the page.

    Args:
        run_file: The file of its options, as the user would write its place; None for a command
            without one, which is typed again with another folder to write.

    Example:
        >>> with invoked(["prune", "net.py:build", "data.npz"]):
        ...     repeating(Path("out/run.toml")).text
        'woodbury prune --config out/run.toml'
    """
    words = list(_words.get())
    if run_file is not None:
        return Code("Repeat the run:", shlex.join(["woodbury", *words[:1], OPTION, str(run_file)]))
    for place, word in enumerate(words):
        if word == "--out" and place + 1 < len(words):
            words[place + 1] = _again(words[place + 1])
        elif word.startswith("--out="):
            words[place] = _again(word)
    return Code("Repeat the run:", shlex.join(["woodbury", *words]))


def loading(model: str, weights: Path, call: str | None = None) -> Code:
    """The Python that loads written weights.

    Args:
        model: MODEL as the user wrote it.
        weights: Their file.
        call: The line of the library that the network is from; None for ours.
    """
    if call is not None:
        library = call.partition(".")[0]
        if library == "model":  # the line reads weights into one that is there
            lines = ["import torch", *_making(model), call]
        else:
            lines = [f"import {library}", "", f"model = {call}"]
        return Code("Load its weights:", "\n".join(lines))
    file = json.dumps(weights.as_posix(), ensure_ascii=False)
    lines = ["import woodbury", *_making(model)]
    lines += [f"model.load_state_dict(woodbury.load_sparse({file}))"]
    return Code("Load its weights:", "\n".join(lines))


def _making(model: str) -> list[str]:
    """The lines that make the network, or a comment where they does not follow from its name."""
    place, _, function = model.rpartition(":")
    module = place.removesuffix(".py")
    can_be_imported = re.fullmatch(r"\w+" if place.endswith(".py") else r"[\w.]+", module)
    if can_be_imported and function.isidentifier() and module not in NAMED_LIBRARIES:
        return [f"from {module} import {function}", "", f"model = {function}()"]
    return ["", f"model = ...  # {model}"]


def _again(folder: str) -> str:
    return folder.rstrip("/") + AGAIN
