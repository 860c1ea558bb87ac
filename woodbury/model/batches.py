"""Objective = model + likelihood + batches + space: the only thing that holds a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_structure

from woodbury.errors import WoodburyError

Batch = tuple[Any, Any]
"""(inputs, target). inputs: a tensor, a tuple of positional or a mapping of keyword arguments; samples along dimension 0."""


def samples_in(tree: Any) -> int:
    """How many samples a batch's inputs hold: the length of dimension 0 of their first tensor."""
    leaves = (
        tree.values()
        if isinstance(tree, Mapping)
        else tree
        if isinstance(tree, (tuple, list))
        else (tree,)
    )
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            return len(leaf)
    raise WoodburyError(
        f"A batch's inputs hold no tensor ({type(tree).__name__}): give a tensor, a tuple or a dict of them."
    )


def checked(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, each seen to be a pair, with one label per sample where the labels are a tensor."""
    for index, batch in enumerate(batches):
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            hint = (
                'give (batch, batch["labels"]).'
                if isinstance(batch, Mapping)
                else "are the labels missing?"
            )
            raise WoodburyError(
                f"Batch {index} is a {type(batch).__name__}, not a pair (inputs, target): {hint}"
            )
        inputs, target = batch
        inputs = (
            dict(inputs) if isinstance(inputs, Mapping) else inputs
        )  # a tokenizer's encoding is no dict
        for leaf in tree_leaves(inputs):
            if isinstance(leaf, Tensor) and (not leaf.ndim or len(leaf) != samples_in(inputs)):
                raise WoodburyError(
                    f"Batch {index} has {samples_in(inputs)} samples and an input of shape {tuple(leaf.shape)}: give the "
                    "samples along dimension 0 of every tensor, or make it a buffer of the model."
                )
        if isinstance(target, Tensor) and (not target.ndim or len(target) != samples_in(inputs)):
            raise WoodburyError(
                f"Batch {index} has {samples_in(inputs)} samples and labels of shape {tuple(target.shape)}: "
                "give one label per sample, along dimension 0."
            )
        yield inputs, target


def regrouped(batches: Iterable[Batch], size: int, most: int | None = None) -> Iterator[Batch]:
    """The samples of `batches` in order, in batches of `size`, `most` samples in all.

    Shorter are the last batch and any before samples of another shape, such as longer sequences.
    """
    left, waiting = most, None
    for inputs, target in checked(batches):
        if not samples_in(inputs):
            continue
        if waiting is not None and not same_structure(waiting, (inputs, target)):
            yield waiting
            left = None if left is None else left - samples_in(waiting[0])
            waiting = None
        waiting = (inputs, target) if waiting is None else concatenated(waiting, (inputs, target))
        while waiting is not None and samples_in(waiting[0]) >= min(
            size, size if left is None else left
        ):
            take = size if left is None else min(size, left)
            held = samples_in(waiting[0])
            yield slice_samples(waiting, 0, take)
            left = None if left is None else left - take
            if left == 0:
                return
            waiting = slice_samples(waiting, take, held) if held > take else None
    if waiting is not None:
        yield waiting


def slice_samples(tree: Any, start: int, end: int) -> Any:
    return tree_map(lambda leaf: leaf[start:end] if isinstance(leaf, Tensor) else leaf, tree)


def same_structure(first: Batch, second: Batch) -> bool:
    """Whether two batches have the same tensors, but for the number of samples."""

    def shapes(batch: Batch) -> list[torch.Size | None]:
        return [leaf.shape[1:] if isinstance(leaf, Tensor) else None for leaf in tree_leaves(batch)]

    return tree_structure(first) == tree_structure(second) and shapes(first) == shapes(second)


def concatenated(first: Batch, second: Batch) -> Batch:
    """The samples of one batch and then those of another that is `alike`."""
    return tree_map(lambda a, b: torch.cat([a, b]) if isinstance(a, Tensor) else a, first, second)
