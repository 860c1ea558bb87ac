"""Checkpoints: state dicts in the wrappings that training scripts give them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from woodbury.errors import WoodburyError
from woodbury.io.sparse_files import check_file, is_sparse, load_sparse, read_safetensors

WRAPPING_KEYS = ("state_dict", "model")
"""Keys under which training scripts put the state dict."""
PARALLEL_PREFIX = "module."
"""What DataParallel and DistributedDataParallel put before every name."""


def read_checkpoint(path: str | os.PathLike) -> dict[str, Tensor]:
    """Read a state dict from a file, without running code from it.

    Args:
        path: A .safetensors file, dense or written by `save_sparse`; or what `torch.save` wrote: a
            state dict, also under the key "state_dict" or "model", also with the prefix "module.".

    Returns:
        name -> tensor, on the CPU.

    Raises:
        WoodburyError: If the file is missing, truncated, or holds something else.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {"module.bias": torch.ones(2)}}, f"{folder}/model.pt")
        ...     read_checkpoint(f"{folder}/model.pt")
        {'bias': tensor([1., 1.])}
    """
    check_file(path)
    if Path(path).suffix == ".safetensors":
        return load_sparse(path) if is_sparse(path) else read_safetensors(path)[1]
    content = _load_plain(path)
    for key in WRAPPING_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise WoodburyError(f"{path} holds no state dict (name -> tensor): {SAVE_PLAINLY}.")
    weights = dict(content)
    consume_prefix_in_state_dict_if_present(weights, PARALLEL_PREFIX)
    return weights


def load_state_dict_checked(
    model: nn.Module, weights: Mapping[str, Tensor], source: str | os.PathLike
) -> None:
    """Copy a state dict into a model, all of it.

    Args:
        model: The network to fill, in place.
        weights: name -> tensor, with the names and shapes of `model.state_dict()`.
        source: Where the weights came from, for the sentence of the error.

    Raises:
        WoodburyError: If a name or a shape does not fit; it names the first, and the model is
            unchanged.

    Example:
        >>> load_state_dict_checked(nn.Linear(2, 1), {"weight": torch.ones(1, 2)}, "w.pt")
        Traceback (most recent call last):
        woodbury.errors.WoodburyError: w.pt lacks 'bias', which the model has: ...
    """
    expected = model.state_dict()
    if missing := [name for name in expected if name not in weights]:
        raise _another_network(f"{source} lacks {missing[0]!r}, which the model has")
    if extra := [name for name in weights if name not in expected]:
        raise _another_network(f"{source} has {extra[0]!r}, which the model lacks")
    for name, tensor in weights.items():
        there, here = tuple(tensor.shape), tuple(expected[name].shape)
        if there != here:
            raise _another_network(
                f"{name!r} has shape {there} in {source} and {here} in the model"
            )
    model.load_state_dict(weights)


SAVE_PLAINLY = "save it with torch.save(model.state_dict(), …)"
"""What to do about a file that holds something else."""


def _load_plain(path: str | os.PathLike) -> Any:
    """What `torch.save` wrote, if it is made of tensors and plain Python values."""
    _check_zip(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a truncated file shows itself as one of half a dozen types
        raise WoodburyError(
            f"{path} is truncated or no plain state dict ({_first_sentence(error)}): "
            f"{SAVE_PLAINLY}."
        ) from error


def _check_zip(path: str | os.PathLike) -> None:
    """Compare the checksums of a zip, which `torch.load` does not do."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        damaged = str(error)
    if damaged:
        raise WoodburyError(f"{path} is damaged ({damaged}): copy or write it again.")


def _first_sentence(error: BaseException) -> str:
    """The first sentence of an error's message; torch's run to a page."""
    lines = (line.strip() for line in str(error).splitlines())
    first = next((line for line in lines if line), "no message")
    return first.split(". ")[0].rstrip(".")


def _another_network(what: str) -> WoodburyError:
    return WoodburyError(f"{what}: is it of another network?")
