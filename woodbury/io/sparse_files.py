"""Sparse weights as safetensors: one bit per weight, and the values of the kept ones."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from woodbury.errors import WoodburyError, WrongType
from woodbury.io.folders import write_atomically

FORMAT = "woodbury-sparse"
VERSION = "1"
KEEP_SUFFIX = "#keep"
"""A pruned tensor `name` is stored as `name#keep`, one bit per weight (1 = kept), …"""
VALUES_SUFFIX = "#values"
"""… and `name#values`, the kept weights in order."""


def save_sparse(
    path: str | os.PathLike, state_dict: Mapping[str, Tensor], names: Iterable[str] | None = None
) -> None:
    """Write a state dict as safetensors, pruned tensors as one bit per weight and the kept values.

    The round trip through `load_sparse` is exact to the bit, whatever the dtype. Tied tensors are
    stored once. Float32 at 90 % sparsity takes 0.13 of its dense bytes.

    The file is for storage. For a network that runs faster, load it and hand its 2:4 weights to
    `torch.sparse.to_sparse_semi_structured`.

    Args:
        path: The file to write, such as "weights.safetensors". It appears whole or not at all.
        state_dict: name -> tensor.
        names: The tensors to pack; None for all that become smaller by it.

    Raises:
        WoodburyError: For a name that is not in the state dict, or a place that cannot be written.
        WrongType: For an entry that is no tensor.

    Example:
        >>> import tempfile
        >>> weight = torch.eye(64)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_sparse(f"{folder}/weights.safetensors", {"weight": weight})
        ...     size = os.path.getsize(f"{folder}/weights.safetensors")
        ...     loaded = load_sparse(f"{folder}/weights.safetensors")
        >>> torch.equal(loaded["weight"], weight), size < weight.nbytes / 10
        (True, True)
    """
    for name, tensor in state_dict.items():
        if not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise WrongType(f"{name!r} in the state dict is a {kind}, not a tensor: leave it out.")
    names = None if names is None else set(names)
    if names and (unknown := sorted(names - set(state_dict))):
        raise WoodburyError(
            f"There is no tensor {unknown[0]!r} in the state dict to save sparsely: "
            "check the names."
        )
    first = _first_names(state_dict)
    packed = None if names is None else {first[name] for name in names}
    stored: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name in dict.fromkeys(first.values()):
        tensor = state_dict[name].detach().cpu().contiguous()
        keep = _any_bit(tensor)
        if _is_smaller(tensor, keep) if packed is None else name in packed:
            shapes[name] = list(tensor.shape)
            stored[name + KEEP_SUFFIX] = torch.from_numpy(np.packbits(keep.numpy()))
            stored[name + VALUES_SUFFIX] = tensor.flatten()[keep]
        else:
            stored[name] = tensor.clone()  # safetensors refuses two views of one memory
    header = {
        "format": FORMAT,
        "version": VERSION,
        "shapes": json.dumps(shapes),
        "tied": json.dumps(first),
    }
    write_atomically(Path(path), lambda partial: save_file(stored, partial, header))


def load_sparse(path: str | os.PathLike) -> dict[str, Tensor]:
    """Read what `save_sparse` wrote, as a dense state dict.

    Args:
        path: The file.

    Returns:
        name -> tensor, on the CPU. Removed weights are 0; tied tensors are one and the same.

    Raises:
        WoodburyError: For a file that is missing, truncated, damaged, foreign, or of a later
            format.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_sparse(f"{folder}/w.safetensors", {"w": torch.tensor([0.0, 2.0])}, ["w"])
        ...     load_sparse(f"{folder}/w.safetensors")
        {'w': tensor([0., 2.])}
    """
    header, stored = read_safetensors(path)
    if header.get("format") != FORMAT:
        raise WoodburyError(
            f"{path} is not a sparse file of woodbury: read it with safetensors.torch.load_file."
        )
    if header.get("version") != VERSION:
        version = header.get("version")
        raise WoodburyError(
            f"{path} has format version {version}, this woodbury reads {VERSION}: "
            "install a later one."
        )
    try:
        shapes = json.loads(header["shapes"])
        dense = {name: _unpacked(stored, name, shape) for name, shape in shapes.items()}
        everything = {**stored, **dense}
        return {name: everything[first] for name, first in json.loads(header["tied"]).items()}
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise WoodburyError(
            f"{path} is damaged ({error}): write it again with woodbury.save_sparse."
        ) from error


def is_sparse(path: str | os.PathLike) -> bool:
    """Whether a safetensors file is one of `save_sparse`.

    Raises:
        WoodburyError: For a file that is missing, truncated or something else.
    """
    with _opened(path) as file:
        return (file.metadata() or {}).get("format") == FORMAT


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors, on the CPU, of any safetensors file.

    Raises:
        WoodburyError: For a file that is missing, truncated or something else.
    """
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return file.metadata() or {}, tensors


def check_file(path: str | os.PathLike) -> None:
    """Refuse a path that is no file.

    Raises:
        WoodburyError: If there is none.
    """
    if not Path(path).is_file():
        raise WoodburyError(f"There is no file {path}: check the path of the weights.")


@contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Any]:
    check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise WoodburyError(
            f"{path} is truncated or not a safetensors file ({error}): copy or write it again."
        ) from error


def _first_names(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """For each name the first name of the same memory seen in the same way: tied tensors."""
    first: dict[tuple, str] = {}
    names = {}
    for name, tensor in state_dict.items():
        place = (
            tensor.untyped_storage().data_ptr(),
            tensor.device,
            tensor.storage_offset(),
            tensor.dtype,
        )
        key = (*place, tensor.shape, tensor.stride()) if tensor.numel() else (name,)
        names[name] = first.setdefault(key, name)
    return names


def _any_bit(tensor: Tensor) -> Tensor:
    """(n,) bool: which entries have any bit set, so that −0.0 and NaN survive in every dtype."""
    as_bytes = tensor.flatten().view(torch.uint8).view(tensor.numel(), tensor.element_size())
    return as_bytes.ne(0).any(1)


def _is_smaller(tensor: Tensor, keep: Tensor) -> bool:
    """Whether bits and kept values together take fewer bytes than the dense tensor."""
    return keep.numel() / 8 + int(keep.sum()) * tensor.element_size() < tensor.nbytes


def _unpacked(stored: Mapping[str, Tensor], name: str, shape: list[int]) -> Tensor:
    """The dense tensor from its bits and its values."""
    values = stored[name + VALUES_SUFFIX]
    bits = stored[name + KEEP_SUFFIX].numpy()
    dense = torch.zeros(shape, dtype=values.dtype)
    keep = torch.from_numpy(np.unpackbits(bits, count=dense.numel()).astype(bool))
    kept = int(keep.sum())
    if kept != len(values):
        raise ValueError(f"{name!r} has {len(values)} values for {kept} kept weights")
    # By bytes: torch has no masked assignment for all of its 8-bit floats.
    width = values.element_size()
    as_bytes = dense.view(-1).view(torch.uint8).view(-1, width)
    as_bytes[keep] = values.view(torch.uint8).view(-1, width)
    return dense
