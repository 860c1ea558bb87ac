"""Batches of samples: what they are, how they are read, checked and regrouped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_structure

from woodbury.errors import WoodburyError, WrongType

Batch = tuple[Any, Any]
"""(inputs, target).

The inputs are a tensor, a tuple of positional or a mapping of keyword arguments. Every tensor has
the samples along dimension 0. The target is None where there are no labels.
"""


@dataclass(frozen=True, eq=False)
class Samples:
    """A data set that can be read again and again, in batches of any size.

    Batches are checked while they are read: each must be a pair (inputs, target), with the samples
    along dimension 0 of every tensor.

    Args:
        batches: Re-iterable pairs (inputs, target): a list or a DataLoader, no generator.
        trusted: Whether this package made the batches, so that nothing is checked.

    Raises:
        WoodburyError: If `batches` can be read only once. While reading: if a batch is no such
            pair.
        WrongType: While reading, if `batches` cannot be iterated over.

    Example:
        >>> samples = Samples([(torch.arange(3), None), (torch.arange(3, 5), None)])
        >>> [inputs.tolist() for inputs, _ in samples.in_batches(2)]
        [[0, 1], [2, 3], [4]]
    """

    batches: Iterable[Batch]
    trusted: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.batches, Iterator):
            raise WoodburyError(
                "batches can be read only once: give a list or a DataLoader, not a generator."
            )

    @classmethod
    def of(cls, batches: Iterable[Batch]) -> Samples:
        """`batches` as `Samples`; what is one already comes back unchanged."""
        return batches if isinstance(batches, Samples) else cls(batches)

    def __iter__(self) -> Iterator[Batch]:
        """The batches as they were given, each checked as it is read."""
        return iter(self.batches) if self.trusted else checked(self.batches)

    def in_batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """The samples in order, in batches of one size.

        Nothing is read beyond the last sample that is needed.

        Args:
            size: Samples per batch. Shorter are the last batch, and any before samples of another
                shape, such as longer sequences.
            limit: Samples in all; None for every one.

        Returns:
            The batches, none of them empty.
        """
        batches = iter(self) if limit is None else _first_samples(self, limit)
        return _regrouped(batches, size)


def checked(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches of a stream, each checked as it is read.

    Args:
        batches: Any iterable, such as a generator.

    Returns:
        The pairs (inputs, target); mappings of inputs are made dicts.

    Raises:
        WoodburyError: If a tensor has not one entry per sample.
        WrongType: If `batches` cannot be iterated over, or a batch is no pair.
    """
    if isinstance(batches, Samples):
        yield from batches  # which checks them itself
        return
    try:
        iterator = iter(batches)
    except TypeError as error:
        raise WrongType(
            f"batches is a {type(batches).__name__}: give a list or a DataLoader of pairs "
            "(inputs, target)."
        ) from error
    for index, batch in enumerate(iterator):
        yield _checked_batch(index, batch)


def samples_in(inputs: Any) -> int:
    """How many samples a batch's inputs hold: the length of their first tensor.

    Args:
        inputs: A tensor, or a tuple, list or mapping with tensors, also nested.

    Returns:
        The length of dimension 0.

    Raises:
        WrongType: If the inputs hold no tensor.
    """
    for tensor in tensors_in(inputs):
        if tensor.ndim:
            return len(tensor)
    raise WrongType(
        f"A batch's inputs hold no tensor ({type(inputs).__name__}): "
        "give a tensor, a tuple or a dict of them."
    )


def check_enough_data(given: int, needed: int, what: str = "samples") -> None:
    """Raise unless the data gave as much as was asked for.

    Args:
        given: What it gave.
        needed: What was asked for.
        what: What is counted, for the sentence.

    Raises:
        WoodburyError: If `given` is less than `needed`.
    """
    if given < needed:
        raise WoodburyError(
            f"The data gave {given} of the {needed} {what}: give more data or ask for less."
        )


def slice_samples(tree: Any, start: int, end: int) -> Any:
    """The samples from `start` up to `end` of a batch, or of any tree of tensors."""
    return tree_map(lambda leaf: leaf[start:end] if isinstance(leaf, Tensor) else leaf, tree)


def same_structure(first: Batch, second: Batch) -> bool:
    """Whether two batches have the same tensors, but for the number of samples."""

    def shapes(batch: Batch) -> list[torch.Size | None]:
        return [leaf.shape[1:] if isinstance(leaf, Tensor) else None for leaf in tree_leaves(batch)]

    return tree_structure(first) == tree_structure(second) and shapes(first) == shapes(second)


def concatenated(first: Batch, second: Batch) -> Batch:
    """The samples of one batch and then those of another of the `same_structure`."""
    return tree_map(lambda a, b: torch.cat([a, b]) if isinstance(a, Tensor) else a, first, second)


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors in a module's inputs or outputs, in order; of unknown containers none."""
    leaves = tree_leaves(dict(tree) if isinstance(tree, Mapping) else tree)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _checked_batch(index: int, batch: Any) -> Batch:
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        hint = "are the labels missing?"
        if isinstance(batch, Mapping):
            hint = 'give (batch, batch["labels"]).'
        raise WrongType(
            f"Batch {index} is a {type(batch).__name__}, not a pair (inputs, target): {hint}"
        )
    inputs, target = batch
    if isinstance(inputs, Mapping):
        inputs = dict(inputs)  # a tokenizer's encoding is no dict
    size = samples_in(inputs)
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Tensor) and not _has_length(leaf, size):
            raise WoodburyError(
                f"Batch {index} has {size} samples and an input of shape {tuple(leaf.shape)}: give "
                "the samples along dimension 0 of every tensor, or make it a buffer of the model."
            )
    if isinstance(target, Tensor) and not _has_length(target, size):
        raise WoodburyError(
            f"Batch {index} has {size} samples and labels of shape {tuple(target.shape)}: "
            "give one label per sample, along dimension 0."
        )
    return inputs, target


def _has_length(tensor: Tensor, size: int) -> bool:
    return tensor.ndim > 0 and len(tensor) == size


def _first_samples(batches: Iterable[Batch], limit: int) -> Iterator[Batch]:
    """The first `limit` samples, without reading on."""
    remaining = limit
    for batch in batches:
        count = min(samples_in(batch[0]), remaining)
        yield slice_samples(batch, 0, count)
        remaining -= count
        if not remaining:
            return


def _regrouped(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The samples in batches of `size`, or fewer before another structure and at the end."""
    waiting: Batch | None = None
    for batch in batches:
        if not samples_in(batch[0]):
            continue
        if waiting is not None and not same_structure(waiting, batch):
            yield waiting
            waiting = None
        waiting = batch if waiting is None else concatenated(waiting, batch)
        held = samples_in(waiting[0])
        full = held - held % size  # the samples that fill batches
        for start in range(0, full, size):
            yield slice_samples(waiting, start, start + size)
        waiting = slice_samples(waiting, full, held) if held > full else None
    if waiting is not None:
        yield waiting
