"""Networks of torchvision and timm as they come: half of each channel that can be removed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import woodbury
from woodbury.model.attributes import copy_of

pytest.importorskip("torch_pruning", reason="the graph of channels is Torch-Pruning's")
from woodbury.integrations.compaction.api import compacted

NETWORKS = (  # the library, the network, what may be left of its FLOPs
    ("torchvision", "resnet18", 0.35),
    ("torchvision", "mobilenet_v2", 0.35),
    ("torchvision", "squeezenet1_1", 0.35),
    ("timm", "test_resnet", 0.35),
    ("timm", "test_efficientnet", 0.35),
    ("timm", "test_convnext", 0.7),  # LayerNorms keep what is between the blocks
)


@torch.no_grad()
def made(library: str, name: str) -> Any:
    """A network whose norms are no identities and have statistics of random images."""
    package = pytest.importorskip(library, reason="needs it", exc_type=Exception)
    torch.manual_seed(0)
    build = package.create_model if library == "timm" else package.models.get_model
    model = build(name, num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
            module.momentum = 1.0
    model(torch.randn(4, 3, 64, 64))
    return model.eval()


@pytest.mark.parametrize(("library", "name", "left"), NETWORKS)
@torch.no_grad()
def test_half_of_its_channels_are_removed(library: str, name: str, left: float) -> None:
    model = made(library, name)
    example = torch.randn(2, 3, 64, 64)
    space = woodbury.ParameterSpace.from_model(model, min_ndim=2)
    weights = torch.ones(space.d)
    for groups in woodbury.coupled_channels(model, example)(space):
        weights[groups[torch.randperm(len(groups))[: len(groups) // 2]].flatten()] = 0
    for parameter, keep in space.unflatten(weights).items():
        model.get_parameter(parameter).mul_(keep)
    result = compacted(model, example)
    assert result.flops[1] < left * result.flops[0]
    images = torch.randn(3, 3, 64, 64)
    truth = copy_of(model).double()(images.double())
    difference = (result.model(images) - truth).abs().max() / truth.abs().max()
    assert difference < 1e-5
