"""Small networks in float64, and their curvature written out."""

from __future__ import annotations

from typing import Any

import torch
from support.random import normal
from torch import Tensor, nn
from torch.func import functional_call

from woodbury.model.likelihood import cross_entropy, squared_error
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace

Batches = list[tuple[Tensor, Any]]


def classes(count: int, seed: int, features: int = 4) -> Batches:
    """Samples of three classes that a linear layer tells apart, but for noise."""
    x = normal(count, features, seed=seed)
    y = (x[:, :3] + 0.7 * normal(count, 3, seed=seed + 50)).argmax(1)
    return [(x, y)]


def trained(steps: int = 60) -> nn.Module:
    """A small network near a minimum, not at it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    ((x, y),) = classes(60, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def perceptron(count: int = 40, seed: int = 0) -> Objective:
    """Its matrices, 35 weights."""
    model = trained()
    space = ParameterSpace.for_pruning(model)
    return Objective.from_model(model, classes(count, seed), cross_entropy, space)


def linear(count: int = 40) -> Objective:
    """A linear model of squares, whose loss is a quadratic."""
    torch.manual_seed(1)
    model = nn.Linear(4, 2, bias=False).double().requires_grad_(False)
    x = normal(count, 4, seed=3) * torch.tensor([1.0, 2.0, 0.5, 1.5], dtype=torch.float64)
    return Objective.from_model(model, [(x, normal(count, 2, seed=4))], squared_error)


def loss_at(objective: Objective, weights: Tensor, batches: Any = None) -> Tensor:
    """The mean loss of all samples at once, by torch alone."""
    given = list(objective.batches if batches is None else batches)
    inputs, target = (torch.cat(leaves) for leaves in zip(*given, strict=True))
    parameters = objective.space.unflatten(weights)
    output = functional_call(objective.model.eval(), parameters, (inputs,))
    return objective.likelihood.loss(output, target)


def dense_hessian(objective: Objective, samples: int | None = None) -> Tensor:
    """(d, d) by torch alone."""
    first = list(objective.batches.in_batches(10**6, samples))
    matrix = torch.autograd.functional.hessian(
        lambda weights: loss_at(objective, weights, first), objective.weights
    )
    assert isinstance(matrix, Tensor)
    return matrix


def label_rows(objective: Objective, count: int) -> Tensor:
    """(count, d): the gradient of each sample, one backward pass each."""
    ((inputs, target),) = objective.batches.in_batches(10**6, count)
    rows = []
    for i in range(count):
        weights = objective.weights.clone().requires_grad_()
        loss = loss_at(objective, weights, [(inputs[i : i + 1], target[i : i + 1])])
        rows.append(torch.autograd.grad(loss, weights)[0])
    return torch.stack(rows)
