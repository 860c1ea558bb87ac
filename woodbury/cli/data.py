"""DATA: from words on the command line to a training and a test split, seen to fit the model."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    random_split,
)

from woodbury.cli.images import Images
from woodbury.cli.load import call, first_line, guarded
from woodbury.errors import WoodburyError
from woodbury.model.batches import Batch
from woodbury.model.likelihood import IGNORED, Likelihood, cross_entropy
from woodbury.model.modes import eval_mode

HELD_OUT = 0.2
IN_MEMORY = 2**30
"""Bytes of a split that are kept decoded; larger ones are read again each time."""


@dataclass(frozen=True)
class Data:
    """A training and a test split, as datasets of pairs (input, target); `notes` say what was decided on the way.

    answered: the labels of the test split are not the data's own.
    """

    train: Dataset
    test: Dataset
    notes: tuple[str, ...] = ()
    answered: bool = False


Answer = Callable[[Tensor], Tensor]
"""Inputs -> the labels that stand for those which the data lack."""


def load_data(
    where: str, *, seed: int = 0, size: int | None = None, answer: Answer | None = None
) -> Data:
    """The splits that DATA names; without a test split a fifth is held out by `seed`.

    answer: gives inputs without labels those that stand for them; None to refuse such data.
    Raises WoodburyError, in one sentence, for a place that does not exist or holds no pairs of inputs and labels.
    """
    path = Path(where).expanduser()
    answered = False
    if path.is_dir():
        splits = Images.splits(path, size)
    elif path.suffix == ".npz" or ":" in where:
        splits = _from_file(path) if path.suffix == ".npz" else _from_function(where)
        answered = isinstance(splits[-1], Unlabelled)
        splits = [_answered(where, split, answer) for split in splits]
    else:
        raise WoodburyError(
            f"There is no data at {where}: give FILE.py:FUNCTION, a .npz file or a folder of class folders."
        )
    for split in splits:
        if not len(split):  # type: ignore[arg-type]
            raise WoodburyError(f"{where} holds no samples: look at what it returns.")
    if len(splits) == 2:
        return Data(splits[0], splits[1], answered=answered)
    train, test = split_off(splits[0], HELD_OUT, seed)
    said = f"{where} has no test split: accuracy is measured on {len(test)} samples held out by seed {seed}, "
    return Data(train, test, (said + "which the model may have seen in training.",), answered)


@dataclass(frozen=True)
class Unlabelled(Dataset):
    """Inputs alone."""

    inputs: Tensor

    def __len__(self) -> int:
        return len(self.inputs)


def _answered(where: str, split: Dataset, answer: Answer | None) -> Dataset:
    if not isinstance(split, Unlabelled):
        return split
    if answer is None:
        raise WoodburyError(
            f"{where} has no labels: give y, or prune with --labels sampled, which needs none."
        )
    return TensorDataset(
        split.inputs,
        torch.cat([answer(part) for part in split.inputs.split(250)] or [torch.empty(0)]),
    )


def split_off(dataset: Dataset, fraction: float, seed: int) -> tuple[Subset, Subset]:
    """The dataset without a random `fraction` of it, and that fraction."""
    total = len(dataset)  # type: ignore[arg-type]
    aside = round(fraction * total)
    if not 0 < aside < total:
        raise WoodburyError(
            f"{total} sample(s) are too few to hold {fraction:.0%} out: give more data."
        )
    rest, held = random_split(dataset, [total - aside, aside], torch.Generator().manual_seed(seed))
    return rest, held


def sample(dataset: Dataset, count: int, seed: int) -> Subset:
    """`count` samples of it, drawn by `seed`."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
    return Subset(dataset, order[:count].tolist())


@dataclass(frozen=True)
class Batches:
    """A dataset as re-iterable batches (inputs, target), each in a form that a model takes."""

    dataset: Dataset
    size: int = 250

    def __iter__(self) -> Iterator[Batch]:
        return map(_pair, DataLoader(self.dataset, batch_size=self.size))


def stream(dataset: Dataset, order: Iterator[Tensor]) -> Iterator[Batch]:
    """One batch of the dataset for each tensor of indices, read anew each time, as it may augment its samples."""
    # with a generator of its own the loader takes nothing from the one that a resumed run goes on with
    loader = DataLoader(
        dataset, batch_sampler=map(Tensor.tolist, order), generator=torch.Generator()
    )  # type: ignore[arg-type]
    return map(_pair, loader)


def batches(dataset: Dataset) -> Iterable[Batch]:
    """The batches of a dataset, in memory where they fit."""
    lazy = Batches(dataset)
    first = sum(leaf.nbytes for leaf in tree_leaves(next(iter(lazy))) if isinstance(leaf, Tensor))
    return list(lazy) if first * len(dataset) / lazy.size < IN_MEMORY else lazy  # type: ignore[arg-type]


def labels_of(dataset: Dataset) -> Tensor | None:
    """The labels of all its samples, (n, …), where they are to be had without reading it."""
    if isinstance(dataset, Subset):
        whole = labels_of(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[-1]
    return dataset.labels if isinstance(dataset, Images) else None


def probe(
    model: nn.Module, batches: Iterable[Batch], likelihood: Likelihood, labels: Tensor | None = None
) -> None:
    """Raises WoodburyError unless the model takes the first batch and its outputs fit its labels, and others if given."""
    inputs, target = next(iter(batches))
    output = answers(model, inputs)
    if likelihood is cross_entropy:
        _check_classes(output, target)
        seen = [target] if isinstance(batches, Batches) else [label for _, label in batches]
        _check_range(seen if labels is None else [*seen, labels], output.shape[1])
    else:
        likelihood.loss(output, target)  # says itself what does not fit


@torch.no_grad()
def answers(model: nn.Module, inputs: Any) -> Tensor:
    """What the model says to a batch of inputs, in eval mode. Raises WoodburyError if it refuses them."""
    keywords = inputs if isinstance(inputs, dict) else {}
    positional = (
        ()
        if isinstance(inputs, dict)
        else tuple(inputs)
        if isinstance(inputs, (tuple, list))
        else (inputs,)
    )
    shape = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
    with eval_mode(model):
        try:
            output = model(*positional, **keywords)
        except Exception as error:  # whatever the user's network raises
            why = f"{type(error).__name__}: {first_line(error)}"
            raise WoodburyError(
                f"The model refuses a batch of shape {shape}: does DATA fit it? ({why})"
            ) from error
    if not isinstance(output, Tensor):
        raise WoodburyError(f"The model gives a {type(output).__name__}: it must give one tensor.")
    return output


def _check_classes(output: Tensor, target: Any) -> None:
    if not isinstance(target, Tensor) or target.dtype != torch.int64:
        kind = str(target.dtype)[6:] if isinstance(target, Tensor) else type(target).__name__
        raise WoodburyError(
            f"The labels are {kind}: cross_entropy needs integer classes; or take --loss squared_error."
        )
    if output.ndim < 2 or target.shape != output.shape[:1] + output.shape[2:]:
        shapes = f"The model's outputs have shape {tuple(output.shape)} and the labels {tuple(target.shape)}"
        raise WoodburyError(f"{shapes}: give (b, classes) and (b,).")


def _check_range(targets: Sequence[Tensor], classes: int) -> None:
    observed = [some for some in (target[target != IGNORED] for target in targets) if len(some)]
    if not observed:
        raise WoodburyError(
            f"Every label is {IGNORED}, which means no observation: give some classes."
        )
    low, high = min(int(some.min()) for some in observed), max(int(some.max()) for some in observed)
    if low < 0 or high >= classes:
        raise WoodburyError(
            f"The labels run from {low} to {high} but the model knows {classes} classes, numbered from 0."
        )


def _from_function(where: str) -> list[Dataset]:
    given = call(where)
    parts = list(given) if isinstance(given, (tuple, list)) else [given]
    if any(isinstance(part, IterableDataset) for part in parts):
        raise WoodburyError(
            f"{where} returned an IterableDataset, of unknown length: return a Dataset with a len()."
        )
    if 1 <= len(parts) <= 2 and all(isinstance(part, Dataset) for part in parts):
        return parts
    if len(parts) not in (2, 4):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise WoodburyError(
            f"{where} returned ({kinds}): return (x, y), (x, y, x_test, y_test) or torch Datasets."
        )
    return [_pairs(where, *parts[i : i + 2]) for i in range(0, len(parts), 2)]


def _from_file(path: Path) -> list[Dataset]:
    if not path.is_file():
        raise WoodburyError(f"There is no file {path}: check DATA.")
    try:
        with (
            zipfile.ZipFile(path),
            np.load(path) as file,
        ):  # np.load by itself takes other files too
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "Object arrays" in str(error):
            raise WoodburyError(
                f"{path} has arrays of Python objects, such as rows of unequal lengths: pad them."
            ) from error
        raise WoodburyError(
            f"{path} is truncated or no .npz file ({first_line(error)}): write it anew."
        ) from error
    split = bool({"x_test", "y_test"} & set(arrays))
    needed = ["x", *(["x_test"] if split else []), *(["y_test"] if split and "y" in arrays else [])]
    for name in needed:
        if name not in arrays:
            has = ", ".join(arrays) or "nothing"
            raise WoodburyError(
                f"{path} has no array {name!r}: it needs x and y [x_test, y_test] and has {has}."
            )
    pairs = [("x", "y"), ("x_test", "y_test")][: 2 if split else 1]
    return [_pairs(str(path), arrays[x], arrays.get(y)) for x, y in pairs]


def _pairs(where: str, x: Any, y: Any) -> Dataset:
    """Arrays as a dataset: bytes to [0, 1], floats to float32, label integers to int64; y: None for no labels."""
    without = y is None
    x, y = guarded(
        where, lambda: (torch.as_tensor(x), torch.zeros(len(x)) if without else torch.as_tensor(y))
    )
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
        raise WoodburyError(f"{where} has inputs of shape {tuple(x.shape)} and labels of shape {tuple(y.shape)}: "
                            "there must be one label per input.")  # fmt: skip
    for name, values in (("inputs", x), ("labels", y)):
        if values.is_floating_point() and not torch.isfinite(values).all():
            raise WoodburyError(f"{where} has {name} that are NaN or infinite: clean the data.")
    x = x.float() / 255 if x.dtype == torch.uint8 else _usual(x)
    return Unlabelled(x) if without else TensorDataset(x, _usual(y))


def _pair(batch: Any) -> Batch:
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise WoodburyError(
            "The dataset's items are not pairs (input, label): are the labels missing?"
        )
    return tree_map(_usual, batch[0]), tree_map(_usual, batch[1])


def _usual(leaf: Any) -> Any:
    """A tensor in the type that networks expect: float32 for numbers, int64 for classes and indices."""
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.float() if leaf.is_floating_point() else leaf.long()
