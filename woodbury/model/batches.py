"""Batches of samples: what they are, how they are read, checked and regrouped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from woodbury.errors import RankError, WoodburyError, WrongType, reason, user_code
from woodbury.linalg.conversion import as_tensor
from woodbury.linalg.ranks import Ranks
from woodbury.model.spread import DEALT, RUN, Spread, spread_of

END = object()
"""What stands for the end of a stream."""

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
        spread: How the samples lie with the ranks that share a computation; None where all of them
            are this rank's and no others belong to them.

    Attributes:
        tried: The likelihoods whose loss was seen to be a mean over some of these samples, once for
            each trial.

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
    spread: Spread | None = DEALT
    tried: list[Any] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.batches, Iterator):
            raise WoodburyError(
                "batches can be read only once: give a list or a DataLoader, not a generator."
            )
        if self.trusted and self.spread is not None and self.spread.is_dealt:
            object.__setattr__(self, "spread", None)  # this rank made them, for itself

    @classmethod
    def of(cls, batches: Iterable[Batch]) -> Samples:
        """`batches` as `Samples`; what is one already comes back unchanged."""
        return batches if isinstance(batches, Samples) else cls(batches)

    def trials_of(self, likelihood: Any) -> int:
        """How often a likelihood's loss was seen to be a mean over some of the samples."""
        return sum(tried is likelihood for tried in self.tried)

    def __iter__(self) -> Iterator[Batch]:
        """The batches as they were given, each checked as it is read; of ranks, its own part."""
        batches = iter(self.batches) if self.trusted else checked(self.batches)
        if self.spread is None or not self.spread.is_dealt or Ranks.current().size == 1:
            return batches
        return _dealt(batches, self.spread)

    def own(self, count: int) -> int:
        """How many of the first `count` samples this rank reads: all of them, if it is alone."""
        return count if self.spread is None else self.spread.own(count)

    def read(self, batches: Iterable[Batch], trusted: bool = False) -> Samples:
        """Batches that were read from these samples, as samples again."""
        return Samples(batches, trusted, None if self.spread is None else self.spread.read)

    def spread_over_ranks(self) -> Samples:
        """These samples, whose spread is found out by all ranks together.

        Raises:
            RankError: If some ranks have the same data and others do not.
        """
        if self.spread is None or Ranks.current().size == 1:
            return self
        spread = self.spread if self.trusted else spread_of(checked(self.batches))
        spread_out = Samples(self.batches, self.trusted, spread)
        ranks = Ranks.current()
        empty = next(iter(spread_out), None) is None
        if ranks.total(empty):
            raise RankError(
                f"Some of {ranks.size} ranks have no sample, as each takes {RUN} in a row of the "
                f"same data: give more than {RUN * (ranks.size - 1)} samples."
            )
        return spread_out

    def in_batches(self, size: int, limit: int | None = None) -> Iterator[Batch]:
        """The samples in order, in batches of one size.

        Nothing is read beyond the last sample that is needed.

        Args:
            size: Samples per batch. Shorter are the last batch, and any before samples of another
                shape, such as longer sequences.
            limit: Samples in all, over all ranks; None for every one.

        Returns:
            The batches, none of them empty; of ranks, each its own.
        """
        batches = iter(self) if limit is None else _first_samples(self, self.own(limit))
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
    for index, batch in enumerate(pairs(batches)):
        yield _checked_batch(index, batch)


def pairs(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches of a stream, each seen to be a pair, for training: no sample is cut out of them.

    Args:
        batches: Any iterable, such as a generator.

    Returns:
        The pairs (inputs, target) as they are.

    Raises:
        WoodburyError: If a batch cannot be read.
        WrongType: If `batches` cannot be iterated over, or a batch is no pair.
    """
    try:
        iterator = iter(batches)
    except TypeError as error:
        raise WrongType(
            f"batches is a {type(batches).__name__}: give a list or a DataLoader of pairs "
            "(inputs, target)."
        ) from error
    except OSError as error:
        raise WoodburyError(f"batches cannot be read. ({reason(error)})") from error
    for index in count():
        with user_code(f"Batch {index} cannot be read."):
            batch = next(iterator, END)
        if batch is END:
            return
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            hint = "are the labels missing?"
            if isinstance(batch, Mapping):
                hint = 'give (batch, batch["labels"]).'
            raise WrongType(
                f"Batch {index} is a {type(batch).__name__}, not a pair (inputs, target): {hint}"
            )
        yield batch[0], batch[1]


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
    """The samples from `start` up to `end` of a batch, or of any tree of tensors.

    Args:
        tree: Tensors with the samples along dimension 0, in tuples, lists and mappings. A list of
            one entry per sample, such as the boxes in each image, is cut too.
        start: The first sample.
        end: The first sample that is left out.

    Returns:
        A tree of the same form.

    Example:
        >>> batch = (torch.zeros(3, 2), [{"boxes": torch.ones(n, 4)} for n in (1, 5, 2)])
        >>> [len(target["boxes"]) for target in slice_samples(batch, 1, 3)[1]]
        [5, 2]
    """
    return _cut(tree, lambda node: node[start:end])


def taken_samples(tree: Any, indices: list[int]) -> Any:
    """Some samples of a batch, or of any tree of tensors, in a new tree.

    Args:
        tree: As for `slice_samples`.
        indices: Which, in rising order.

    Example:
        >>> taken_samples((torch.arange(4), ["a", "b", "c", "d"]), [1, 3])
        (tensor([1, 3]), ['b', 'd'])
    """

    def take(node: Any) -> Any:
        return node[indices] if isinstance(node, Tensor) else [node[i] for i in indices]

    return _cut(tree, take)


def _cut(tree: Any, cut: Callable[[Any], Any]) -> Any:
    """A tree of the same form, of whose tensors and lists of samples a part is taken."""
    size = _size_of(tree)

    def sliced(node: Any) -> Any:
        if isinstance(node, Tensor) or is_per_sample(node, size):
            return cut(node)
        return _rebuilt(node, [sliced(child) for child in _children(node)])

    return sliced(tree)


def same_structure(first: Batch, second: Batch) -> bool:
    """Whether two batches have the same tensors, but for the number of samples."""
    return _structure(first, _size_of(first)) == _structure(second, _size_of(second))


def concatenated(first: Batch, second: Batch) -> Batch:
    """The samples of one batch and then those of another of the `same_structure`."""
    size = _size_of(first)

    def joined(a: Any, b: Any) -> Any:
        if isinstance(a, Tensor):
            return torch.cat([a, b])
        if is_per_sample(a, size):
            return a + b
        pairs = zip(_children(a), _children(b), strict=True)
        return _rebuilt(a, [joined(*pair) for pair in pairs])

    return joined(first, second)


def is_per_sample(node: Any, size: int) -> bool:
    """Whether a part of a batch is a list of one entry per sample.

    Args:
        node: A tensor, a container or anything else in a batch.
        size: The samples of the batch.

    Returns:
        True for a list of so many entries, unless they are tensors that all have the samples along
        dimension 0.
    """
    if not isinstance(node, list) or len(node) != size:
        return False
    return not all(isinstance(entry, Tensor) and _has_length(entry, size) for entry in node)


def holds_lists(batch: Batch) -> bool:
    """Whether some part of a batch is a list of one entry per sample."""
    size = _size_of(batch)

    def held(node: Any) -> bool:
        return is_per_sample(node, size) or any(held(child) for child in _children(node))

    return held(batch)


def _children(node: Any) -> list[Any]:
    if isinstance(node, Mapping):
        return list(node.values())
    return list(node) if isinstance(node, (tuple, list)) else []


def _rebuilt(node: Any, children: list[Any]) -> Any:
    """A container with other children; anything else as it is."""
    if isinstance(node, Mapping):
        rebuilt = dict(zip(node, children, strict=True))
        return type(node)(**rebuilt) if is_dataclass(node) else rebuilt  # an output of transformers
    if isinstance(node, (tuple, list)):
        is_plain = type(node) in (tuple, list)
        return type(node)(children) if is_plain else type(node)(*children)  # a named tuple
    return node


def _size_of(tree: Any) -> int:
    return next((len(tensor) for tensor in tensors_in(tree) if tensor.ndim), 0)


def _structure(node: Any, size: int) -> Any:
    """What two batches have in common that can be concatenated."""
    if isinstance(node, Tensor):
        return node.shape[1:]
    if is_per_sample(node, size):
        return "a list of one entry per sample"
    if isinstance(node, Mapping):
        return {name: _structure(child, size) for name, child in node.items()}
    if isinstance(node, (tuple, list)):
        return [type(node), *(_structure(child, size) for child in node)]
    return None


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors in a module's inputs or outputs, in order; of unknown containers none."""
    leaves = tree_leaves(dict(tree) if isinstance(tree, Mapping) else tree)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _checked_batch(index: int, batch: Batch) -> Batch:
    inputs, target = batch
    if isinstance(inputs, Mapping):
        inputs = dict(inputs)  # a tokenizer's encoding is no dict
    inputs = _as_tensors(inputs, f"An input of batch {index}")
    target = _as_tensors(target, f"A label of batch {index}")
    size = samples_in(inputs)
    for leaf in _batched_tensors(inputs, size):
        if not _has_length(leaf, size):
            raise WoodburyError(
                f"Batch {index} has {size} samples and an input of shape {tuple(leaf.shape)}: give "
                "the samples along dimension 0 of every tensor, or make it a buffer of the model."
            )
    for leaf in _batched_tensors(target, size):
        if not _has_length(leaf, size):
            raise WoodburyError(
                f"Batch {index} has {size} samples and labels of shape {tuple(leaf.shape)}: "
                "give one label per sample, along dimension 0, or a list of one entry per sample."
            )
    return inputs, target


def _as_tensors(node: Any, what: str) -> Any:
    """A part of a batch with tensors where it has arrays, or lists of nothing but numbers."""
    if isinstance(node, Tensor) or (hasattr(node, "__array__") and hasattr(node, "dtype")):
        tensor = as_tensor(node, what)
        return node if isinstance(node, Tensor) else tensor
    if isinstance(node, list) and node and _is_numeric(node):
        return torch.tensor(node)
    return _rebuilt(node, [_as_tensors(child, what) for child in _children(node)])


def _is_numeric(node: Any) -> bool:
    """Whether lists, at any depth, hold nothing but numbers and have equal lengths."""
    if not isinstance(node, list):
        return isinstance(node, (int, float))
    lengths = {len(child) if isinstance(child, list) else -1 for child in node}
    return len(lengths) == 1 and all(_is_numeric(child) for child in node)


def _batched_tensors(node: Any, size: int) -> Iterator[Tensor]:
    """The tensors of a batch that have the samples along dimension 0, or should."""
    if isinstance(node, Tensor):
        yield node
    elif not is_per_sample(node, size):
        for child in _children(node):
            yield from _batched_tensors(child, size)


def _has_length(tensor: Tensor, size: int) -> bool:
    return tensor.ndim > 0 and len(tensor) == size


def _dealt(batches: Iterable[Batch], spread: Spread) -> Iterator[Batch]:
    """The samples of each batch that are this rank's."""
    first = 0
    for batch in batches:
        count = samples_in(batch[0])
        own = spread.own_indices(first, count)
        first += count
        if own:
            yield taken_samples(batch, own)


def _first_samples(batches: Iterable[Batch], limit: int) -> Iterator[Batch]:
    """The first `limit` samples, without reading on."""
    remaining = limit
    if not remaining:
        return
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
