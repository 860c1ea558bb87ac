"""Data sets of a run: parts that are held out or drawn, and the batches they are read in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from woodbury.cli.inputs.images import Images
from woodbury.errors import WoodburyError, user_code
from woodbury.integrations.transformers.samples import Pictures, Tokens
from woodbury.model.batches import Batch
from woodbury.model.likelihood import IGNORED
from woodbury.monitor import report

BATCH_SAMPLES = 250
"""Samples in a batch that nothing is trained on."""
MAX_BYTES_IN_MEMORY = 2**30
"""Bytes of a split that are kept decoded; larger ones are read again each time."""


@dataclass(frozen=True)
class Batches:
    """A data set as re-iterable batches (inputs, target), in the types that networks expect.

    Attributes:
        dataset: Pairs (input, label).
        size: Samples in a batch.
    """

    dataset: Dataset
    size: int = BATCH_SAMPLES

    def __iter__(self) -> Iterator[Batch]:
        """The batches, read from the data set each time."""
        loader = DataLoader(self.dataset, batch_size=self.size)
        return _read(loader, lambda: len(loader))

    def __len__(self) -> int:
        """How many batches there are."""
        return -(-len(self.dataset) // self.size)  # type: ignore[arg-type]


AllBatches = list[Batch] | Batches
"""Batches that can be counted and read again."""


def batches(dataset: Dataset) -> AllBatches:
    """The batches of a data set, in memory where they fit."""
    lazy = Batches(dataset, at_once(dataset))
    first = next(iter(lazy))
    size = sum(leaf.nbytes for leaf in tree_leaves(first) if isinstance(leaf, Tensor))
    total = size * len(dataset) / lazy.size  # type: ignore[arg-type]
    return list(lazy) if total < MAX_BYTES_IN_MEMORY else lazy


def at_once(dataset: Dataset) -> int:
    """Samples in a batch that nothing is trained on: fewer of long texts and their scores."""
    if isinstance(dataset, Subset):
        return at_once(dataset.dataset)
    return dataset.at_once if isinstance(dataset, (Tokens, Pictures)) else BATCH_SAMPLES


@dataclass(frozen=True)
class WithProgress:
    """Batches that are reported as progress, each when the next one is asked for.

    Attributes:
        what: What they are.
        batches: They.
    """

    what: str
    batches: AllBatches

    def __iter__(self) -> Iterator[Batch]:
        """The batches, each time from the first."""
        total = len(self.batches)
        for done, batch in enumerate(self.batches):
            report(self.what, done, total)
            yield batch
        report(self.what, total, total)


def stream(dataset: Dataset, order: Iterator[Tensor]) -> Iterator[Batch]:
    """Read a data set in a given order.

    Args:
        dataset: Pairs (input, label). Each sample is read again each time, as it may be augmented.
        order: The indices of each batch.
    """
    drawn = 0

    def indices() -> Iterator[list[int]]:
        nonlocal drawn
        for batch in order:
            drawn += 1
            yield batch.tolist()

    loader = DataLoader(
        dataset,
        batch_sampler=indices(),  # type: ignore[arg-type]
        # With a generator of its own it takes nothing from the one that a resumed run goes on with.
        generator=torch.Generator(),
    )
    return _read(loader, lambda: drawn)


def labels_of(dataset: Dataset) -> Tensor | None:
    """The labels of all samples, (n, …); None where the data set would have to be read for them."""
    if isinstance(dataset, Subset):
        whole = labels_of(dataset.dataset)
        return None if whole is None else whole[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[-1]
    return dataset.labels if isinstance(dataset, Images) else None


def to_default_dtype(leaf: Any) -> Any:
    """A tensor in the type that networks expect: float32 for numbers, int64 for whole ones."""
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.float() if leaf.is_floating_point() else leaf.long()


def _read(loader: Iterable[Any], batches_asked_for: Callable[[], int]) -> Iterator[Batch]:
    """The batches of a loader, which runs the data set's own code.

    Raises:
        WoodburyError: If that fails, or ends early: a StopIteration in it would pass for the end of
            the loader, and the run would use fewer samples in silence.
    """
    batches = iter(loader)
    done = 0
    while True:
        with user_code("DATA cannot be read in batches of pairs (input, label) of equal shapes."):
            try:
                batch = next(batches)
            except StopIteration:
                break
        done += 1
        yield _pair(batch)
    if done < batches_asked_for():
        raise WoodburyError(
            f"DATA ends in batch {done}, before its len(): let its __getitem__ not raise "
            "StopIteration."
        )


def _pair(batch: Any) -> Batch:
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise WoodburyError(
            "The dataset's items are not pairs (input, label): are the labels missing?"
        )
    inputs, target = batch
    return tree_map(to_default_dtype, inputs), tree_map(to_default_dtype, target)


def tokens_per_sample(batches: Iterable[Batch]) -> float:
    """How many tokens a sample predicts, on average.

    Args:
        batches: (inputs, labels) of a causal language model, at least one.
    """
    observed, samples = 0, 0
    for _, labels in batches:
        observed += int((labels != IGNORED).sum())
        samples += len(labels)
    return observed / samples
