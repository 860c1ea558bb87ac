"""Channels and n:m pools by what a layer computes: a removed channel's output or input is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.zoo_nets import Conv1D
from torch import Tensor, nn

from woodbury import Objective, ParameterSpace, Pruner, WoodburyError
from woodbury.pruning import updates
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.scopes import consecutive
from woodbury.pruning.units import input_channels, output_channels


class Tied(nn.Module):
    """An embedding whose weight is that of the last layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Embedding(6, 4)
        self.last = nn.Linear(4, 6)
        self.last.weight = self.codes.weight


class Own(nn.Module):
    """A model with a matrix of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(4, 4))


LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(4, 6, bias=False), (4,)),
    "Conv1D": (lambda: Conv1D(6, 4), (4,)),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, bias=False), (4, 5)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 2, bias=False), (4, 3, 3)),
    "Conv3d": (lambda: nn.Conv3d(4, 6, 2, bias=False), (4, 2, 3, 2)),
    "grouped": (lambda: nn.Conv2d(4, 6, 2, groups=2, bias=False), (4, 3, 3)),
    "depthwise": (lambda: nn.Conv1d(4, 8, 2, groups=4, bias=False), (4, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 2, bias=False), (4, 3, 3)),
    "transposed in groups": (
        lambda: nn.ConvTranspose1d(4, 6, 2, groups=2, bias=False),
        (4, 3),
    ),
    "transposed 3-D": (lambda: nn.ConvTranspose3d(4, 6, 2, bias=False), (4, 2, 2, 2)),
}


def channels(layer: nn.Module, unit: Callable) -> list[Tensor]:
    """Each channel's weights as a bool mask of the layer's one weight."""
    space = ParameterSpace.from_model(layer)
    masks = []
    for groups in unit(space):
        for group in groups:
            mask = torch.zeros(space.n, dtype=torch.bool)
            mask[group] = True
            masks.append(mask.view(next(iter(space.shapes.values()))))
    return masks


@pytest.mark.parametrize("name", LAYERS)
def test_an_output_channel_is_all_that_makes_one_output(name: str) -> None:
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = build()
    x = torch.randn(3, *shape)
    found = set()
    masks = channels(layer, output_channels)
    for mask in masks:
        with torch.no_grad():
            kept = layer.weight.clone()
            layer.weight[mask] = 0
            by_channel = layer(x).abs().transpose(0, 1).flatten(1).sum(1)
            layer.weight.copy_(kept)
        zeros = (by_channel == 0).nonzero().flatten().tolist()
        assert len(zeros) == 1
        found.update(zeros)
    assert len(found) == len(masks) == layer(x).shape[1]


@pytest.mark.parametrize("name", LAYERS)
def test_an_input_channel_is_all_that_reads_one_input(name: str) -> None:
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = build()
    x = torch.randn(3, *shape, requires_grad=True)
    found = set()
    masks = channels(layer, input_channels)
    for mask in masks:
        with torch.no_grad():
            kept = layer.weight.clone()
            layer.weight[mask] = 0
        (slope,) = torch.autograd.grad(layer(x).square().sum(), x)
        with torch.no_grad():
            layer.weight.copy_(kept)
        unread = (slope.transpose(0, 1).flatten(1).abs().sum(1) == 0).nonzero().flatten().tolist()
        assert len(unread) == 1
        found.update(unread)
    assert len(found) == len(masks) == shape[0]
    assert bool(torch.stack(masks).sum(0).eq(1).all())


def test_the_channels_of_an_embedding_are_its_features_and_codes() -> None:
    layer = nn.Embedding(5, 3)
    outputs, inputs = channels(layer, output_channels), channels(layer, input_channels)
    assert [mask.nonzero()[:, 1].unique().tolist() for mask in outputs] == [[0], [1], [2]]
    assert [mask.nonzero()[:, 0].unique().tolist() for mask in inputs] == [[0], [1], [2], [3], [4]]


@pytest.mark.parametrize("unit", [output_channels, input_channels])
@pytest.mark.parametrize(
    ("build", "name", "whose"),
    [
        (Own, "matrix", "Own"),
        (Tied, "codes.weight", "Embedding and Linear, which share it"),
        (lambda: nn.LayerNorm([4, 4]), "weight", "LayerNorm"),
        (lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True), "bias_k", "MultiheadAttention"),
    ],
)
def test_unknown_channels_are_refused_by_name(
    unit: Callable, build: Callable, name: str, whose: str
) -> None:
    space = ParameterSpace.from_model(build(), min_ndim=2)
    with pytest.raises(WoodburyError, match=rf"'{name}'.*belongs to {whose}.*exclude='{name}'"):
        unit(space)


def test_the_channels_of_attention() -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(4, 2, bias=False)
    space = ParameterSpace.from_model(model)
    sizes = {tuple(groups.shape) for groups in output_channels(space)}
    assert sizes == {(16, 4)}  # queries, keys, values and the outputs
    assert {tuple(groups.shape) for groups in input_channels(space)} == {(4, 12), (4, 4)}


@pytest.mark.parametrize("name", ["Linear", "Conv1D", "Conv3d", "transposed", "transposed 3-D"])
def test_pools_lie_along_the_inputs_of_each_layer(name: str) -> None:
    layer = LAYERS[name][0]()
    space = ParameterSpace.from_model(layer)
    pools = consecutive(2)(space)
    reads = torch.full((space.n,), -1)
    for channel, mask in enumerate(channels(layer, input_channels)):
        reads[mask.flatten()] = channel
    makes = torch.full((space.n,), -1)
    for channel, mask in enumerate(channels(layer, output_channels)):
        makes[mask.flatten()] = channel
    for pool in range(int(pools.max()) + 1):
        members = pools == pool
        assert sorted(reads[members].tolist()) in ([0, 1], [2, 3])
        assert len(makes[members].unique()) == 1


@pytest.mark.parametrize(
    ("build", "size", "sentence"),
    [
        (lambda: nn.Embedding(8, 4), 2, r"'weight' belongs to Embedding.*dim=\{'weight': 1\}"),
        (Own, 2, r"'matrix' belongs to Own.*exclude='matrix'"),
        (lambda: nn.ConvTranspose1d(8, 8, 1, groups=4), 4, "do not divide the 2 weights"),
        (lambda: nn.Conv1d(8, 8, 1, groups=8), 4, "do not divide the 1 weights"),
    ],
)
def test_pools_without_known_inputs_are_refused(build: Callable, size: int, sentence: str) -> None:
    space = ParameterSpace.from_model(build(), min_ndim=2)
    with pytest.raises(WoodburyError, match=sentence):
        consecutive(size)(space)
    if "dim=" in sentence:
        assert len(consecutive(size, {"weight": 1})(space)) == space.n


def test_channels_go_on_where_some_are_removed() -> None:
    torch.manual_seed(0)
    model = nn.ConvTranspose2d(4, 6, 2)
    objective = Objective.from_model(
        model,
        [(torch.randn(4, 4, 3, 3), torch.arange(64).view(4, 4, 4) % 6)],
        space=ParameterSpace.from_model(model, min_ndim=2),
    )
    pruner = Pruner(None, magnitude, updates.zero, output_channels)
    first = pruner(objective, 1 / 3).objective
    weight = pruner(first, 2 / 3).objective.parameters["weight"]
    assert int((weight == 0).all(0).flatten(1).all(1).sum()) == 4
