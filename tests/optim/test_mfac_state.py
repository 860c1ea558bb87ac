"""States of MFAC: saved, loaded, copied, pickled, refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.small_training import (
    assert_equal_weights,
    net,
    snapshot,
    through_a_file,
    train,
    vector,
)
from torch import nn

from woodbury.errors import WoodburyError
from woodbury.optim import MFAC, blocks, per_parameter


def options() -> dict[str, dict[str, Any]]:
    return {
        "plain": {},
        "momentum": {"momentum": 0.9, "weight_decay": 0.01},
        "coupled": {"weight_decay": 0.01, "decoupled": False},
        "blocks": {"partition": blocks(13)},
        "parameters": {"partition": per_parameter},
        "bfloat16": {"dtype": torch.bfloat16},
        "float64": {"dtype": torch.float64},
        "elsewhere": {"device": "cpu"},
        "singular": {"damping": 1e-12},
    }


@pytest.mark.parametrize("name", options())
@pytest.mark.parametrize("before", [3, 40])
def test_resumes_bit_for_bit(name: str, before: int) -> None:
    """Before the window is full, and long after."""
    extra = {"window": 6, "damping": 1e-2} | options()[name]
    model = net()
    optimizer = MFAC(model.parameters(), 0.05, **extra)
    train(model, optimizer, range(before))
    model[0].bias.grad.fill_(float("nan"))
    optimizer.step()
    state = through_a_file(optimizer.state_dict())
    twin = copy.deepcopy(model)
    train(model, optimizer, range(before, before + 20))
    resumed = MFAC(twin.parameters(), 7.0, **extra)
    resumed.load_state_dict(state)
    train(twin, resumed, range(before, before + 20))
    assert_equal_weights(model, twin)
    assert resumed.skipped == optimizer.skipped == 1


def test_a_state_saved_before_the_first_step_empties_the_window() -> None:
    model = net()
    twin = net()
    used = MFAC(twin.parameters(), 0.05, window=6)
    fresh = through_a_file(MFAC(net().parameters(), 0.05, window=6).state_dict())
    train(twin, used, range(5))
    used.load_state_dict(fresh)
    nn.utils.vector_to_parameters(vector(net()), twin.parameters())
    train(twin, used, range(9))
    train(model, MFAC(model.parameters(), 0.05, window=6), range(9))
    assert_equal_weights(model, twin)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_and_pickles_continue_bit_for_bit(clone: Callable[[Any], Any]) -> None:
    model = net()
    keep = {model[0].weight: torch.arange(20).view(5, 4) % 3 != 0}
    optimizer = MFAC(
        model.parameters(), 0.05, window=6, momentum=0.9, keep=keep, partition=blocks(11)
    )
    train(model, optimizer, range(9))
    twin, other = clone((model, optimizer))
    train(model, optimizer, range(9, 20))
    before = vector(twin).clone()
    train(twin, other, range(9, 20))
    assert not torch.equal(before, vector(twin))
    assert_equal_weights(model, twin)


def foreign() -> dict[str, tuple[Callable[[], tuple[nn.Module, torch.optim.Optimizer]], str]]:
    def wide() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        return model, MFAC(model.parameters(), window=4)

    def turned() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
        model.register_parameter("extra", nn.Parameter(torch.zeros(1)))
        return model, MFAC(model.parameters(), window=4)

    def with_mask() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = net()
        return model, MFAC(
            model.parameters(), window=4, keep={model[0].weight: torch.arange(20).view(5, 4) > 3}
        )

    def sgd() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = net()
        return model, torch.optim.SGD(model.parameters())

    def made(**extra: Any) -> Callable[[], tuple[nn.Module, torch.optim.Optimizer]]:
        def make() -> tuple[nn.Module, torch.optim.Optimizer]:
            model = net()
            return model, MFAC(model.parameters(), **({"window": 4} | extra))

        return make

    return {
        "another model": (wide, "another model"),
        "one more parameter": (turned, "another model"),
        "another window": (made(window=5), "holds 5 gradients"),
        "another optimizer": (sgd, "another optimizer"),
        "another partition": (made(partition=blocks(9)), "partition"),
        "another dtype": (made(dtype=torch.bfloat16), "bfloat16"),
        "other masks": (with_mask, "masks"),
    }


@pytest.mark.parametrize("name", foreign())
def test_a_foreign_state_is_refused_and_changes_nothing(name: str) -> None:
    make, sentence = foreign()[name]
    other, theirs = make()
    train(other, theirs, range(3))
    model = net()
    optimizer = MFAC(model.parameters(), 0.1, window=4)
    train(model, optimizer, range(6))
    before = snapshot(optimizer)
    with pytest.raises(WoodburyError, match=sentence):
        optimizer.load_state_dict(through_a_file(theirs.state_dict()))
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)
