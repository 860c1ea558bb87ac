"""Sparse weights as safetensors: one bit per weight, and the values of the kept ones."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor
from torch.nn.parameter import is_lazy

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, WrongType
from woodbury.io.folders import write_atomically

FORMAT = "woodbury-sparse"
VERSION = 2
HEADER = "woodbury"
"""The key of the metadata that holds all facts: safetensors writes several in random order."""
KEEP_SUFFIX = "#keep"
"""A pruned tensor `name` is stored as `name#keep`, one bit per weight (1 = kept), …"""
VALUES_SUFFIX = "#values"
"""… and `name#values`, the kept weights in order."""


@checks_types
def save_sparse(
    path: str | os.PathLike, state_dict: Mapping[str, Tensor], names: Iterable[str] | None = None
) -> None:
    """Write a state dict as safetensors, pruned tensors as one bit per weight and the kept values.

    The round trip through `load_sparse` is exact to the bit, whatever the dtype. A checksum over
    values, bits, names, shapes and ties is verified there. Tied tensors are stored once. Two saves
    of one state are equal files. Float32 at 90 % sparsity takes 0.13 of its dense bytes. A −0.0, as
    of a negative weight times a mask, is stored as a value: `weight + 0.0` has none.

    The file is for storage. For a network that runs faster, load it and hand its 2:4 weights to
    `torch.sparse.to_sparse_semi_structured`.

    Args:
        path: The file to write, such as "weights.safetensors". It appears whole or not at all.
        state_dict: name -> tensor.
        names: The tensors to pack; None for all that become smaller by it.

    Raises:
        WoodburyError: For a name that is not in the state dict, a tensor that is quantized, sparse
            or without values, or a place that cannot be written.
        WrongType: For an entry that is no tensor, or a dtype that safetensors does not have.

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
    stored, header = packed(state_dict, names)
    write_atomically(Path(path), lambda partial: save_file(stored, partial, header))


class Packed(NamedTuple):
    """What a sparse file holds.

    Attributes:
        tensors: The bits and the values of packed tensors, and the others as they are.
        header: The metadata.
    """

    tensors: dict[str, Tensor]
    header: dict[str, str]


def packed(state_dict: Mapping[str, Tensor], names: Iterable[str] | None = None) -> Packed:
    """The content of a sparse file; see `save_sparse`.

    Args:
        state_dict: Name -> tensor.
        names: The tensors to pack; None for all that become smaller by it.

    Raises:
        WoodburyError: As `save_sparse`.
    """
    check_storable(state_dict)
    names = None if names is None else set(_listed(names))
    if names and (unknown := sorted(names - set(state_dict))):
        raise WoodburyError(
            f"There is no tensor {unknown[0]!r} in the state dict to save sparsely: "
            "check the names."
        )
    first = _first_names(state_dict)
    chosen = None if names is None else {first[name] for name in names}
    marks = _unused_marks(state_dict)
    stored: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name in dict.fromkeys(first.values()):
        tensor = state_dict[name].detach().cpu().resolve_conj().resolve_neg().contiguous()
        keep = _any_bit(tensor)
        if _is_smaller(tensor, keep) if chosen is None else name in chosen:
            shapes[name] = list(tensor.shape)
            stored[name + marks.keep] = torch.from_numpy(np.packbits(keep.numpy()))
            stored[name + marks.values] = _picked(tensor.flatten(), keep)
        else:
            stored[name] = tensor.clone()  # safetensors refuses two views of one memory
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "marks": list(marks),
        "shapes": shapes,
        "tied": first,
    }
    facts["checksum"] = _checksum(facts, stored)
    return Packed(stored, {HEADER: json.dumps(facts)})


@checks_types
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
    facts = _facts(header)
    if facts.get("format") != FORMAT:
        raise WoodburyError(
            f"{path} is not a sparse file of woodbury: read it with safetensors.torch.load_file."
        )
    if facts.get("version") != VERSION:
        raise WoodburyError(
            f"{path} has format version {facts.get('version')}, this woodbury reads {VERSION}: "
            "read it with the woodbury that wrote it."
        )
    if facts.pop("checksum", None) != _checksum(facts, stored):
        raise WoodburyError(
            f"{path} is damaged (its checksum does not match): copy or write it again."
        )
    try:
        marks = _Marks(*facts["marks"])
        dense = {
            name: _unpacked(stored, name, shape, marks) for name, shape in facts["shapes"].items()
        }
        everything = {**stored, **dense}
        return {name: everything[first] for name, first in facts["tied"].items()}
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
        return _facts(file.metadata() or {}).get("format") == FORMAT


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
    if not os.path.isfile(path):  # which takes names that the system refuses
        raise WoodburyError(f"There is no file {path}: check the path of the weights.")


def check_storable(state_dict: Mapping[str, Any]) -> None:
    """Raise unless `save_sparse` can store a state dict.

    Args:
        state_dict: name -> tensor.

    Raises:
        WoodburyError: For a tensor that is quantized, sparse or without values.
        WrongType: For an entry that is no tensor, or a dtype that safetensors does not have.
    """
    for name, tensor in state_dict.items():
        _check_storable(name, tensor)


def _listed(names: Any) -> list[str]:
    iterable = isinstance(names, Iterable) and not isinstance(names, (str, Tensor))
    listed: list[Any] = list(names) if iterable else []
    if not iterable or not all(isinstance(name, str) for name in listed):
        kind = type(names).__name__
        raise WrongType(f"names is a {kind}: give a list of names in the state dict, or None.")
    return listed


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


class _Marks(NamedTuple):
    """The endings of the two parts of a pruned tensor; no tensor's own name has one of them."""

    keep: str
    values: str


def _unused_marks(names: Iterable[str]) -> _Marks:
    marks = _Marks(KEEP_SUFFIX, VALUES_SUFFIX)
    while any(name.endswith(tuple(marks)) for name in names):
        marks = _Marks(f"#{marks.keep}", f"#{marks.values}")
    return marks


def _facts(header: Mapping[str, str]) -> dict[str, Any]:
    """What the metadata of a file say; nothing where they are not ours."""
    try:
        facts = json.loads(header.get(HEADER, "{}"))
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _checksum(facts: Mapping[str, Any], stored: Mapping[str, Tensor]) -> str:
    """The BLAKE2 of the facts, and of each stored tensor's name, dtype, shape and bytes."""
    digest = hashlib.blake2b(json.dumps(facts).encode(), digest_size=16)
    for name, tensor in sorted(stored.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_storable(name: str, tensor: Tensor) -> None:
    """Raise unless safetensors can hold an entry of a state dict."""
    if not isinstance(name, str):
        raise WrongType(f"The state dict has the key {name!r}: give names, as state_dict() does.")
    if not isinstance(tensor, Tensor):
        kind = type(tensor).__name__
        raise WrongType(f"{name!r} in the state dict is a {kind}, not a tensor: leave it out.")
    if is_lazy(tensor):
        raise WoodburyError(
            f"{name!r} has no shape yet: show the model some data once, as its layers are lazy."
        )
    if tensor.is_quantized or tensor.layout is not torch.strided or tensor.is_meta:
        kind = "quantized" if tensor.is_quantized else "on meta" if tensor.is_meta else "sparse"
        raise WoodburyError(
            f"{name!r} in the state dict is {kind}: give a plain dense tensor with values."
        )
    try:
        save({"empty": torch.empty(0, dtype=tensor.dtype)})
    except (SafetensorError, KeyError, ValueError) as error:
        raise WrongType(
            f"{name!r} in the state dict is {tensor.dtype}, which safetensors does not have: "
            "convert it."
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
            tensor.is_conj(),  # such a view has other values in the same memory
            tensor.is_neg(),
        )
        key = (*place, tensor.shape, tensor.stride()) if tensor.numel() else (name,)
        names[name] = first.setdefault(key, name)
    return names


def _any_bit(tensor: Tensor) -> Tensor:
    """(n,) bool: which entries have any bit set, so that −0.0 and NaN survive in every dtype."""
    as_bytes = tensor.flatten().view(torch.uint8).view(tensor.numel(), tensor.element_size())
    return as_bytes.ne(0).any(1)


def _picked(flat: Tensor, keep: Tensor) -> Tensor:
    """The kept entries; those of one byte by their bits, as torch 2.4 picks no 8-bit floats."""
    if flat.element_size() > 1:
        return flat[keep]
    return flat.view(torch.uint8)[keep].view(flat.dtype)


def _is_smaller(tensor: Tensor, keep: Tensor) -> bool:
    """Whether bits and kept values together take fewer bytes than the dense tensor."""
    return keep.numel() / 8 + int(keep.sum()) * tensor.element_size() < tensor.nbytes


def _unpacked(stored: Mapping[str, Tensor], name: str, shape: list[int], marks: _Marks) -> Tensor:
    """The dense tensor from its bits and its values."""
    values = stored[name + marks.values]
    bits = stored[name + marks.keep].numpy()
    if bits.size != -(-math.prod(shape) // 8):  # before memory of that size is asked for
        raise ValueError(f"{name!r} of shape {shape} has {bits.size} bytes of bits")
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
