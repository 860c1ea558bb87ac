"""`coupled_channels`: units of pruning that can be removed from the layers afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, user_code
from woodbury.integrations.compaction.coupling import (
    ChannelGroup,
    Part,
    channel_groups,
    copy_to_change,
)
from woodbury.integrations.compaction.slicing import is_matrix_layer
from woodbury.model.calling import call_model
from woodbury.model.channels import channels_of
from woodbury.model.modes import eval_mode
from woodbury.model.random_numbers import random_kept
from woodbury.model.space import ParameterSpace
from woodbury.pruning.units import custom

REASONS_SHOWN = 3
"""In a sentence, at most."""


@dataclass(frozen=True)
class CoupledChannels:
    """Channels that can only be removed together, as units of pruning.

    Attributes:
        groups: Groups of coupled channels that were found.
        channels: Channels in all of them.
        members: For each channel, name -> which weights of that tensor make it.
    """

    groups: int
    channels: int
    members: tuple[Mapping[str, Any], ...] = field(repr=False)

    def __call__(self, space: ParameterSpace) -> Sequence[Tensor]:
        """The units by size, each (g, s) int64 indices into the d kept weights of the space."""
        within = [
            {name: where for name, where in unit.items() if name in space.shapes}
            for unit in self.members
        ]
        within = [unit for unit in within if unit]
        if not within:
            raise WoodburyError(
                "No weight of the coupled channels is in the space: choose parameters of the model "
                "that they were found in."
            )
        return custom(within)(space)


@checks_types
@random_kept()
def coupled_channels(model: nn.Module, example: Any) -> CoupledChannels:
    """Units of pruning: output channels, with all that must be removed with them.

    Where outputs of several layers are added, as in residual networks, a channel has one number in
    all of them; a unit is all weights that lead to it, and the weights of norms and depthwise
    convolutions on its way, as far as they are pruned. Torch-Pruning's graph says which layers
    these are. Channels that `compact` could not remove are no units and are kept: outputs of the
    model, what a LayerNorm or attention mixes.

    Args:
        model: The network; only its graph counts.
        example: Inputs of a batch: a tensor, a tuple of positional, or a mapping of keyword
            arguments.

    Returns:
        A unit for `Pruner(unit=…)`.

    Raises:
        MissingDependency: If Torch-Pruning is not installed.
        WrongType: If the model is no torch.nn.Module.
        WoodburyError: If the model refuses the example, cannot be copied or followed, or has no
            channel that could be removed.

    Example:
        >>> import pytest, torch, woodbury; _ = pytest.importorskip("torch_pruning")
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> unit = coupled_channels(model, torch.randn(2, 4))
        >>> unit
        CoupledChannels(groups=1, channels=8)
        >>> pruner = woodbury.Pruner(unit=unit)
    """
    network = copy_to_change(model)
    with eval_mode(network):
        with user_code("The model refuses the example."):
            call_model(network, example)
        found = channel_groups(network, example)
    free = [group for group in found if group.why_kept is None]
    if not free:
        reasons = [f" {group.name}: {group.why_kept}" for group in found[:REASONS_SHOWN]]
        raise WoodburyError(
            f"No channel of the model can be removed from its layers.{''.join(reasons)}"
        )
    members = [unit for group in free for unit in _units(network, group)]
    return CoupledChannels(len(free), len(members), tuple(members))


def _units(network: nn.Module, group: ChannelGroup) -> list[dict[str, Any]]:
    """For each channel of a group, the weights that make it."""
    units: list[dict[str, Any]] = [{} for _ in range(group.channels)]
    for part in (*group.makers, *group.followers):
        for name, dimension in _tensors(network, part).items():
            for unit, where in zip(units, part.places, strict=True):
                if where:
                    unit[name] = (*[slice(None)] * dimension, list(where))
    return units


def _tensors(network: nn.Module, part: Part) -> dict[str, int]:
    """The parameters of a layer that zeros make a channel constant in, and its dimension there."""
    layer = network.get_submodule(part.layer)
    lead = f"{part.layer}." if part.layer else ""
    names = [f"{lead}{name}" for name, _ in layer.named_parameters(recurse=False)]
    if not is_matrix_layer(layer) and isinstance(layer, nn.PReLU):
        return {}
    channels = channels_of(network, names)
    return {name: channels[name].outputs for name in names}
