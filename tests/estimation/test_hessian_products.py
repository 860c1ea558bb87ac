"""Products with the exact Hessian, and parts of it, against the Hessian written out in float64."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from estimation.test_hessian import OBJECTIVES, perceptron
from support.limits import Limited
from support.random import normal
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from woodbury.errors import WoodburyError
from woodbury.estimation.hessian_products import held_hessian, hessian_block, hessian_products
from woodbury.estimation.labels import sampled
from woodbury.model.likelihood import Likelihood
from woodbury.model.objective import Objective

COUNT = 11
module = sys.modules[hessian_products.__module__]


def truth(objective: Objective) -> Tensor:
    inputs, target = (torch.cat(leaves)[:COUNT] for leaves in zip(*objective.batches, strict=True))

    def loss(weights: Tensor) -> Tensor:
        parameters = objective.space.unflatten(weights)
        output = functional_call(objective.model.eval(), parameters, (inputs,))
        return objective.likelihood.loss(output, target)

    with sdpa_kernel(SDPBackend.MATH):
        matrix = torch.autograd.functional.hessian(loss, objective.weights)
    assert isinstance(matrix, Tensor)
    return matrix


@pytest.mark.parametrize("restricted", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_products_and_parts_are_those_of_the_hessian(
    name: str, restricted: bool, limited: Limited
) -> None:
    limited(hessian_samples=4)
    objective = OBJECTIVES[name]()
    if restricted:
        keep = torch.arange(objective.space.d) % 3 != 1
        objective = objective.at(objective.weights[keep], objective.space.restrict(keep))
    matrix, d = truth(objective), objective.space.d
    vectors = normal(d, 3, seed=1)
    torch.testing.assert_close(hessian_products(objective, vectors, COUNT), matrix @ vectors)
    one = hessian_products(objective, vectors[:, 0], COUNT)
    torch.testing.assert_close(one, matrix @ vectors[:, 0])
    index = torch.randperm(d, generator=torch.Generator().manual_seed(0))[:9]
    block = hessian_block(objective, index, COUNT)
    torch.testing.assert_close(block, matrix[index][:, index])
    with held_hessian(objective, COUNT) as hessian:
        for _ in range(2):
            torch.testing.assert_close(hessian(vectors), matrix @ vectors)
            torch.testing.assert_close(hessian(vectors[:, 0]), one)


@pytest.mark.parametrize(("room", "passes"), [(None, 3), (10_000, 6)])
def test_graphs_are_held_where_they_have_room(
    room: int | None, passes: int, limited: Limited, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(hessian_samples=4, memory=room)
    objective, calls = perceptron(), []
    make = module.slopes_to_differentiate

    def counted(*args: Any) -> Any:
        calls.append(args)
        return make(*args)

    monkeypatch.setattr(module, "slopes_to_differentiate", counted)
    v = normal(objective.space.d, seed=1)
    with held_hessian(objective, COUNT) as hessian:
        first = hessian(v)
        torch.testing.assert_close(hessian(2 * v), 2 * first)
        assert objective.model.training == (passes == 6)  # no more forward pass is to come there
    assert len(calls) == passes, "eleven samples are three batches"
    with (
        held_hessian(objective, COUNT) as hessian,
        pytest.raises(WoodburyError, match="got a vector"),
    ):
        hessian(v[1:])


def test_labels_may_be_sampled() -> None:
    objective = perceptron()
    unlabelled = Objective.from_model(objective.model, [(normal(14, 4), None)])
    drawn = sampled(unlabelled, normal(14, 4), None, torch.Generator().manual_seed(3))
    labelled = Objective.from_model(objective.model, [(normal(14, 4), drawn)])
    v = normal(objective.space.d, seed=2)
    generator = torch.Generator().manual_seed(3)
    found = hessian_products(unlabelled, v, 14, labels=sampled, generator=generator)
    torch.testing.assert_close(found, hessian_products(labelled, v, 14))


def test_a_loss_that_is_linear_in_the_weights_has_none() -> None:
    linear = Likelihood(lambda output, target: (output[:, 0] * target).mean())
    objective = Objective.from_model(nn.Linear(3, 1).double(), [(normal(5, 3), normal(5))], linear)
    assert not hessian_products(objective, normal(4), 5).any()
    assert not hessian_block(objective, torch.arange(4), 5).any()


@pytest.mark.parametrize(
    ("vectors", "count", "says"),
    [
        (normal(3), 5, r"shape \(3,\): give \(53,\)"),
        (normal(53), 0, "at least 1"),
        (normal(53), 15, "14 of the 15"),
    ],
)
def test_bad_requests_are_named(vectors: Tensor, count: int, says: str) -> None:
    with pytest.raises(WoodburyError, match=says):
        hessian_products(perceptron(), vectors, count)


def test_a_place_that_there_is_not_is_named() -> None:
    with pytest.raises(WoodburyError, match="from 2 to 53"):
        hessian_block(perceptron(), torch.tensor([2, 53]), 5)


def test_a_kernel_may_lie_in_memory_as_it_likes() -> None:
    torch.manual_seed(1)
    layers = nn.Conv2d(2, 3, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(48, 2)
    model = nn.Sequential(*layers).double()
    batches = [(normal(11, 2, 4, 4), torch.arange(11) % 2)]
    plain = Objective.from_model(model, batches)
    index, vector = torch.arange(0, 54, 5), normal(plain.space.d)
    block, product = hessian_block(plain, index, 11), hessian_products(plain, vector, 11)
    moved = Objective.from_model(model.to(memory_format=torch.channels_last), batches)
    torch.testing.assert_close(hessian_block(moved, index, 11), block)
    torch.testing.assert_close(hessian_products(moved, vector, 11), product)
