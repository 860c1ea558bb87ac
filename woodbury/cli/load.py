"""MODEL and its checkpoint: from words on the command line to a trained module."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from woodbury.errors import WoodburyError
from woodbury.io.checkpoints import load_state_dict_checked, read_checkpoint
from woodbury.model.space import ParameterSpace


def load_model(where: str, checkpoint: Path | None = None) -> nn.Module:
    """The module that FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION returns, with the checkpoint's weights if one is given.

    It comes back in eval mode. Raises WoodburyError, in one sentence, for whatever is wrong with either.
    """
    model = call(where)
    if not isinstance(model, nn.Module):
        raise WoodburyError(
            f"{where} returned a {type(model).__name__}: MODEL must return a torch.nn.Module."
        )
    if checkpoint is not None:
        load_state_dict_checked(model, read_checkpoint(checkpoint), checkpoint)
    ParameterSpace.from_model(model)  # names what cannot be worked on, such as lazy layers
    return model.eval()


def call(where: str) -> Any:
    """What FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION returns."""
    place, _, name = where.rpartition(":")
    if not place or not name:
        raise WoodburyError(
            f"{where!r} does not name a function: write FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION."
        )
    module = guarded(where, lambda: _module(place))
    function = vars(module).get(name)
    if not callable(function):
        names = [
            key
            for key, value in vars(module).items()
            if callable(value) and not key.startswith("_")
        ]
        near = get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names[:8]) or 'none'}."
        raise WoodburyError(f"{place} has no function {name!r}: {hint}")
    return guarded(where, function)


def guarded(where: str, function: Callable[[], Any]) -> Any:
    """What the user's function returns; its errors come out as one sentence with the line they were raised at."""
    try:
        return function()
    except WoodburyError:
        raise
    except Exception as error:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename != __file__
        ]
        frames = [frame for frame in frames if not frame.filename.startswith("<frozen")]
        at = f" at {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
        raise WoodburyError(
            f"{where} failed{at}: {type(error).__name__}: {first_line(error)}"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def _module(place: str) -> ModuleType:
    if place.endswith(".py"):
        path = Path(place).expanduser().resolve()
        if not path.is_file():
            raise WoodburyError(f"There is no file {place}: check the path before the colon.")
        name = f"_woodbury_cli_{path.stem}_{abs(hash(path)):x}"  # random.py must not pass for the standard library's
        if name in sys.modules:
            return sys.modules[name]  # MODEL and DATA often live in one file
        sys.path.insert(0, str(path.parent))  # its neighbours can be imported, as if it were run
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec and spec.loader  # a path that ends in .py has both
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
    sys.path.insert(0, "")
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and place.startswith(error.name):
            raise WoodburyError(
                f"There is no module {place!r}: give a file as PATH.py:FUNCTION, or install it."
            ) from error
        raise
