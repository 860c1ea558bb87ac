"""What MFAC refuses, and what its sentences name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.small_training import backward, net, train
from torch import nn

from woodbury.errors import WoodburyError, WrongType
from woodbury.model.space import ParameterSpace
from woodbury.optim import MFAC


def test_options_out_of_range_are_named() -> None:
    def make(**extra: Any) -> MFAC:
        return MFAC(net().parameters(), **extra)

    for window in (0, -3):
        with pytest.raises(WoodburyError, match=f"window is {window}: .* at least 1"):
            make(window=window)
    for window in (True, 2.5):
        with pytest.raises(WrongType, match=f"window is {window}: .* whole number"):
            make(window=window)
    for damping in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(WoodburyError, match="damping is"):
            make(damping=damping)
    for name, value in {"lr": -0.1, "momentum": 1.0, "weight_decay": float("nan")}.items():
        with pytest.raises(WoodburyError, match=f"{name} is"):
            make(**{name: value})
    with pytest.raises(WoodburyError, match="rows can be"):
        make(dtype=torch.float16)
    model = net()
    with pytest.raises(WoodburyError, match="tile"):
        train(model, MFAC(model.parameters(), partition=lambda sizes: [3]), range(1))
    model = net()
    optimizer = make(damping=0.1)
    optimizer.param_groups[0]["damping"] = -1.0
    optimizer.param_groups[0]["params"] = list(model.parameters())
    with pytest.raises(WoodburyError, match="damping is"):
        train(model, optimizer, range(1))


def test_bad_parameters_and_gradients_are_named() -> None:
    with pytest.raises(WoodburyError, match="complex64"):
        MFAC([nn.Parameter(torch.zeros(3, dtype=torch.complex64))])
    with pytest.raises(WoodburyError, match="cpu, meta"):
        MFAC([nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3, device="meta"))])
    MFAC([nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3, device="meta"))], device="cpu")
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = MFAC(embedding.parameters(), window=2)
    before = embedding.weight.detach().clone()
    embedding(torch.tensor([1, 3])).sum().backward()
    with pytest.raises(WoodburyError, match="sparse"):
        optimizer.step()
    assert torch.equal(before, embedding.weight.detach())
    model = net()
    optimizer = MFAC(model[0].parameters(), window=2)
    with pytest.raises(WoodburyError, match="momentum is"):
        optimizer.add_param_group({"params": list(model[2].parameters()), "momentum": 2.0})
    assert len(optimizer.param_groups) == 1


def test_bad_masks_are_named() -> None:
    model = net()
    mask = torch.ones(5, 4, dtype=torch.bool)
    with pytest.raises(WoodburyError, match="named_parameters"):
        MFAC(model.parameters(), keep={"0.weight": mask})
    with pytest.raises(WoodburyError, match="named_parameters"):
        MFAC(model.parameters(), keep=ParameterSpace.from_model(model))
    with pytest.raises(WoodburyError, match="no parameter"):
        MFAC(model.named_parameters(), keep={"1.weight": mask})
    with pytest.raises(WoodburyError, match="no parameter"):
        MFAC(model.parameters(), keep={nn.Parameter(torch.ones(5, 4)): mask})
    for bad in (mask[:2], mask.float()):
        with pytest.raises(WoodburyError, match="bool mask of shape"):
            MFAC(model.named_parameters(), keep={"0.weight": bad})
    optimizer = MFAC([model[0].weight], keep={model[0].weight: ~mask})
    backward(model, 0)
    with pytest.raises(WoodburyError, match="No weight"):
        optimizer.step()
