"""Checkpoints: state dicts in the wrappings that training scripts give them."""

from __future__ import annotations

import os
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from woodbury.errors import WoodburyError, reason
from woodbury.io.sparse_files import check_file, is_sparse, load_sparse, read_safetensors
from woodbury.io.zeros import with_plain_zeros

WRAPPING_KEYS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts put the state dict."""
PARALLEL_PREFIX = "module."
"""What DataParallel and DistributedDataParallel put before every name."""
COMPILED_PREFIX = "_orig_mod."
"""What torch.compile puts before the names of a module, which may be a part of the model."""
ORIGINAL, MASK = "_orig", "_mask"
"""What torch.nn.utils.prune puts behind the names of a weight and its mask."""
EXTRA_STATE = "_extra_state"
"""The end of the name of what `get_extra_state` gave, which need not be a tensor."""


def read_checkpoint(path: str | os.PathLike) -> Mapping[str, Any]:
    """Read a state dict from a file, without running code from it.

    Args:
        path: A .safetensors file, dense or written by `save_sparse`; or what `torch.save` wrote: a
            state dict, also under the key "state_dict", "model_state_dict" or "model".

    Returns:
        name -> tensor, on the CPU, under the names in the file; and what `get_extra_state` gave.

    Raises:
        WoodburyError: If the file is missing, truncated, or holds something else.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {"bias": torch.ones(2)}}, f"{folder}/model.pt")
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
        isinstance(name, str) and (isinstance(value, Tensor) or name.endswith(EXTRA_STATE))
        for name, value in content.items()
    ):
        raise WoodburyError(f"{path} holds no state dict (name -> tensor): {SAVE_PLAINLY}.")
    return content


def load_state_dict_checked(
    model: nn.Module, weights: Mapping[str, Any], source: str | os.PathLike
) -> None:
    """Copy a state dict into a model, all of it, or leave the model as it was.

    What fits is what `model.load_state_dict` takes: names of old versions, such as `weight_g`, and
    counters that old versions lacked are no obstacle. The prefixes of DataParallel and of
    torch.compile are taken off, and masks of torch.nn.utils.prune become zeros in the weights.

    Args:
        model: The network to fill, in place.
        weights: name -> tensor, with the names and shapes of `model.state_dict()`.
        source: Where the weights came from, for the sentence of the error.

    Raises:
        WoodburyError: If a name, a shape or a kind of numbers does not fit; it names the first.

    Example:
        >>> load_state_dict_checked(nn.Linear(2, 1), {"module.weight": torch.ones(1, 2)}, "w.pt")
        Traceback (most recent call last):
        woodbury.errors.WoodburyError: w.pt lacks 'bias', which the model has: ...
    """
    expected = {name: each for name, each in model.state_dict().items() if not is_lazy(each)}
    weights = _without_masks(_without_prefixes(weights, expected), expected)
    for name, tensor in weights.items():
        here = expected.get(name)
        if not isinstance(tensor, Tensor) or not isinstance(here, Tensor):
            continue
        if tensor.is_complex() and not here.is_complex():
            raise _another_network(f"{name!r} is complex in {source} and real in the model")
        if tensor.shape != here.shape and not _is_extra(name):
            there = f"{tuple(tensor.shape)} in {source} and {tuple(here.shape)}"
            raise _another_network(f"{name!r} has shape {there} in the model")
    before = {name: here.clone() for name, here in expected.items() if isinstance(here, Tensor)}
    try:
        missing, extra = model.load_state_dict(weights, strict=False)
        if missing:
            raise _another_network(f"{source} lacks {missing[0]!r}, which the model has")
        if extra:
            raise _another_network(f"{source} has {extra[0]!r}, which the model lacks")
    except Exception as error:
        with torch.no_grad():
            for name, tensor in before.items():
                if not _is_extra(name):
                    expected[name].copy_(tensor)
        if isinstance(error, WoodburyError):
            raise
        raise _another_network(f"{source} cannot be loaded ({reason(error)})") from error


def _without_prefixes(weights: Mapping[str, Any], expected: Iterable[str]) -> Mapping[str, Any]:
    """A state dict under the names of the model that was wrapped; torch's versions are kept."""
    strip = _stripper(list(weights), list(expected))
    renamed = OrderedDict((strip(name), value) for name, value in weights.items())
    versions = getattr(weights, "_metadata", None)
    if versions is not None:
        renamed._metadata = {  # type: ignore[attr-defined]
            strip(f"{name}.").removesuffix("."): version for name, version in versions.items()
        }
    return renamed


def _stripper(names: list[str], expected: list[str]) -> Callable[[str], str]:
    """Name -> name without what wrappers put before it, where the model has no such names."""
    compiled = "" if any(COMPILED_PREFIX in name for name in expected) else COMPILED_PREFIX
    names = [name.replace(compiled, "") if compiled else name for name in names]
    lead = ""
    if not any(name.startswith(PARALLEL_PREFIX) for name in expected):
        while names and all(name.startswith(lead + PARALLEL_PREFIX) for name in names):
            lead += PARALLEL_PREFIX
    return lambda name: (name.replace(compiled, "") if compiled else name).removeprefix(lead)


def _without_masks(weights: Mapping[str, Any], expected: Container[str]) -> Mapping[str, Any]:
    """A state dict with `weight` in place of `weight_orig` and `weight_mask`, where they fit."""
    masked = [
        whole
        for name in weights
        if (whole := name.removesuffix(ORIGINAL)) != name
        and name not in expected
        and whole not in weights
        and _are_of_one_shape(weights[name], weights.get(f"{whole}{MASK}"))
    ]
    if not masked:
        return weights
    parts = {f"{whole}{end}" for whole in masked for end in (ORIGINAL, MASK)}
    plain = OrderedDict((name, value) for name, value in weights.items() if name not in parts)
    for whole in masked:
        original, mask = weights[f"{whole}{ORIGINAL}"], weights[f"{whole}{MASK}"]
        plain[whole] = with_plain_zeros(original * mask.to(original.dtype))
    versions = getattr(weights, "_metadata", None)
    if versions is not None:
        plain._metadata = versions  # type: ignore[attr-defined]
    return plain


def _are_of_one_shape(original: Any, mask: Any) -> bool:
    are_tensors = isinstance(original, Tensor) and isinstance(mask, Tensor)
    return are_tensors and original.shape == mask.shape


def _is_extra(name: str) -> bool:
    return name.rpartition(".")[2] == EXTRA_STATE


FOLDER = 0x10
"""The bit by which MS-DOS, and torch's reader of zip files, know a folder."""

SAVE_PLAINLY = "save it with torch.save(model.state_dict(), …)"
"""What to do about a file that holds something else."""


def _load_plain(path: str | os.PathLike) -> Any:
    """What `torch.save` wrote, if it is made of tensors and plain Python values."""
    check_zip(path)
    try:
        with _also_safe(Namespace):  # the options of a training script
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a truncated file shows itself as one of half a dozen types
        raise WoodburyError(
            f"{path} is truncated or no plain state dict ({_first_sentence(error)}): "
            f"{SAVE_PLAINLY}."
        ) from error


@contextmanager
def _also_safe(kind: type) -> Iterator[None]:
    """A context in which `torch.load` makes objects of a class.

    It is `torch.serialization.safe_globals`, which torch 2.4 has not.
    """
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([kind])
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def check_zip(path: str | os.PathLike) -> None:
    """Compare the checksums of what `torch.save` wrote, which `torch.load` does not do.

    Args:
        path: The file. One that is no zip, as old versions of torch wrote, has no checksums.

    Raises:
        WoodburyError: If one does not match, or the file says that it holds more than it does.
    """
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as file:
            strange = [entry for entry in file.infolist() if not _is_of_torch(entry)]
            damaged = f"{strange[0].filename} is not torch's" if strange else file.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, EOFError) as error:
        damaged = str(error)
    if damaged:
        shown = "".join(letter if letter.isprintable() else "?" for letter in damaged)
        raise WoodburyError(f"{path} is damaged ({shown}): copy or write it again.")


def _is_of_torch(entry: zipfile.ZipInfo) -> bool:
    """Whether an entry is a file as torch writes it.

    A compressed one may be of any size, and of what is marked as a folder torch reads nothing.
    """
    return entry.compress_type == zipfile.ZIP_STORED and not entry.external_attr & FOLDER


def _first_sentence(error: BaseException) -> str:
    """The first sentence of an error's message; torch's run to a page."""
    lines = (line.strip() for line in str(error).splitlines())
    first = next((line for line in lines if line), "no message")
    return first.split(". ")[0].rstrip(".")


def _another_network(what: str) -> WoodburyError:
    return WoodburyError(f"{what}: is it of another network?")
