"""DATA: from words on the command line to a training and a test split."""

from __future__ import annotations

import lzma
import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from woodbury.cli.inputs.images import Images, Transform
from woodbury.cli.inputs.model import call_function, find_function, no_file, run_user_code
from woodbury.cli.inputs.splits import BATCH_SAMPLES, to_default_dtype
from woodbury.errors import WoodburyError, reason
from woodbury.linalg.conversion import plain_array
from woodbury.memory.budget import available_bytes, bytes_in_words
from woodbury.training.drawing import HELD_OUT_FRACTION, hold_out

LabelsFrom = Callable[[Any], Tensor]
"""Inputs -> the labels that stand for missing ones."""


class Splits(NamedTuple):
    """A training and a test split.

    Attributes:
        train: Pairs (input, label).
        test: The same.
        notes: What was decided for the user.
        without_labels: Whether the labels of the test split are not the data's own.
    """

    train: Dataset
    test: Dataset
    notes: tuple[str, ...] = ()
    without_labels: bool = False


@dataclass(frozen=True)
class Unlabelled(Dataset):
    """Inputs alone.

    Attributes:
        inputs: (n, …).
    """

    inputs: Tensor

    def __len__(self) -> int:
        """How many inputs there are."""
        return len(self.inputs)


def load_data(
    where: str,
    *,
    seed: int = 0,
    size: int | None = None,
    transform: Transform | None = None,
    labels_from: LabelsFrom | None = None,
) -> Splits:
    """Load the splits that DATA names; without a test split a fifth is held out.

    Args:
        where: `FILE.py:FUNCTION`, a `.npz` file or a folder of images.
        seed: Of what is held out.
        size: Width and height that images are resized to, None for their own.
        transform: What makes inputs of a folder's images, in place of that.
        labels_from: What gives inputs without labels some; None refuses such data.

    Raises:
        WoodburyError: For a place that does not exist or holds no pairs of inputs and labels.
    """
    path = _path(where)
    if path.is_dir():
        loaded = Images.splits(path, size, transform)
    elif path.suffix == ".npz":
        loaded = _from_file(path)
    elif ":" in where:
        loaded = _from_function(where)
    else:
        raise WoodburyError(
            f"There is no data at {where}: give FILE.py:FUNCTION, a .npz file or a folder of class "
            "folders."
        )
    without_labels = isinstance(loaded[-1], Unlabelled)
    splits = [_with_labels(where, split, labels_from) for split in loaded]
    for split in splits:
        if not _length(where, split):
            raise WoodburyError(f"{where} holds no samples: look at what it returns.")
    if len(splits) == 2:
        train, test = splits
        return Splits(train, test, without_labels=without_labels)
    return without_test(where, splits[0], seed)._replace(without_labels=without_labels)


def without_test(where: str, whole: Dataset, seed: int) -> Splits:
    """The splits of data without a test split, of which a fifth is held out.

    Args:
        where: DATA as the user wrote it.
        whole: What it holds.
        seed: Of what is held out.
    """
    train, test = hold_out(whole, HELD_OUT_FRACTION, seed)
    note = (
        f"{where} has no test split: accuracy is measured on {len(test)} samples held out by seed "
        f"{seed}, which the model may have seen in training."
    )
    return Splits(train, test, (note,))


def is_of_arrays(where: str) -> bool:
    """Whether DATA is a function or a file of arrays, and no table.

    Args:
        where: DATA as the user wrote it.
    """
    return ".py:" in where or where.endswith(".npz")


def check_data_exists(where: str) -> None:
    """Raise for DATA that names a file or a function that is not there, without reading it.

    Args:
        where: DATA as the user wrote it.

    Raises:
        WoodburyError: If so; it names the nearest one.
    """
    path = _path(where)
    if path.suffix == ".npz" and not path.is_file():
        raise no_file(where, "check DATA.")
    if not path.is_dir() and where.rpartition(":")[0].endswith(".py"):
        find_function(where)


def _path(where: str) -> Path:
    """The path of that name; the system may refuse to look at it."""
    try:
        path = Path(where).expanduser()
        path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # too long, of another user, with a \\0
        raise WoodburyError(f"DATA cannot be a path ({reason(error)}): check it.") from error
    return path


def _length(where: str, split: Dataset) -> int:
    return run_user_code(f"The length of {where}", lambda: len(split))  # type: ignore[arg-type]


def _with_labels(where: str, split: Dataset, labels_from: LabelsFrom | None) -> Dataset:
    if not isinstance(split, Unlabelled):
        return split
    if labels_from is None:
        raise WoodburyError(
            f"{where} has no labels: give y, or prune with --labels sampled, which needs none."
        )
    labels = [labels_from(chunk) for chunk in split.inputs.split(BATCH_SAMPLES)]
    return TensorDataset(split.inputs, torch.cat(labels or [torch.empty(0)]))


def _from_function(where: str) -> Sequence[Dataset]:
    returned = call_function(where)
    parts = list(returned) if isinstance(returned, (tuple, list)) else [returned]
    if any(isinstance(part, IterableDataset) for part in parts):
        raise WoodburyError(
            f"{where} returned an IterableDataset, of unknown length: return a Dataset with a "
            "len()."
        )
    if 1 <= len(parts) <= 2 and all(isinstance(part, Dataset) for part in parts):
        return parts
    if len(parts) not in (2, 4):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise WoodburyError(
            f"{where} returned ({kinds}): return (x, y), (x, y, x_test, y_test) or torch Datasets."
        )
    return [_from_arrays(where, *parts[start : start + 2]) for start in range(0, len(parts), 2)]


def _from_file(path: Path) -> Sequence[Dataset]:
    arrays = _read_arrays(path)
    has_test = bool({"x_test", "y_test"} & set(arrays))
    needed = ["x"]
    if has_test:
        needed += ["x_test"]
    if has_test and "y" in arrays:
        needed += ["y_test"]
    for name in needed:
        if name not in arrays:
            has = ", ".join(arrays) or "nothing"
            raise WoodburyError(
                f"{path} has no array {name!r}: it needs x and y [x_test, y_test] and has {has}."
            )
    pairs = [("x", "y"), ("x_test", "y_test")] if has_test else [("x", "y")]
    return [_from_arrays(str(path), arrays[x], arrays.get(y)) for x, y in pairs]


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise no_file(str(path), "check DATA.")
    try:
        # np.load by itself takes files of other kinds too.
        with zipfile.ZipFile(path) as packed:
            _check_sizes(path, packed)
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except WoodburyError:
        raise
    except (
        OSError,
        ValueError,
        EOFError,
        RuntimeError,  # an encrypted entry, or NotImplementedError for another way to compress
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        if "Object arrays" in str(error):
            raise WoodburyError(
                f"{path} has arrays of Python objects, such as rows of unequal lengths: pad them."
            ) from error
        raise WoodburyError(
            f"{path} is truncated or no .npz file ({reason(error)}): write it again."
        ) from error


def _check_sizes(path: Path, packed: zipfile.ZipFile) -> None:
    """Raise if the arrays have no room in memory, or a header says more than its file holds."""
    held = sum(entry.file_size for entry in packed.infolist())
    if held > (room := available_bytes()):
        raise WoodburyError(
            f"{path} unpacks to {bytes_in_words(held)}, and {bytes_in_words(room)} of memory are "
            "free: give fewer samples."
        )
    for entry in packed.infolist():
        with packed.open(entry) as file:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                version, np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read(file)
            size = math.prod(shape) * dtype.itemsize
            if not dtype.hasobject and file.tell() + size != entry.file_size:
                raise ValueError(f"{entry.filename} is no array of shape {shape}")


def _from_arrays(where: str, x: Any, y: Any) -> Dataset:
    """Arrays as a data set: bytes to [0, 1], floats to float32, whole labels to int64.

    Args:
        where: Where they come from.
        x: The inputs, (n, …).
        y: The labels, (n, …), None for none.
    """
    inputs = run_user_code(where, lambda: torch.as_tensor(plain_array(x)))
    labels = run_user_code(
        where, lambda: torch.zeros(len(inputs)) if y is None else torch.as_tensor(plain_array(y))
    )
    if inputs.ndim == 0 or labels.ndim == 0 or len(inputs) != len(labels):
        raise WoodburyError(
            f"{where} has inputs of shape {tuple(inputs.shape)} and labels of shape "
            f"{tuple(labels.shape)}: there must be one label per input."
        )
    for name, values in (("inputs", inputs), ("labels", labels)):
        if values.is_floating_point() and not torch.isfinite(values).all():
            raise WoodburyError(f"{where} has {name} that are NaN or infinite: clean the data.")
    is_bytes = inputs.dtype == torch.uint8
    inputs = inputs.float() / 255 if is_bytes else to_default_dtype(inputs)
    return Unlabelled(inputs) if y is None else TensorDataset(inputs, to_default_dtype(labels))
