"""Fingerprints: the facts that tell one model, its data and its settings from others."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError

MAX_CHARACTERS = 60
"""Characters of a value that an error shows."""


def checksum(tensor: Tensor) -> int:
    """The CRC-32 of a tensor's bytes.

    Args:
        tensor: Of any shape, dtype and device.

    Returns:
        A number below 2³², the same for the same bytes.

    Example:
        >>> checksum(torch.zeros(3)) == checksum(torch.zeros(3))
        True
        >>> checksum(torch.zeros(3)) == checksum(torch.tensor([0.0, 0.0, -0.0]))
        False
    """
    flat = tensor.detach().cpu().contiguous().view(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().tobytes())


def digest(content: Any) -> str:
    """A checksum of all that a saved state holds: every value, name, shape and dtype.

    Args:
        content: Mappings, lists and tuples, in any nesting, of tensors, numbers, texts and None.

    Returns:
        A BLAKE2, as text: equal for equal contents, and for no others in practice.

    Example:
        >>> digest({"step": 1, "w": torch.ones(2)}) == digest({"step": 1, "w": torch.ones(2)})
        True
        >>> digest({"w": torch.ones(2)}) == digest({"w": torch.ones(2, 1)})
        False
    """
    blake = hashlib.blake2b(digest_size=16)
    _add(blake, content)
    return blake.hexdigest()


def _add(blake: hashlib.blake2b, node: Any) -> None:
    if isinstance(node, Tensor):
        blake.update(f"T {node.dtype} {tuple(node.shape)};".encode())
        flat = node.detach().cpu().resolve_conj().resolve_neg().contiguous().view(-1)
        blake.update(flat.view(torch.uint8).numpy().data)
    elif isinstance(node, Mapping):
        blake.update(f"M {len(node)};".encode())
        for key, value in node.items():
            _add(blake, key)
            _add(blake, value)
    elif isinstance(node, (list, tuple)):
        blake.update(f"L {len(node)};".encode())
        for value in node:
            _add(blake, value)
    else:
        text = f"{type(node).__name__} {node!r}".encode("utf-8", "surrogatepass")
        blake.update(f"V {len(text)};".encode() + text)


def facts_of(model: nn.Module, samples: int) -> dict[str, Any]:
    """What tells a model before its run, and the training data, from others.

    Args:
        model: The network, before its weights change.
        samples: How many training samples there are.

    Returns:
        The number of samples, and a checksum of each parameter and buffer. The keys are words for
        the sentence of `check_same`.

    Example:
        >>> list(facts_of(nn.Linear(2, 1), samples=100))
        ['a number of training samples', 'a checksum of weight', 'a checksum of bias']
    """
    sums = {
        f"a checksum of {name}": checksum(tensor) for name, tensor in model.state_dict().items()
    }
    return {"a number of training samples": samples, **sums}


def check_same(saved: Mapping[str, Any], now: Mapping[str, Any], what: str) -> None:
    """Refuse to go on with something that was made with other settings.

    Args:
        saved: The settings that it was made with.
        now: The settings of today.
        what: What was made, to begin the sentence of the error.

    Raises:
        WoodburyError: If they differ; it names the first difference.

    Example:
        >>> check_same({"lr": 0.1}, {"lr": 0.2}, "The run in out")
        Traceback (most recent call last):
        woodbury.errors.WoodburyError: The run in out was made with lr 0.1, now it is 0.2: give ...
    """
    for key in [*now, *saved]:
        before, after = saved.get(key), now.get(key)
        if before != after:
            raise WoodburyError(
                f"{what} was made with {key} {_shortened(before)}, now it is {_shortened(after)}: "
                "give the same settings, or start again."
            )


def _shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"
