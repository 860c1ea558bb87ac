"""From the channels of a layer to all that they are coupled with, along a dependency graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.conv import _ConvNd

from woodbury.integrations.compaction.slicing import inputs_of, is_matrix_layer, outputs_of
from woodbury.model.channels import is_transposed_linear


class Index(NamedTuple):
    """A channel of a layer, named as in the library.

    Attributes:
        idx: Which one it is.
        root_idx: Which channel it is of the layer that the walk began at.
    """

    idx: int
    root_idx: int


@dataclass
class Walk:
    """All that the channels of one layer are coupled with.

    Each channel of a node is entered once. Where a network shifts channels against each other, as
    in rotary embeddings, the graph gives ever larger numbers, at which the walk ends.

    Attributes:
        root: The node of the layer.
        channels: How many it makes.
        most: Channels of the widest layer.
        reached: A node and what would be done there -> its channel -> that of the layer.
        is_coupled: Whether a channel was reached from two of them.
        is_lost: Whether it came to a channel that no layer has.
    """

    root: Any
    channels: int
    most: int
    reached: dict[tuple[Any, Any], dict[int, int]] = field(default_factory=dict)
    is_coupled: bool = False
    is_lost: bool = False

    def enter(self, node: Any, handler: Any, indices: list[Any]) -> list[Any]:
        """Note the channels of a node.

        Args:
            node: The node.
            handler: What would be done to it.
            indices: Its channels, and those of the layer that they come from.

        Returns:
            Those that are new.
        """
        if not indices:  # as at the other inputs of what joins tensors
            return []
        known = self.reached.setdefault((node, handler), {})
        new = []
        for each in indices:
            if not 0 <= each.idx < self.most:
                self.is_lost = True
            elif each.idx not in known:
                known[each.idx] = each.root_idx
                new.append(each)
            elif known[each.idx] != each.root_idx:
                self.is_coupled = True
        return new

    def run(self, handler: Any) -> Walk:
        """Follow the dependencies to their end.

        Args:
            handler: What would be done to the layer.
        """
        start = [Index(index, index) for index in range(self.channels)]
        stack = [(self.root, handler, self.enter(self.root, handler, start))]
        while stack and not self.is_lost:
            node, trigger, indices = stack.pop()
            for each in node.dependencies:
                if not each.is_triggered_by(trigger):
                    continue
                there = indices
                for mapping in each.index_mapping:
                    there = there if mapping is None else mapping(there)
                if new := self.enter(each.target, each.handler, there):
                    stack.append((each.target, each.handler, new))
        return self


def all_walks(graph: Any) -> Iterator[Walk]:
    """One walk from each layer whose channels no other one has reached.

    Args:
        graph: A DependencyGraph of Torch-Pruning, once it is built.
    """
    done = set()
    layers = [layer for layer in graph.module2node if is_matrix_layer(layer)]
    most = max((max(inputs_of(each), outputs_of(each)) for each in layers), default=0)
    for layer, node in graph.module2node.items():
        if _makes_channels(layer) and layer not in done:
            pruner = graph.get_pruner_of_module(layer)
            walk = Walk(node, outputs_of(layer), most).run(pruner.prune_out_channels)
            done |= {
                each.module
                for each, handler in walk.reached
                if graph.is_out_channel_pruning_fn(handler)
            }
            yield walk


def _makes_channels(layer: Any) -> bool:
    return isinstance(layer, (nn.Linear, _ConvNd)) or is_transposed_linear(layer)
