"""A state dict as files that any program reads: safetensors, and what torch.save writes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from woodbury.errors import user_code
from woodbury.io.folders import WRITABLE, torch_bytes, write_atomically
from woodbury.io.sparse_files import check_storable


def save_safetensors(path: str | os.PathLike, state_dict: Mapping[str, Tensor]) -> None:
    """Write a state dict as dense safetensors, whole or not at all.

    Args:
        path: The file to make or to replace.
        state_dict: Name -> tensor. Tied tensors are written under each of their names, so that
            every reader finds all of them.

    Raises:
        WoodburyError: For a tensor that cannot be stored, or a place that cannot be written.
        WrongType: For an entry that is no tensor, or a dtype that safetensors does not have.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import load_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_safetensors(f"{folder}/model.safetensors", {"bias": torch.ones(2)})
        ...     load_file(f"{folder}/model.safetensors")
        {'bias': tensor([1., 1.])}
    """
    check_storable(state_dict)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    seen: set[int] = set()
    for name, tensor in plain.items():  # safetensors refuses two tensors of one memory
        place = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    write_atomically(Path(path), lambda partial: save_file(plain, partial, {"format": "pt"}))


def save_torch(path: str | os.PathLike, state_dict: Mapping[str, Any]) -> None:
    """Write a state dict as `torch.save` does, whole or not at all.

    Args:
        path: The file to make or to replace.
        state_dict: Name -> tensor. Tied tensors are stored once.

    Raises:
        WoodburyError: For a place that cannot be written.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_torch(f"{folder}/model.pt", {"bias": torch.ones(2)})
        ...     torch.load(f"{folder}/model.pt", weights_only=True)
        {'bias': tensor([1., 1.])}
    """

    def write(partial: Path) -> None:
        with user_code(f"{path} cannot be written: {WRITABLE}."):
            partial.write_bytes(torch_bytes(state_dict))

    write_atomically(Path(path), write)
