"""Hooks that are removed again, and what they note."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from woodbury.model.hooks import forward_hooks, layer_input, record_calls


def test_hooks_are_removed_after_an_error_of_the_model_and_of_their_own_making() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(RuntimeError), forward_hooks((layer, print) for layer in model):
        model(torch.zeros(3, 5))

    def hooks() -> Any:
        yield model[0], print
        raise KeyError

    with pytest.raises(KeyError), forward_hooks(hooks()):
        pass
    assert not any(module._forward_hooks for module in model.modules())


def test_a_hook_may_replace_the_output_and_sees_arguments_by_name() -> None:
    layer = nn.Linear(2, 1)

    def hook(module: nn.Module, positional: tuple, keywords: dict, output: Tensor) -> Tensor:
        return layer_input(positional, keywords)

    given = torch.ones(3, 2)
    with forward_hooks([(layer, hook)]):
        assert layer(given) is given
        assert layer(input=given) is given


def test_every_use_of_a_module_is_recorded() -> None:
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, nn.Flatten(0), nn.Unflatten(0, (3, 2)), layer)
    output, calls = record_calls(model, lambda: model(torch.zeros(3, 2)))
    assert output.shape == (3, 2)
    assert [use.output_elements for use in calls[layer]] == [6, 6]
    assert calls[model[1]][0] == (torch.Size([3, 2]), torch.Size([6]), 6)
    assert list(calls) == [layer, model[1], model[2], model]
