"""MODEL and its checkpoint: from words on the command line to a module."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from woodbury.cli.names import nearest
from woodbury.errors import WoodburyError, reason, users_line
from woodbury.io.checkpoints import load_state_dict_checked, read_checkpoint
from woodbury.io.sparse_files import check_storable
from woodbury.model.space import ParameterSpace
from woodbury.model.torch_masks import apply_masks
from woodbury.model.wrappers import checked_model

SIGNALLED = 128
"""Exit codes above it are those of signals."""
NAMED_LIBRARIES = ("transformers", "timm", "torchvision")
"""What MODEL begins with where it names a model of theirs."""
MAX_NAMES = 8
"""Functions of a file that an error names."""


def load_model(where: str, checkpoint: Path | None = None) -> nn.Module:
    """Load the module that a function returns.

    Args:
        where: `FILE.py:FUNCTION` or `PACKAGE.MODULE:FUNCTION`.
        checkpoint: The file of the weights to load into it, None for its own.

    Returns:
        The module, in eval mode; of DataParallel, DistributedDataParallel and torch.compile the
        one inside. Masks of torch.nn.utils.prune are zeros of its weights.

    Raises:
        WoodburyError: For whatever is wrong with either.
    """
    model = call_function(where)
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise WoodburyError(f"{where} returned a {kind}: MODEL must return a torch.nn.Module.")
    return usable(model, checkpoint)


def usable(model: nn.Module, checkpoint: Path | None = None) -> nn.Module:
    """A module, seen to be one that can be pruned and stored.

    Args:
        model: The module, of which wrappers are taken off.
        checkpoint: The file of the weights to load into it, None for its own.

    Returns:
        The module inside, in eval mode.

    Raises:
        WoodburyError: For whatever is wrong with either.
    """
    model = checked_model(model)
    apply_masks(model)
    if checkpoint is not None:
        load_state_dict_checked(model, read_checkpoint(checkpoint), checkpoint)
    ParameterSpace.from_model(model)  # names what cannot be worked on, such as lazy layers
    check_storable(model.state_dict())  # before the work, not after it
    return model.eval()


def call_function(where: str) -> Any:
    """What `FILE.py:FUNCTION` or `PACKAGE.MODULE:FUNCTION` returns.

    Raises:
        WoodburyError: If there is no such function, or it fails.
    """
    return run_user_code(where, find_function(where))


def find_function(where: str) -> Callable[[], Any]:
    """The function that `FILE.py:FUNCTION` or `PACKAGE.MODULE:FUNCTION` names.

    Raises:
        WoodburyError: If there is none.
    """
    place, _, name = where.rpartition(":")
    if not place or not name:
        raise WoodburyError(
            f"{where!r} does not name a function: write FILE.py:FUNCTION or "
            "PACKAGE.MODULE:FUNCTION."
        )
    module = run_user_code(where, lambda: _imported(place))
    function = vars(module).get(name)
    if isinstance(function, nn.Module):
        raise WoodburyError(
            f"{where} is a {type(function).__name__}, no function: let a function return it."
        )
    if not callable(function):
        names = [
            key
            for key, value in vars(module).items()
            if callable(value) and not key.startswith("_")
        ]
        near = nearest(name, names)
        there = f"it has {', '.join(names[:MAX_NAMES]) or 'none'}."
        meant = f"did you mean {near}?" if near else there
        raise WoodburyError(f"{place} has no function {name!r}: {meant}")
    return function


def run_user_code(where: str, function: Callable[[], Any]) -> Any:
    """What a function of the user's returns.

    Args:
        where: Its name as the user wrote it.
        function: It itself.

    Raises:
        WoodburyError: In place of any error; it names the user's line that raised it.
    """
    try:
        return function()
    except WoodburyError:
        raise
    except SystemExit as end:
        if isinstance(end.code, int) and end.code > SIGNALLED:
            raise  # of our own handler of signals
        raise WoodburyError(f"{where} ends the program ({end.code}): let it return.") from end
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        line = users_line(error)
        at = f" at {line}" if line else ""
        raise WoodburyError(f"{where} failed{at}: {reason(error)}") from error


def no_file(place: str, remedy: str) -> WoodburyError:
    """The error for what is no file; where nothing is there it names the nearest in its folder.

    Args:
        place: The path as the user wrote it.
        remedy: What to do where none is near.
    """
    path = Path(place)
    if os.path.exists(place):
        return WoodburyError(f"{place} is a folder, a pipe or a device: {remedy}")
    near = None
    with suppress(OSError, RuntimeError):
        near = nearest(path.name, os.listdir(path.expanduser().parent))
    meant = f"did you mean {path.with_name(near)}?" if near else remedy
    return WoodburyError(f"There is no file {place}: {meant}")


def _imported(place: str) -> ModuleType:
    return _from_file(place) if place.endswith(".py") else _from_package(place)


class _Uncached(SourceFileLoader):
    """Reads a user's file anew each time.

    Python's own copies of it would pass for a file that changed within a second, and are cut off by
    a full disk.
    """

    def path_stats(self, path: Any) -> Any:
        """Refuse: what has no time of change is neither read from a copy nor copied."""
        raise OSError(f"{path} is read anew")


def _from_file(place: str) -> ModuleType:
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise no_file(place, "check the path before the colon.")
    # A name of its own: the user's random.py must not pass for the standard library's.
    name = f"_woodbury_cli_{path.stem}_{abs(hash(path)):x}"
    if name in sys.modules:
        return sys.modules[name]  # MODEL and DATA often live in one file
    sys.path.insert(0, str(path.parent))  # its neighbours can be imported, as if it were run
    loader = _Uncached(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec and spec.loader  # a path that ends in .py has both
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_package(place: str) -> ModuleType:
    sys.path.insert(0, "")
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and place.startswith(error.name):
            library = nearest(place, NAMED_LIBRARIES)
            remedy = "give a file as PATH.py:FUNCTION, or install it."
            if library:
                remedy = f"did you mean {library}:NAME?"
            raise WoodburyError(f"There is no module {place!r}: {remedy}") from error
        raise
