"""Which channels of a network can only be removed together, by Torch-Pruning's dependency graph."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from woodbury.errors import WoodburyError, reason_with_line, user_code
from woodbury.integrations.compaction.slicing import (
    inputs_of,
    is_channelwise,
    is_matrix_layer,
    outputs_of,
)
from woodbury.integrations.compaction.tracing import dependency_graph, library
from woodbury.integrations.compaction.walks import Walk, all_walks
from woodbury.model.attributes import copy_of
from woodbury.model.batches import tensors_in
from woodbury.model.calling import run_model
from woodbury.model.hooks import forward_hooks, has_hooks
from woodbury.model.layers import memory_of
from woodbury.model.space import ParameterSpace
from woodbury.model.wrappers import checked_model

BY_CHANNEL = re.compile(
    "Add|Sub|Rsub|Mul|Div|Neg|Abs|Exp|Pow|Sqrt|Clamp|ClampMin|ClampMax"
    "|Relu|LeakyRelu|PreluKernel|Elu|Gelu|Silu|Mish|Sigmoid|Tanh|LogSigmoid|Hardtanh|Hardswish"
    "|Hardsigmoid|Softplus|Softshrink|Hardshrink|Threshold"
    "|AvgPool[123]D|MaxPool[23]DWithIndices|AdaptiveAvgPool[123]D|AdaptiveMaxPool[23]D|Mean|Sum"
    "|Upsample(Nearest[123]D|Linear1D|Bilinear2D|Bicubic2D)|ConstantPadNd|(Reflection|Replication)"
    "Pad[123]D|Clone|Alias|ToCopy|Squeeze|Unsqueeze|Transpose|Permute|T"
    "|NativeBatchNorm"
)
"""Operations whose result in a channel is read from the same channel, as autograd names them."""

PRODUCTS = frozenset(("Addmm", "Mm"))
"""What a Linear is made of where its input has more than two dimensions."""

LINEAR = ("LINEAR", "CUSTOMIZED")
"""Kinds of nodes that these products belong to: Linear, and Conv1D of transformers."""

NOT_FOLLOWED = "its channels cannot be followed to every layer."

MOVES = ("CONCAT", "SPLIT", "RESHAPE", "UNBIND", "EXPAND", "SLICE")
"""Kinds of nodes that only move channels; the graph follows where they go."""


@dataclass(frozen=True)
class Part:
    """A layer that has channels of a group.

    Attributes:
        layer: Its name in the model.
        places: For each channel of the group, which of the layer's channels it is, or are.
    """

    layer: str
    places: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of several layers, of which each can only be removed from all layers at once.

    Attributes:
        name: A layer that computes them.
        channels: How many there are.
        makers: All layers that compute them.
        followers: Layers on their way that compute each from itself: norms, depthwise convolutions.
        readers: Layers that multiply them by weights.
        is_chain: Whether they pass one follower after another, from one maker to one reader.
        why_kept: Why none of them can be removed; None where they can.
    """

    name: str
    channels: int
    makers: tuple[Part, ...]
    followers: tuple[Part, ...]
    readers: tuple[Part, ...]
    is_chain: bool = False
    why_kept: str | None = None


def copy_to_change(model: Any) -> nn.Module:
    """A copy of the user's model, seen to have layers with values.

    Args:
        model: What was given as a model.

    Raises:
        MissingDependency: If Torch-Pruning is not installed.
        WrongType: If it is no module.
        WoodburyError: If it has no parameters, no shapes or values yet, or cannot be copied.
    """
    library()
    model = checked_model(model)
    ParameterSpace.from_model(model)  # what has no shapes yet is named
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise WoodburyError(f"{name!r} is on the meta device: give it values first.")
    with user_code("The model cannot be copied: give one that deepcopy takes."):
        return copy_of(model)


def channel_groups(model: nn.Module, example: Any) -> list[ChannelGroup]:
    """Trace a model and find which of its channels are coupled.

    Args:
        model: A copy of the user's model, in eval mode.
        example: Inputs of a batch that it takes.

    Returns:
        The groups of the channels of its linear layers and convolutions.

    Raises:
        MissingDependency: If Torch-Pruning is not installed.
        WoodburyError: If it cannot follow the model.
    """
    uses: Counter[nn.Module] = Counter()

    def count(module: nn.Module, *_: Any) -> None:
        uses[module] += 1

    def outputs(network: nn.Module, inputs: Any) -> list[Any]:
        with forward_hooks([(module, count) for module in network.modules()]):
            found = tensors_in(run_model(network, inputs))
        # An operation of its own makes each output a node of the graph.
        return [tensor * 1 for tensor in found if tensor.requires_grad]

    try:
        with warnings.catch_warnings(), torch.enable_grad(), _with_gradients(model):
            warnings.simplefilter("ignore")
            graph = dependency_graph(model, example, outputs)
            reading = _Reading(graph, model, uses)
            return [reading.group(each) for each in all_walks(graph)]
    except Exception as error:
        raise WoodburyError(
            "Torch-Pruning cannot follow the channels of the model: remove channels from a part of "
            f"it that is simpler. ({reason_with_line(error)})"
        ) from error


class _Reading:
    """Groups of Torch-Pruning as `ChannelGroup`s."""

    def __init__(self, graph: Any, model: nn.Module, uses: Counter[nn.Module]) -> None:
        self.graph = graph
        self.model = model
        self.uses = uses
        self.name_of = {module: name for name, module in model.named_modules()}
        self.owners = Counter(
            memory_of(parameter)
            for module in model.modules()
            for parameter in module.parameters(recurse=False)
        )

    def group(self, walk: Walk) -> ChannelGroup:
        """What is known of one group."""
        channels = walk.channels
        parts: dict[str, list[Part]] = {"makers": [], "followers": [], "readers": []}
        why_kept = None
        if walk.is_coupled:
            why_kept = "its channels depend on each other."
        elif walk.is_lost:
            why_kept = NOT_FOLLOWED
        is_chain = True
        for (node, handler), channel_of in walk.reached.items():
            is_output = self.graph.is_out_channel_pruning_fn(handler)
            role, refusal = self._role(node, is_output)
            why_kept = why_kept or refusal
            is_chain = is_chain and _is_link(node, role)
            if role is None:
                continue
            count = inputs_of(node.module) if role == "readers" else outputs_of(node.module)
            places = _places(channel_of, channels)
            if max(channel_of, default=0) >= count:
                why_kept = why_kept or NOT_FOLLOWED
            else:
                parts[role].append(Part(self.name_of[node.module], places))
        if not parts["readers"]:
            why_kept = why_kept or "no layer that is known reads its channels."
        makers, followers, readers = (tuple(each) for each in parts.values())
        is_chain = is_chain and len(makers) == len(readers) == 1
        name = self.name_of[walk.root.module]
        return ChannelGroup(name, channels, makers, followers, readers, is_chain, why_kept)

    def _role(self, node: Any, is_output: bool) -> tuple[str | None, str | None]:
        """What a node does with channels, and why they cannot be removed from it."""
        layer, kind = node.module, node.type.name
        if kind == "OUTPUT":
            return None, "its channels are outputs of the model."
        if kind == "PARAMETER":
            return None, "a parameter that belongs to no known layer is combined with its channels."
        if kind in MOVES:
            return None, None
        if kind == "ELEMENTWISE" and layer not in self.name_of:
            return None, _why_not_by_channel(node)
        if type(layer) is nn.PReLU and layer.num_parameters == 1:
            return None, None
        if not (is_matrix_layer(layer) or is_channelwise(layer)):
            return None, f"{self._shown(layer)} may mix its channels."
        if refusal := self._why_not_changed(layer):
            return None, refusal
        if is_channelwise(layer):
            return "followers", None
        return ("makers" if is_output else "readers"), None

    def _why_not_changed(self, layer: nn.Module) -> str | None:
        if has_hooks(layer):
            return f"{self._shown(layer)} has hooks, or a forward of its own."
        if self.uses[layer] > 1:
            return f"{self._shown(layer)} is used {self.uses[layer]} times."
        if any(self.owners[memory_of(each)] > 1 for each in layer.parameters()):
            return f"{self._shown(layer)} shares its weight."
        return None

    def _shown(self, layer: nn.Module) -> str:
        kind = type(layer).__name__
        return f"{self.name_of[layer]} ({kind})" if layer in self.name_of else kind


def _is_link(node: Any, role: str | None) -> bool:
    """Whether a node of a group has one neighbour on either side within it."""
    before = role in ("makers", "readers") or len(node.inputs) == 1
    return before and (role == "readers" or len(node.outputs) == 1)


def _why_not_by_channel(node: Any) -> str | None:
    if not hasattr(node.grad_fn, "name"):
        return "an operation that is not known may mix its channels."
    name = node.grad_fn.name().removeprefix("torch::autograd::").partition("Backward")[0]
    if BY_CHANNEL.fullmatch(name):
        return None
    if name in PRODUCTS and all(each.type.name in LINEAR for each in node.outputs):
        return None
    return f"{name} may mix its channels."


def _places(channel_of: dict[int, int], channels: int) -> tuple[tuple[int, ...], ...]:
    """For each channel of a group, its indices in one layer."""
    places: list[list[int]] = [[] for _ in range(channels)]
    for index, channel in channel_of.items():
        places[channel].append(index)
    return tuple(tuple(sorted(each)) for each in places)


@contextmanager
def _with_gradients(model: nn.Module) -> Iterator[None]:
    """A context in which every parameter that can have a gradient asks for one."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in before:
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
