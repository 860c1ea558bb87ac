"""Modules that hold a whole model as their one child and only call it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from woodbury.errors import WoodburyError, WrongType


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


def checked_model(model: Any) -> nn.Module:
    """The bare model, seen to be one whose weights can be exchanged for others.

    Args:
        model: What was given as a model.

    Returns:
        `bare(model)`.

    Raises:
        WrongType: If it is no module.
        WoodburyError: If it, or a module in it, was scripted, traced or exported.

    Example:
        >>> checked_model(DataParallel(nn.Linear(2, 1)))
        Linear(in_features=2, out_features=1, bias=True)
    """
    model = bare(model)
    if not isinstance(model, nn.Module):
        raise WrongType(f"The model is a {type(model).__name__}: give a torch.nn.Module.")
    for name, module in model.named_modules():
        is_exported = "eval" in vars(module)  # torch.export puts an error there
        if isinstance(module, torch.jit.ScriptModule) or is_exported:
            what = f"The module {name!r} of the model" if name else "The model"
            raise WoodburyError(
                f"{what} is a {type(module).__name__}, whose weights cannot be exchanged for "
                "others: give the module that was scripted, traced or exported."
            )
    return model


def quantized_layers(model: nn.Module) -> list[str]:
    """The names of a model's quantized layers, whose weights are no parameters.

    Args:
        model: The model.

    Returns:
        Their names, in order.
    """
    return [name for name, module in model.named_modules() if _is_quantized(module)]


def _is_quantized(module: nn.Module) -> bool:
    """Whether a module is one of torch's quantized ones, and not one for training with them."""
    parts = type(module).__module__.split(".")
    return parts[:2] in (["torch", "ao"], ["torch", "nn"]) and "quantized" in parts


def _is_compiled(model: Any) -> bool:
    """Whether `torch.compile` made it; its type is in a package that takes seconds to import."""
    return isinstance(model, nn.Module) and type(model).__name__ == "OptimizedModule"
