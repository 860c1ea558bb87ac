"""Which channels of a network are constant or not read, and what takes their place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.integrations.compaction.coupling import ChannelGroup, Part
from woodbury.integrations.compaction.slicing import (
    CONVOLUTIONS,
    columns_of,
    folds_exactly,
    groups_of,
    has_features_last,
    inputs_of,
    outputs_of,
    zero_rows,
)
from woodbury.model.calling import call_model
from woodbury.model.hooks import forward_hooks, layer_input

CONSTANT = 1e-6
"""How much a channel may vary, relative to its largest value: vector code rounds at its ends."""

LARGE_ENOUGH = 0.1
"""Of the largest constant: one that others may be added to."""


@dataclass(frozen=True)
class Inputs:
    """What each input channel of a layer was, over some batches and all positions.

    Attributes:
        least: (inputs,).
        most: (inputs,).
    """

    least: Tensor
    most: Tensor

    def joined(self, other: Inputs) -> Inputs:
        """Over the batches of both."""
        return Inputs(torch.minimum(self.least, other.least), torch.maximum(self.most, other.most))

    @property
    def constants(self) -> Tensor:
        """(inputs,) the value of each channel that is constant; of the others no use."""
        return (self.least.double() + self.most.double()) / 2

    @property
    def constant(self) -> Tensor:
        """(inputs,) bool, which of them are constant."""
        size = torch.maximum(self.least.abs(), self.most.abs())
        return self.most - self.least <= CONSTANT * size


@dataclass(frozen=True)
class Removal:
    """What is to be removed from a group of channels.

    Attributes:
        group: The group.
        channels: Which of its channels.
        constants: Reader -> (inputs,) the value of each of its inputs.
        carriers: Reader -> for each of its own groups of inputs the one that takes the part of the
            removed ones, as the reader pads with zeros; None where none is needed.
    """

    group: ChannelGroup
    channels: tuple[int, ...]
    constants: Mapping[str, Tensor]
    carriers: Mapping[str, Sequence[int | None]]


@torch.no_grad()
def inputs_of_readers(
    model: nn.Module, groups: Iterable[ChannelGroup], batches: Iterable[Any]
) -> dict[str, Inputs]:
    """What the readers of some groups of channels are given.

    Args:
        model: The model, in eval mode.
        groups: Groups of its channels.
        batches: Inputs of some batches.

    Returns:
        Reader -> its input channels.
    """
    names = {reader.layer for group in groups for reader in group.readers}
    layers = {model.get_submodule(name): name for name in names}
    found: dict[str, Inputs] = {}

    def note(layer: nn.Module, positional: Any, keywords: Any, _: Any) -> None:
        values = layer_input(positional, keywords)
        dimension = -1 if has_features_last(layer) else 1 - (values.ndim < _full(layer))
        by_channel = values.detach().movedim(dimension, 0).flatten(1)
        seen = Inputs(by_channel.amin(1), by_channel.amax(1))
        name = layers[layer]
        found[name] = found[name].joined(seen) if name in found else seen

    with forward_hooks([(layer, note) for layer in layers]):
        for inputs in batches:
            call_model(model, inputs)
    return found


def chosen_removal(
    model: nn.Module, group: ChannelGroup, inputs: Mapping[str, Inputs]
) -> Removal | None:
    """The channels of a group whose removal changes no output.

    A channel is removable if no weight reads it, or if no weight makes it, so that it is constant,
    and every reader can do with a constant in its place.

    Args:
        model: The model.
        group: A group of its channels.
        inputs: What its readers are given.

    Returns:
        What to remove; None for nothing.
    """
    if group.why_kept or any(reader.layer not in inputs for reader in group.readers):
        return None
    removed = _candidates(model, group, inputs)
    kept: set[int] = set()
    carriers = {
        reader.layer: _choose_carriers(model, reader, inputs[reader.layer], removed, kept)
        for reader in group.readers
    }
    _even_out(model, group, removed)
    if not removed:
        return None
    constants = {reader.layer: inputs[reader.layer].constants for reader in group.readers}
    return Removal(group, tuple(sorted(removed)), constants, carriers)


def _candidates(
    model: nn.Module, group: ChannelGroup, inputs: Mapping[str, Inputs]
) -> dict[int, None]:
    """Channels that nothing makes or nothing reads, in order."""
    silent = [True] * group.channels if group.makers else [False] * group.channels
    filters = [part for part in group.followers if _is_convolution(model, part)]
    for maker in group.makers:
        zero = zero_rows(model.get_submodule(maker.layer)).tolist()
        places = zip(silent, maker.places, strict=True)
        silent = [s and all(zero[i] for i in where) for s, where in places]
    for part in filters if group.is_chain else ():  # all that is read comes through each of them
        zero = zero_rows(model.get_submodule(part.layer)).tolist()
        places = zip(silent, part.places, strict=True)
        silent = [s or all(zero[i] for i in where) for s, where in places]
    able = [True] * group.channels
    for reader in group.readers:
        unread = columns_of(model.get_submodule(reader.layer)).flatten(1).eq(0).all(1).tolist()
        constant = inputs[reader.layer].constant.tolist()
        for channel, where in enumerate(reader.places):
            replaceable = all(unread[i] or (silent[channel] and constant[i]) for i in where)
            able[channel] = able[channel] and replaceable
    return dict.fromkeys(channel for channel in range(group.channels) if able[channel])


def _choose_carriers(
    model: nn.Module, reader: Part, inputs: Inputs, removed: dict[int, None], kept: set[int]
) -> list[int | None]:
    """For each group of a reader that pads with zeros, the input that others are added to.

    What a constant channel adds to the output is less at a border that is padded with zeros. Two
    such channels differ by a factor alone, so that one of them can do for all. Its channel moves
    from `removed` to `kept`.
    """
    layer = model.get_submodule(reader.layer)
    if folds_exactly(layer):
        return [None]
    is_read = columns_of(layer).flatten(1).ne(0).any(1)
    sizes = (inputs.constants.abs() * is_read).tolist()
    per_group = inputs_of(layer) // groups_of(layer)
    carriers: list[int | None] = []
    for part in range(groups_of(layer)):
        channel_of = {
            index: channel
            for channel in (*removed, *kept)
            for index in reader.places[channel]
            if index // per_group == part and sizes[index] > 0
        }
        if not any(channel in removed for channel in channel_of.values()):
            carriers.append(None)
            continue
        largest = max(sizes[index] for index in channel_of)
        large = [index for index in channel_of if sizes[index] >= LARGE_ENOUGH * largest]
        carrier = max(large, key=lambda index: (channel_of[index] in kept, sizes[index]))
        removed.pop(channel_of[carrier], None)
        kept.add(channel_of[carrier])
        carriers.append(carrier)
    return carriers


def _even_out(model: nn.Module, group: ChannelGroup, removed: dict[int, None]) -> None:
    """Keep more channels, until each layer has some and its own groups have equally many."""
    layers = [
        (part.places, count, groups_of(model.get_submodule(part.layer)))
        for parts, size in (
            (group.makers, outputs_of),
            (group.followers, outputs_of),
            (group.readers, inputs_of),
        )
        for part in parts
        for count in [size(model.get_submodule(part.layer))]
    ]
    changed = True
    while changed and removed:
        changed = False
        for places, count, own_groups in layers:
            size = count // own_groups
            by_group: list[list[int]] = [[] for _ in range(own_groups)]
            for channel in removed:
                for index in places[channel]:
                    by_group[index // size].append(channel)
            most = min(size - 1, *map(len, by_group)) if own_groups > 1 else size - 1
            for channels in by_group:
                for channel in channels[: max(0, len(channels) - most)]:
                    changed = removed.pop(channel, 0) is None or changed


def _is_convolution(model: nn.Module, part: Part) -> bool:
    return isinstance(model.get_submodule(part.layer), CONVOLUTIONS)


def _full(layer: Any) -> int:
    """The dimensions of an input of a convolution that has a batch."""
    return layer.weight.ndim
