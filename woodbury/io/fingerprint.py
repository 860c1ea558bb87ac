"""Results as files: CSV, strict JSON, and what they were made with."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from woodbury.errors import WoodburyError


def checksum(tensor: Tensor) -> int:
    """One number that tells a tensor's bytes from others."""
    return zlib.crc32(
        tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    )


def check_same(saved: Mapping[str, Any], now: Mapping[str, Any], what: str) -> None:
    """Raise WoodburyError, naming the first difference, unless two sets of settings are equal."""
    for key in [*now, *saved]:
        if saved.get(key) != now.get(key):
            raise WoodburyError(
                f"{what} was made with {key} {_short(saved.get(key))}, now it is {_short(now.get(key))}: "
                "give the same settings, or start anew."
            )


def _short(value: Any, most: int = 60) -> str:
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}…"
