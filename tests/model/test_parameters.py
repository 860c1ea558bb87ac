"""Masks, wrapped optimizers, and which parameters an optimizer has."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from woodbury.errors import WoodburyError, WrongType
from woodbury.model.parameters import check_mask, masks_of, optimized_parameters, unwrapped
from woodbury.model.space import ParameterSpace


def test_a_space_and_its_masks_keep_the_same_weights() -> None:
    model = nn.Linear(3, 2)
    keep = torch.arange(8) % 3 != 0
    masks = masks_of(ParameterSpace.from_model(model).restrict(keep))
    assert [tuple(mask.shape) for mask in masks.values()] == [(2, 3), (2,)]
    assert torch.equal(torch.cat([mask.flatten() for mask in masks.values()]), keep)
    assert masks_of(masks) is masks and not masks_of(None)


def test_a_mask_that_does_not_fit_is_named() -> None:
    parameter = nn.Parameter(torch.ones(2, 3))
    check_mask(torch.ones(2, 3) > 0, parameter, "'weight'")
    for mask, shape in ((torch.ones(2, 3), "float32"), (torch.ones(3, 2) > 0, "bool of shape")):
        with pytest.raises(WoodburyError, match=f"keep for 'weight' is {shape}"):
            check_mask(mask, parameter, "'weight'")


def test_wrapped_optimizers_are_unwrapped() -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 1).parameters(), 0.1)
    wrapped = SimpleNamespace(optimizer=SimpleNamespace(optimizer=optimizer))
    assert unwrapped(wrapped) is unwrapped(optimizer) is optimizer
    with pytest.raises(WrongType, match="The optimizer is a str"):
        unwrapped("SGD")


def test_the_parameters_that_an_optimizer_has_of_a_model() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    first = model.get_submodule("0")
    optimizer = torch.optim.SGD([*first.parameters(), nn.Parameter(torch.ones(1))], 0.1)
    assert list(optimized_parameters(optimizer, model)) == ["0.weight", "0.bias"]
    first.get_parameter("weight").requires_grad_(False)
    assert list(optimized_parameters(optimizer, model)) == ["0.weight", "0.bias"]
    assert list(optimized_parameters(optimizer, model, trainable=True)) == ["0.bias"]
    with pytest.raises(WoodburyError, match="moves none"):
        optimized_parameters(optimizer, nn.Linear(2, 1))
