"""Torch-Pruning's dependency graph, with what it does not know by itself.

It knows no Conv1D of transformers, and guesses from sizes where joined and flattened channels go.
Autograd holds the shapes of all operations, which say it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn

from woodbury.errors import MissingDependency
from woodbury.integrations.compaction.slicing import inputs_of, outputs_of
from woodbury.integrations.compaction.walks import Index
from woodbury.model.channels import is_transposed_linear

WRAPPED = 1 << 63
"""From here on autograd's unsigned numbers are dimensions counted from the last one."""


def library() -> ModuleType:
    """Torch-Pruning.

    Raises:
        MissingDependency: If it is not installed.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise MissingDependency(
            "The dependency graph of channels needs torch-pruning: pip install 'woodbury[compact]'."
        ) from error
    return torch_pruning


def dependency_graph(
    model: nn.Module, example: Any, outputs: Callable[[nn.Module, Any], list[Any]]
) -> Any:
    """The dependency graph of a model.

    Args:
        model: The model, in eval mode, all of whose parameters ask for gradients.
        example: Inputs of a batch.
        outputs: What the model gives for inputs: tensors with a gradient.
    """
    graph = _graph_with_shapes()
    kinds = {type(each) for each in model.modules() if is_transposed_linear(each)}
    graph.build_dependency(
        model,
        example,
        forward_fn=outputs,
        customized_pruners=dict.fromkeys(kinds, _TransposedLinear()),
        verbose=False,
    )
    _correct_moves(graph)
    return graph


class _TransposedLinear:
    """What the graph asks of a kind of layer. Nothing is removed by these methods.

    Attributes:
        pruning_dim: The graph notes here which dimension of a parameter it means.
    """

    pruning_dim = -1

    def prune_out_channels(self, layer: Any, _: Sequence[int]) -> Any:
        """Stands for the outputs of a layer."""
        return layer

    def prune_in_channels(self, layer: Any, _: Sequence[int]) -> Any:
        """Stands for the inputs of a layer."""
        return layer

    def get_out_channels(self, layer: Any) -> int:
        """How many channels a layer makes."""
        return outputs_of(layer)

    def get_in_channels(self, layer: Any) -> int:
        """How many channels a layer reads."""
        return inputs_of(layer)


def _graph_with_shapes() -> Any:
    """A graph that does not add up the sizes of joined tensors that it does not know."""

    class Graph(library().DependencyGraph):
        def _build_dependency(self, module2node: Mapping[Any, Any]) -> None:
            super()._build_dependency(module2node)
            for node in module2node.values():
                if node.type.name == "CONCAT":
                    node.module.concat_sizes = [0] * len(node.inputs)  # `_correct_moves` has them
                    node.enable_index_mapping = False

    return Graph()


@dataclass(frozen=True)
class _Moved:
    """Where channels of one tensor are in another one, each repeated `stride` times.

    Attributes:
        first: Of the other tensor's channels, the first.
        last: The one after the last.
        stride: How many channels of the other tensor each becomes.
        back: Whether to go from the other tensor to this one.
    """

    first: int
    last: int
    stride: int = 1
    back: bool = False

    def __call__(self, indices: Iterable[Any]) -> list[Index]:
        """The indices of the same channels on the other side."""
        if self.back:
            read = (each for each in indices if self.first <= each.idx < self.last)
            found = (Index((each.idx - self.first) // self.stride, each.root_idx) for each in read)
            return list(dict.fromkeys(found))
        return [
            Index(self.first + each.idx * self.stride + part, each.root_idx)
            for each in indices
            for part in range(self.stride)
        ]


def _lost(indices: Iterable[Any]) -> list[Index]:
    """Channels that come to where no layer has any, so that a walk ends."""
    return [Index(-1, each.root_idx) for each in indices]


class _Input(NamedTuple):
    """A tensor that an operation reads.

    Attributes:
        node: What made it; None for a tensor without a gradient.
        size: How many channels it has; None where that is not known.
    """

    node: Any
    size: int | None


def _correct_moves(graph: Any) -> None:
    """Say where the channels of tensors that are joined or flattened go."""
    node_of = {node.grad_fn: node for node in graph.module2node.values()}
    for node in graph.module2node.values():
        if node.type.name == "RESHAPE":
            _flatten(graph, node)
    for node in graph.module2node.values():
        if node.type.name == "CONCAT":
            _join(graph, node, node_of)


def _join(graph: Any, node: Any, node_of: Mapping[Any, Any]) -> None:
    """Write where the channels of joined tensors are, if it is channels that are joined."""
    dimension, shape = node.grad_fn._saved_dim, _shape(node.grad_fn)
    if dimension >= WRAPPED:
        dimension += len(shape) - 2 * WRAPPED
    inputs = [
        _Input(node_of.get(function), _shape(function, number)[dimension] if function else None)
        for function, number in node.grad_fn.next_functions
    ]
    if not _are_channels(graph, inputs, dimension, len(shape)):
        return
    if sum(each.size is None for each in inputs) == 1:
        rest = shape[dimension] - sum(each.size or 0 for each in inputs)
        inputs = [each if each.size is not None else each._replace(size=rest) for each in inputs]
    is_known = all(each.size is not None for each in inputs)
    is_known = is_known and sum(each.node is not None for each in inputs) == len(node.inputs)
    if not is_known:
        for each in node.dependencies:
            each.index_mapping[1] = _lost
        return
    edges = [0, *accumulate(each.size or 0 for each in inputs)]
    written: list[Any] = []
    for each, (first, last) in zip(inputs, pairwise(edges), strict=True):
        if each.node is None:
            continue
        back = _next_dependency(node, each.node, written)
        there = _next_dependency(each.node, node, written)
        written += [back, there]
        # On the way back the other operation's own move, such as a split's, is the second one.
        back.index_mapping[:] = [_Moved(first, last, back=True), back.index_mapping[0]]
        there.index_mapping[1] = _Moved(first, last)


def _are_channels(graph: Any, inputs: Iterable[_Input], dimension: int, dimensions: int) -> bool:
    """Whether tensors are joined along their channels, and not along tokens or a side of images."""
    if dimensions == 2:
        return dimension == 1
    found = [(_channels(graph, each.node), each.size) for each in inputs if each.node is not None]
    known = [channels == size for channels, size in found if channels is not None]
    return all(known) if known else dimension == 1 and dimensions > 3


def _flatten(graph: Any, node: Any) -> None:
    """Write which features the channels of images become, where these are made flat."""
    before, after = node.grad_fn._saved_self_sym_sizes, _shape(node.grad_fn)
    if not len(before) > len(after) == 2 or before[0] != after[0] or len(node.inputs) != 1:
        return
    source = node.inputs[0]
    if source.type.name == "SPLIT" or _channels(graph, source) != before[1]:
        return
    stride = prod(before[2:])
    _next_dependency(node, source, ()).index_mapping[0] = _Moved(0, after[1], stride, back=True)
    _next_dependency(source, node, ()).index_mapping[0] = _Moved(0, after[1], stride)
    for each in node.outputs:
        if each.type.name != "SPLIT":
            _next_dependency(node, each, ()).index_mapping[0] = None
            _next_dependency(each, node, ()).index_mapping[0] = None


def _channels(graph: Any, node: Any) -> int | None:
    """How many channels the layers before an operation make, where the graph can tell."""
    return library().dependency.shape_infer.infer_out_channels_recursively(graph, node, [0])


def _shape(function: Any, number: int = 0) -> Sequence[int]:
    """The shape of what a function of autograd has made, or of a leaf."""
    leaf = getattr(function, "variable", None)
    return function._input_metadata[number].shape if leaf is None else leaf.shape


def _next_dependency(source: Any, target: Any, written: Sequence[Any]) -> Any:
    return next(
        each
        for each in source.dependencies
        if each.target is target and not any(each is done for done in written)
    )
