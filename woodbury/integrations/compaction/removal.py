"""Channels taken out of a copy of a network, and constants put in the place of what they gave."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.integrations.compaction.choosing import Removal
from woodbury.integrations.compaction.coupling import Part
from woodbury.integrations.compaction.slicing import (
    add_to_bias,
    columns_of,
    folds_exactly,
    groups_of,
    inputs_of,
    keep_channels,
    keep_outputs,
    outputs_of,
    set_columns,
)
from woodbury.model.attributes import copy_of


@torch.no_grad()
def with_removed(model: nn.Module, removals: Iterable[Removal]) -> nn.Module:
    """A copy of a model without some channels.

    Args:
        model: The model, which is left as it is.
        removals: What to remove, from different groups.

    Returns:
        The copy.
    """
    smaller = copy_of(model)
    outputs: dict[str, list[int]] = defaultdict(list)
    inputs: dict[str, list[int]] = defaultdict(list)
    own: dict[str, list[int]] = defaultdict(list)
    for removal in removals:
        for parts, places in (
            (removal.group.makers, outputs),
            (removal.group.followers, own),
            (removal.group.readers, inputs),
        ):
            for part in parts:
                places[part.layer] += _removed_places(part, removal.channels)
        for reader in removal.group.readers:
            _replace(smaller, reader, removal)
    for name, removed in inputs.items():
        layer = smaller.get_submodule(name)
        columns = columns_of(layer)
        set_columns(layer, columns[_kept(len(columns), removed, columns.device)])
    for name, removed in outputs.items():
        layer: Any = smaller.get_submodule(name)
        keep_outputs(layer, _kept(outputs_of(layer), removed, layer.weight.device))
    for name, removed in own.items():
        layer = smaller.get_submodule(name)
        device = next((each.device for each in (*layer.parameters(), *layer.buffers())), None)
        keep_channels(layer, _kept(outputs_of(layer), removed, device))
    return smaller


def _replace(model: nn.Module, reader: Part, removal: Removal) -> None:
    """Let a reader compute the same without its removed inputs, which are constant or not read."""
    layer: Any = model.get_submodule(reader.layer)
    columns = columns_of(layer).double()
    removed = [
        index for index in _removed_places(reader, removal.channels) if columns[index].ne(0).any()
    ]
    if not removed:
        return
    constants = removal.constants[reader.layer]
    if folds_exactly(layer):
        # The groups of a layer have their outputs one after another.
        added = columns.new_zeros(groups_of(layer), columns.shape[1])
        for index in removed:
            own_group = index * groups_of(layer) // inputs_of(layer)
            added[own_group] += columns[index].sum(1) * constants[index]
        add_to_bias(layer, added.flatten())
        return
    carriers = removal.carriers[reader.layer]
    for index in removed:
        carrier = carriers[index * groups_of(layer) // inputs_of(layer)]
        if carrier is not None and constants[index]:
            columns[carrier] += columns[index] * (constants[index] / constants[carrier])
    set_columns(layer, columns)


def _removed_places(part: Part, channels: Sequence[int]) -> list[int]:
    return [index for channel in channels for index in part.places[channel]]


def _kept(count: int, removed: Sequence[int], device: Any) -> Tensor:
    keep = torch.ones(count, dtype=torch.bool, device=device)
    keep[removed] = False
    return keep
