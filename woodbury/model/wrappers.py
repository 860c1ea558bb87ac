"""Modules that hold a whole model as their one child and only call it."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def bare(model: Any) -> Any:
    """The model inside `DataParallel`, `DistributedDataParallel` and `torch.compile`.

    Names are those of the model itself, without "module." and "_orig_mod.", and to call it waits
    for no other rank: a wrapped model broadcasts its buffers in each forward pass.

    Args:
        model: A model, wrapped or not. What is no module comes back as it is.

    Returns:
        The innermost model, whose parameters are those of the wrapped one.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> bare(DataParallel(layer)) is layer
        True
    """
    while True:
        if isinstance(model, (DataParallel, DistributedDataParallel)):
            model = model.module
        elif _is_compiled(model):
            model = model._orig_mod
        else:
            return model


def _is_compiled(model: Any) -> bool:
    """Whether `torch.compile` made it; its type is in a package that takes seconds to import."""
    return isinstance(model, nn.Module) and type(model).__name__ == "OptimizedModule"
