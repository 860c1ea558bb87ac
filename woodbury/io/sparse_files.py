"""Weights out and in: sparse safetensors (a bit per weight, and the values that stay); folders whole or not at all."""

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

from woodbury.errors import WoodburyError
from woodbury.io.folders import write_atomically

FORMAT, VERSION = "woodbury-sparse", "1"


KEEP, VALUES = (
    "#keep",
    "#values",
)  # a pruned tensor `name` is stored as `name#keep` and `name#values`


def save_sparse(
    path: str | os.PathLike, state_dict: Mapping[str, Tensor], names: Iterable[str] | None = None
) -> None:
    """Write a state dict as safetensors; each tensor in `names` as a bit per weight (1 = kept) and its kept values.

    names: the pruned tensors; None: every tensor that becomes smaller so. The round trip through `load_sparse` is exact
    to the bit, whatever the dtype; tied tensors are stored once. Float32 at 90 % sparsity takes 0.13 of its dense bytes.
    Raises WoodburyError for unknown names, entries that are no tensors, and a path that cannot be written.
    """
    for name, tensor in state_dict.items():
        if not isinstance(tensor, Tensor):
            raise WoodburyError(
                f"{name!r} in the state dict is a {type(tensor).__name__}, not a tensor: leave it out."
            )
    names = None if names is None else set(names)
    if names and (unknown := sorted(names - set(state_dict))):
        raise WoodburyError(
            f"There is no tensor {unknown[0]!r} in the state dict to save sparsely: check the names."
        )
    first = _first_names(state_dict)
    chosen = None if names is None else {first[name] for name in names}
    stored: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name in dict.fromkeys(first.values()):
        tensor = state_dict[name].detach().cpu().contiguous()
        keep = _any_bit(tensor)
        if _pays(tensor, keep) if chosen is None else name in chosen:
            shapes[name] = list(tensor.shape)
            stored[name + KEEP] = torch.from_numpy(np.packbits(keep.numpy()))
            stored[name + VALUES] = tensor.flatten()[keep]
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
    """Read what `save_sparse` wrote, as a dense state dict on the CPU: removed weights are 0, tied tensors are one.

    Raises WoodburyError for a file that is missing, truncated, damaged, foreign, or of a later format.
    """
    header, stored = read_safetensors(path)
    if header.get("format") != FORMAT:
        raise WoodburyError(
            f"{path} is not a sparse file of woodbury: read it with safetensors.torch.load_file."
        )
    if header.get("version") != VERSION:
        found = header.get("version")
        raise WoodburyError(
            f"{path} has format version {found}, this woodbury reads {VERSION}: install a later one."
        )
    try:
        dense = {
            name: _unpacked(stored, name, shape)
            for name, shape in json.loads(header["shapes"]).items()
        }
        return {
            name: dense[at] if at in dense else stored[at]
            for name, at in json.loads(header["tied"]).items()
        }
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise WoodburyError(
            f"{path} is damaged ({error}): write it again with woodbury.save_sparse."
        ) from error


def is_sparse(path: str | os.PathLike) -> bool:
    """Whether a safetensors file is one of `save_sparse`."""
    with _opened(path) as file:
        return (file.metadata() or {}).get("format") == FORMAT


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of any safetensors file; WoodburyError where it is missing, truncated or something else."""
    with _opened(path) as file:
        return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Any]:
    if not Path(path).is_file():
        raise WoodburyError(f"There is no file {path}: check the path of the weights.")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise WoodburyError(
            f"{path} is truncated or not a safetensors file ({error}): copy or write it anew."
        ) from error


def _first_names(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """For each name the first name of the same memory seen in the same way, so that tied tensors are stored once."""
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
    """(n,) bool: which entries have any bit set; so −0.0 and NaN survive the round trip, whatever the dtype."""
    return (
        tensor.flatten().view(torch.uint8).view(tensor.numel(), tensor.element_size()).ne(0).any(1)
    )


def _pays(tensor: Tensor, keep: Tensor) -> bool:
    """Whether bits and values together take fewer bytes than the dense tensor."""
    return keep.numel() / 8 + int(keep.sum()) * tensor.element_size() < tensor.nbytes


def _unpacked(stored: Mapping[str, Tensor], name: str, shape: list[int]) -> Tensor:
    """The dense tensor from its bits and values."""
    values, packed = stored[name + VALUES], stored[name + KEEP]
    dense = torch.zeros(shape, dtype=values.dtype)
    keep = torch.from_numpy(np.unpackbits(packed.numpy(), count=dense.numel()).astype(bool))
    if int(keep.sum()) != len(values):
        raise ValueError(f"{name!r} has {len(values)} values for {int(keep.sum())} kept weights")
    width = values.element_size()
    # by bytes: torch has no masked assignment for all of its 8-bit floats
    dense.view(-1).view(torch.uint8).view(-1, width)[keep] = values.view(torch.uint8).view(
        -1, width
    )
    return dense
