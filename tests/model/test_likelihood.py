"""Likelihoods: their losses, their labels, and outputs that hold a tensor somewhere inside."""

from __future__ import annotations

import math
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.random import normal
from torch import Tensor, nn

from woodbury.errors import WoodburyError, WrongType
from woodbury.model.likelihood import Likelihood, cross_entropy, squared_error
from woodbury.model.objective import Objective

INPUTS, TARGET = normal(10, 4), torch.arange(10) % 3
BATCHES = [(INPUTS[:7], TARGET[:7]), (INPUTS[7:], TARGET[7:])]


class Wrapped(nn.Linear):
    def forward(self, input: Tensor) -> Any:
        return SimpleNamespace(logits=super().forward(input), hidden=input)


def test_a_likelihood_of_a_part_of_the_output() -> None:
    torch.manual_seed(0)
    plain, wrapped = nn.Linear(4, 3).double(), Wrapped(4, 3).double()
    wrapped.load_state_dict(plain.state_dict())
    logits = cross_entropy.with_output(lambda output: output.logits)
    assert (
        Objective.from_model(wrapped, BATCHES, logits).loss()
        == Objective.from_model(plain, BATCHES).loss()
    )
    assert logits.sample is not None and cross_entropy.sample is not None
    drawn = logits.sample(wrapped(INPUTS), None, torch.Generator().manual_seed(0))
    assert torch.equal(
        drawn, cross_entropy.sample(plain(INPUTS), None, torch.Generator().manual_seed(0))
    )
    assert Likelihood(cross_entropy.loss).with_output(len).sample is None
    for likelihood in (cross_entropy, squared_error):
        with pytest.raises(
            WoodburyError,
            match=r"got a SimpleNamespace .*with_output\(lambda output: output\.logits\)",
        ):
            Objective.from_model(wrapped, BATCHES, likelihood).loss()


def test_likelihoods_are_mean_negative_logs() -> None:
    output, target = normal(4, 2, 3), normal(4, 2, 3, seed=1)
    normal_log = torch.distributions.Normal(output, 1).log_prob(target) + 0.5 * math.log(
        2 * math.pi
    )
    torch.testing.assert_close(squared_error.loss(output, target), -normal_log.sum((1, 2)).mean())
    assert cross_entropy.sample is not None
    assert squared_error.sample is not None
    assert squared_error.sample(output, None, None).shape == output.shape
    drawn = cross_entropy.sample(
        normal(4, 5, 2, 3), None, torch.Generator().manual_seed(0)
    )  # classes along dimension 1
    assert drawn.shape == (4, 2, 3)
    assert drawn.dtype == torch.int64
    sure = torch.full((2, 3, 2), -100.0).index_fill(1, torch.tensor([2]), 100.0)
    assert cross_entropy.sample(sure, None, None).tolist() == [[2, 2], [2, 2]]


def logits(output: Any) -> Tensor:
    return output.logits


@pytest.mark.parametrize("likelihood", [cross_entropy, squared_error])
def test_likelihoods_can_be_pickled_compared_and_printed(likelihood: Likelihood) -> None:
    inner = likelihood.with_output(logits)
    again = pickle.loads(pickle.dumps(inner))
    assert again == inner == likelihood.with_output(logits)
    assert inner != likelihood
    assert "logits" in repr(inner) and "lambda" not in repr(inner)
    target = torch.arange(4) if likelihood is cross_entropy else normal(4, 5, seed=1)
    output = normal(4, 5)
    assert again.loss(SimpleNamespace(logits=output), target) == likelihood.loss(output, target)


def test_what_is_read_may_be_read_again() -> None:
    inner = cross_entropy.with_output(lambda pair: pair[0]).with_output(lambda output: output["a"])
    output = normal(4, 3)
    assert inner.output_of({"a": (output, None)}) is output
    assert inner.directions is not None
    generator = torch.Generator().manual_seed(0)
    assert inner.directions({"a": (output, None)}, None, 2, generator).shape == (4, 2, 3)


def test_outputs_are_summed_in_float32_at_least() -> None:
    output = torch.full((2, 3), 0.1, dtype=torch.bfloat16)
    assert squared_error.output_tensor(output).dtype == torch.float32
    assert squared_error.directional(output, torch.ones(2, 3)).dtype == torch.float32
    assert squared_error.output_tensor(output.double()).dtype == torch.float64


def test_an_output_that_is_no_tensor_is_a_wrong_type() -> None:
    with pytest.raises(WrongType, match="got a dict from the model"):
        cross_entropy.loss({"logits": INPUTS}, TARGET)


def test_what_a_loss_refuses_is_said_with_its_reason() -> None:
    outputs, labels = normal(4, 3), torch.arange(4)
    with pytest.raises(WoodburyError, match=r"The loss refuses .*IndexError"):
        cross_entropy.checked_loss(outputs, labels)
    with pytest.raises(WoodburyError, match="squared_error got labels that are a list"):
        squared_error.checked_loss(outputs, [1.0])

    def fails(output: Any, target: Any) -> Any:
        raise KeyError("boxes")

    with pytest.raises(WoodburyError, match=r"The loss refuses .*KeyError: 'boxes'; test_likelih"):
        Likelihood(fails).checked_loss(outputs, labels)
