"""How an optimizer's parameters become one vector, what of it moves, and which windows cut it: nothing of the algebra."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.model.space import ParameterSpace

Keep = ParameterSpace | Mapping[Any, Tensor]
"""What moves: a space, or (parameter or its name) -> bool mask of its shape, True = stays."""


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a DTensor; any other tensor as it is. (Importing DTensor costs more than asking for it.)"""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def masks_of(keep: Keep | None) -> Mapping[Any, Tensor]:
    """Parameter or name -> bool mask of its shape."""
    if not isinstance(keep, ParameterSpace):
        return keep or {}
    return {name: keep.keep[part].view(keep.shapes[name]) for name, part in keep.slices.items()}


def unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside those of accelerate and Lightning, whose `step` calls its own."""
    inner = getattr(optimizer, "optimizer", None)
    if inner is not None:
        return unwrapped(inner)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise WoodburyError(
            f"The optimizer is a {type(optimizer).__name__}: give a torch.optim.Optimizer."
        )
    return optimizer
