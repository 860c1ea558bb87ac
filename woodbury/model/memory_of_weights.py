"""Where weights lie in memory: none in the memory of another, and none where nobody may write."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.model.layers import memory_of

MAPPED = Path("/proc/self/maps")
"""Linux's list of what a process has in memory, with what it may do there."""


def check_apart(parameters: Mapping[str, Tensor]) -> None:
    """Raise if a parameter lies in part of another's memory, as a view of it.

    Tensors that are the same memory seen in the same way are tied, and count once.

    Args:
        parameters: Name -> parameter.

    Raises:
        WoodburyError: For the first two of which one writes into the other.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> check_apart({"weight": layer.weight, "bias": layer.bias})
        >>> check_apart({"weight": layer.weight, "other": layer.weight.data.t()})
        Traceback (most recent call last):
        woodbury.errors.WoodburyError: 'weight' and 'other' are views of the same memory, ...
    """
    once = {memory_of(tensor): (name, tensor) for name, tensor in parameters.items()}
    placed = [(_ends(tensor), name, tensor) for name, tensor in once.values() if _is_dense(tensor)]
    placed.sort(key=lambda each: each[0])
    for index, ((_, end), name, tensor) in enumerate(placed):
        for (start, _), other_name, other in placed[index + 1 :]:
            if start >= end:
                break
            if _share_an_element(tensor, other):
                first, second = (one for one in parameters if one in (name, other_name))
                raise WoodburyError(
                    f"{first!r} and {second!r} are views of the same memory, so that what is "
                    "written into one changes the other: tie them as one parameter, or give one "
                    "its own memory with parameter.data = parameter.data.clone()."
                )


def check_writable(parameters: Mapping[str, Tensor]) -> None:
    """Raise if a parameter lies where this process may only read, such as a mapped file.

    To write there would end the process. Only Linux says it beforehand.

    Args:
        parameters: Name -> parameter.

    Raises:
        WoodburyError: For the first one that does.

    Example:
        >>> check_writable(dict(nn.Linear(2, 2).named_parameters()))
    """
    if not MAPPED.exists():
        return
    lines = [line.split(maxsplit=2) for line in MAPPED.read_text().splitlines()]
    starts = [int(addresses.partition("-")[0], 16) for addresses, *_ in lines]
    for name, tensor in parameters.items():
        if not _is_dense(tensor) or tensor.device.type != "cpu":
            continue
        index = bisect_right(starts, tensor.data_ptr()) - 1
        if index >= 0 and "w" not in lines[index][1]:
            raise WoodburyError(
                f"{name!r} lies in memory that may only be read, as of a file that was mapped: "
                "give it its own with parameter.data = parameter.data.clone()."
            )


def _is_dense(tensor: Tensor) -> bool:
    is_plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    return is_plain and not tensor.is_meta and bool(tensor.numel())


def _ends(tensor: Tensor) -> tuple[int, int]:
    """The first address of a tensor, and the one behind its last."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * step for size, step in steps)
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()


def _share_an_element(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors whose addresses overlap have an element in common."""
    size = first.element_size()
    if first.device != second.device:
        return False
    if size != second.element_size():
        return True
    return bool(torch.isin(_addresses(first), _addresses(second)).any())


def _addresses(tensor: Tensor) -> Tensor:
    """The address of each element."""
    offsets: Iterable[Tensor] = (
        step * torch.arange(size) for size, step in zip(tensor.shape, tensor.stride(), strict=True)
    )
    total = torch.zeros((), dtype=torch.int64)
    for each in offsets:
        total = total.unsqueeze(-1) + each
    return tensor.data_ptr() + tensor.element_size() * total.flatten()
