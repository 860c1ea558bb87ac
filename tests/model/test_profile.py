"""ModelProfile: one sample's elements and FLOPs, in one forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.random import normal
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.model.flop_count import flops
from woodbury.model.likelihood import cross_entropy
from woodbury.model.objective import Objective
from woodbury.model.profile import ModelProfile


class Counting(nn.Module):
    """A small CNN that counts how often it is called, and returns its logits in a dict."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(16, 3)
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        Counting.calls += 1
        return {"logits": self.layers(x), "hidden": x}


def profiled(model: nn.Module, inputs: Any = None) -> ModelProfile:
    inputs = normal(5, 1, 4, 4, dtype=torch.float32) if inputs is None else inputs
    likelihood = cross_entropy.with_output(lambda output: output["logits"])
    return ModelProfile.measure(Objective.from_model(model, [(inputs, None)], likelihood))


def test_one_pass_measures_everything() -> None:
    model = Counting().train()
    calls = Counting.calls
    profile = profiled(model)
    assert Counting.calls == calls + 1
    assert profile.input_elements == 16
    assert profile.activation_elements == 3 + 16  # of the whole model: logits and hidden
    assert profile.output_elements == 3
    assert profile.flops == flops(model, torch.zeros(2, 1, 4, 4))
    multiplications = 4 * 4 * 9 + 16 * 3  # 4 pixels of 4 channels; the linear layer
    biases = 4 * 4 + 3
    assert profile.forward_flops == 2 * (multiplications + biases)


def test_the_model_is_left_as_it_was() -> None:
    model = Counting().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    profiled(model)
    with pytest.raises(WoodburyError, match=r"refuses the first sample.*RuntimeError"):
        profiled(model, torch.zeros(5, 2, 4, 4))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_token_counts_for_a_thousand() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 2))
    objective = Objective.from_model(model, [(torch.zeros(2, 3, dtype=torch.int64), None)])
    assert ModelProfile.measure(objective).input_elements == 3000


def test_no_data_is_named() -> None:
    with pytest.raises(WoodburyError, match="No batch was given: a profile"):
        ModelProfile.measure(Objective.from_model(nn.Linear(2, 2), []))
