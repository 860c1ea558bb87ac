"""Masks of torch.nn.utils.prune: made permanent in a model, and read from its checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_pruning

import woodbury
from woodbury.errors import WoodburyError
from woodbury.io.checkpoints import load_state_dict_checked


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def masked() -> Any:
    model = network()
    torch_pruning.l1_unstructured(model[0], "weight", amount=0.5)
    torch_pruning.random_unstructured(model[0], "bias", amount=1)
    torch_pruning.ln_structured(model[3], "weight", amount=4, n=2, dim=1)
    torch_pruning.l1_unstructured(model[3], "weight", amount=0.5)  # a second mask on the first
    return model


def test_masks_become_zeros_and_the_outputs_stay_the_same() -> None:
    model, inputs = masked(), torch.randn(2, 3, 4, 4)
    before = model(inputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert woodbury.apply_masks(model) == ["0.weight", "0.bias", "3.weight"]
    assert torch.equal(model(inputs), before)
    assert set(model.state_dict()) == set(network().state_dict())
    assert int((model[0].weight == 0).sum()) == 54
    zeros = model[0].weight[model[0].weight == 0]
    assert not bool(zeros.signbit().any())  # -0.0 would be stored as a kept value
    held = {id(each) for group in optimizer.param_groups for each in group["params"]}
    assert {id(each) for each in model.parameters()} == held
    assert woodbury.apply_masks(model) == []


def test_prune_keeps_their_zeros() -> None:
    model = masked()
    batches = [(torch.randn(12, 3, 4, 4), torch.arange(12) % 3)]
    with pytest.raises(WoodburyError, match=r"woodbury\.apply_masks\(model\)"):
        woodbury.prune(model, batches, 0.8)
    woodbury.apply_masks(model)
    zeros = [weight == 0 for weight in (model[0].weight, model[3].weight)]
    pruned = woodbury.prune(
        model, batches, 0.8, pruner=woodbury.Pruner(woodbury.mfac(12)), keep_zeros=True
    )
    assert round(pruned.sparsity, 2) == 0.8
    for weight, zero in zip((model[0].weight, model[3].weight), zeros, strict=True):
        assert bool((weight[zero] == 0).all())


def test_a_checkpoint_with_masks_is_read() -> None:
    source, target = masked(), network()
    weights = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    load_state_dict_checked(target, weights, "masked.pt")
    inputs = torch.randn(2, 3, 4, 4)
    assert torch.equal(target(inputs), source(inputs))
    assert not bool(target[0].weight[target[0].weight == 0].signbit().any())
    load_state_dict_checked(masked(), source.state_dict(), "masked.pt")  # under its own names too


def test_a_mask_that_does_not_fit_its_weight_is_no_mask() -> None:
    weights = masked().state_dict()
    weights["3.weight_mask"] = torch.ones(1)
    with pytest.raises(WoodburyError, match=r"masked\.pt lacks '3\.weight'"):
        load_state_dict_checked(network(), weights, "masked.pt")
