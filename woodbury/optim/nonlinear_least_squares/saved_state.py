"""The state of a LeastSquares, checked before it is taken over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from woodbury.argument_types import is_of
from woodbury.errors import WoodburyError, WrongType, check_whole_number

NAMES = {"damping", "steps", "scales", "last"}


def checked_state(state: Any, weights: Tensor, max_damping: float) -> dict[str, Any]:
    """A state whose vectors are where the weights are.

    Args:
        state: What `LeastSquares.state_dict` gave.
        weights: (d,), of the network that it is for.
        max_damping: The largest that can be.

    Returns:
        The state.

    Raises:
        WrongType: If it is no such state.
        WoodburyError: If it is of another number of weights, or damaged.
    """
    if not isinstance(state, Mapping) or set(state) != NAMES:
        raise WrongType("This is no state of a LeastSquares: give what its state_dict() gave.")
    damping = state["damping"]
    if not is_of(damping, float) or not 0 < damping <= max_damping:
        raise WoodburyError(f"The saved damping is {damping!r}: the state is damaged.")
    check_whole_number(state["steps"], "steps", "the saved number of steps", least=0)
    checked = dict(state)
    for name in ("scales", "last"):
        if state[name] is not None:
            _check_vector(name, state[name], len(weights))
            checked[name] = state[name].to(weights.device)
    if checked["scales"] is not None and not bool((checked["scales"] > 0).all()):
        raise WoodburyError("The saved scales are not all positive: the state is damaged.")
    return checked


def _check_vector(name: str, vector: Any, d: int) -> None:
    if not isinstance(vector, Tensor) or vector.dtype != torch.float64 or vector.is_meta:
        raise WrongType(f"The saved {name} are no tensor of float64: the state is damaged.")
    if vector.shape != (d,):
        raise WoodburyError(
            f"The saved {name} have the shape {tuple(vector.shape)}, and the model has {d:,} "
            "weights: it is the state of another network."
        )
    if not bool(torch.isfinite(vector).all()):
        raise WoodburyError(f"The saved {name} are not finite: the state is damaged.")
