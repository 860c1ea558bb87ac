"""Patches: a layer's output is their product with its weight, at all or at drawn positions."""

from __future__ import annotations

import pytest
import torch
from support.limits import Limited
from torch import nn
from torch.testing import assert_close

from woodbury.model.layers import MatrixLayer, by_position, patches

LAYERS = {
    "plain": nn.Conv2d(3, 4, 3),
    "strided, padded": nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 2)),
    "dilated, same": nn.Conv2d(3, 4, 3, padding="same", dilation=2),
    "circular": nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
    "reflected": nn.Conv2d(3, 4, 3, padding=2, padding_mode="reflect"),
    "one by one": nn.Conv2d(3, 4, 1),
    "linear": nn.Linear(7, 4),
}


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_are_products_with_patches(name: str, limited: Limited) -> None:
    limited(patches=2000)
    layer: MatrixLayer = LAYERS[name].double()
    given = torch.randn(5, 3, 8, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    told = by_position(layer, layer(given)) - (0.0 if layer.bias is None else layer.bias)
    found = torch.cat(list(patches(layer, given)))
    assert_close(found @ layer.weight.flatten(1).mT, told)
    drawn = torch.randperm(found.shape[1], generator=torch.Generator().manual_seed(1))[:6]
    assert_close(torch.cat(list(patches(layer, given, drawn))), found[:, drawn], rtol=0, atol=0)
