"""The saved state of a window, which is checked before any of it is taken."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from woodbury.errors import WoodburyError, WrongType
from woodbury.linalg.precision import dtype_name

STATE_KEYS = (
    "rows",
    "gram",
    "pushed",
    "last_push_size",
    "slope",
    "skipped",
    "damping",
    "float64_until_push",
)
"""What a saved window consists of, besides its inverse."""


INVERSE_KEYS = ("inverse", "inverse_shift", "inverse_updates")
"""The same of the inverse."""


def check_window_state(state: Any, rows: Tensor) -> None:
    """Raise unless a state fits a window.

    Args:
        state: What `Window.state_dict` returned.
        rows: (m, d), those of the window.

    Raises:
        WoodburyError: If a key is missing, the rows differ in shape or dtype, or a value is none
            that a window can have.
        WrongType: If it is no dict.
    """
    if not isinstance(state, Mapping):
        raise WrongType(f"The state is a {type(state).__name__}: give what state_dict() gave.")
    missing = {*STATE_KEYS, *INVERSE_KEYS} - set(state)
    if missing:
        raise WoodburyError(f"This is not a window's state: it lacks {', '.join(sorted(missing))}.")
    saved = state["rows"]
    if (
        isinstance(saved, Tensor)
        and saved.ndim == 2
        and (saved.shape != rows.shape or saved.dtype != rows.dtype)
    ):
        raise WoodburyError(
            f"The saved window is {_described(saved)}, this one {_described(rows)}: "
            "make them equal."
        )
    for key, meaning, sound in _sound_values(state, len(rows)):
        if not sound:
            raise WoodburyError(f"This is no sound state of a window: {key!r} is not {meaning}.")


def _sound_values(state: Mapping[str, Any], capacity: int) -> Iterator[tuple[str, str, bool]]:
    """Each key, what its value has to be, and whether it is that."""
    rows, inverse = state["rows"], state["inverse"]
    yield "rows", "a matrix of finite numbers", _is_finite(rows) and rows.ndim == 2
    yield "gram", "a finite float64 matrix", _is_square(state["gram"], capacity)
    yield "inverse", "a finite matrix", inverse is None or _is_square(inverse, capacity)
    for key, least in (
        ("pushed", 0),
        ("skipped", 0),
        ("last_push_size", 1),
        ("float64_until_push", 0),
        ("inverse_updates", -1),
    ):
        value = state[key]
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
        yield key, f"a whole number of at least {least}", whole
    size, updates = state["last_push_size"], state["inverse_updates"]
    yield "last_push_size", "within the window", size <= max(1, min(state["pushed"], capacity))
    yield "inverse_updates", "of an inverse", updates < 0 or inverse is not None
    for key in ("slope", "damping", "inverse_shift"):
        yield key, "a number", isinstance(state[key], (int, float))
    damping = state["damping"]
    yield "damping", "positive and finite", math.isfinite(damping) and damping > 0


def _is_finite(value: Any) -> bool:
    """Whether a value of a state is a tensor of finite numbers."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return bool(torch.isfinite(value).all())


def _is_square(value: Any, size: int) -> bool:
    """Whether a value of a state is a finite float64 matrix of some size."""
    return _is_finite(value) and value.shape == (size, size) and value.dtype == torch.float64


def _described(rows: Tensor) -> str:
    return f"{len(rows)} rows of {rows.shape[1]} weights in {dtype_name(rows.dtype)}"
