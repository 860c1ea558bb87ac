"""Factors of K-FAC by rows, of every kind of layer, against sums written out."""

from __future__ import annotations

import pytest
import torch
from support.limits import Limited
from support.random import normal
from torch import Tensor, nn

from woodbury import Objective, ParameterSpace
from woodbury.errors import WoodburyError
from woodbury.estimation.labels import observed
from woodbury.estimation.row_factors import RowFactors, row_factors
from woodbury.estimation.row_layers import RowLayout
from woodbury.model.likelihood import squared_error

COUNT = 6


def objective_of(model: nn.Module, inputs: Tensor, target: Tensor) -> Objective:
    space = ParameterSpace.from_model(model)
    return Objective.from_model(model.double(), [(inputs, target)], squared_error, space)


def found(model: nn.Module, inputs: Tensor, target: Tensor) -> dict[str, RowFactors]:
    objective = objective_of(model, inputs, target)
    return row_factors(objective, len(inputs), 1000, observed)


def slopes(output: Tensor, target: Tensor) -> Tensor:
    """The gradient of half the squared error of each sample by its output."""
    return output.detach() - target


def test_a_linear_over_positions() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 2, bias=False), normal(COUNT, 5, 3, seed=1), normal(COUNT, 5, 2)
    scales, inputs, _ = found(model, x, y)["weight"]
    g = slopes(model(x), y)
    torch.testing.assert_close(scales, g.square().sum((0, 1)) / COUNT)
    flat = x.flatten(0, 1)
    torch.testing.assert_close(inputs[0], flat.T @ flat / len(flat))


def test_a_transposed_linear_is_the_linear() -> None:
    transformers = pytest.importorskip("transformers.pytorch_utils")
    model, x, y = transformers.Conv1D(2, 3), normal(COUNT, 3, seed=1), normal(COUNT, 2)
    straight = nn.Linear(3, 2).double()
    with torch.no_grad():
        straight.weight.copy_(model.weight.T)
        straight.bias.copy_(model.bias)
    one, two = found(model, x, y)["weight"], found(straight, x, y)["weight"]
    torch.testing.assert_close(one.scales, two.scales)
    torch.testing.assert_close(one.inputs, two.inputs)
    assert one.layout == RowLayout(2, 3, transposed=True)


def test_a_grouped_convolution_has_inputs_for_each_group() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=False)
    x = normal(COUNT, 4, 5, 5, seed=1)
    y = normal(COUNT, 6, 3, 3, seed=2)
    scales, inputs, layout = found(model, x, y)["weight"]
    g = slopes(model(x), y)
    torch.testing.assert_close(scales, g.square().sum((0, 2, 3)) / COUNT)
    for group in range(2):
        part = nn.functional.unfold(x[:, 2 * group : 2 * group + 2], 3, padding=1, stride=2)
        flat = part.transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(inputs[group], flat.T @ flat / len(flat))
    assert layout == RowLayout(6, 18, groups=2)


def test_an_embedding_is_a_linear_of_one_hot_inputs() -> None:
    torch.manual_seed(0)
    model = nn.Embedding(5, 3)
    tokens = torch.tensor([[0, 1], [1, 1], [2, 0], [1, 2]])
    y = normal(4, 2, 3, seed=2)
    scales, inputs, _ = found(model, tokens, y)["weight"]
    g = slopes(model(tokens), y).flatten(0, 1)
    torch.testing.assert_close(inputs[0], g.T @ g / 8)
    counts = torch.tensor([2.0, 4.0, 2.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(scales, (counts + 1) * 8 / 13 / 4)


class Own(nn.Module):
    """A parameter that is used directly, one beside it, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(normal(3, 2, seed=1))
        self.shift = nn.Parameter(normal(1, 2, seed=2))
        self.unused = nn.Parameter(normal(4, seed=3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix + self.shift


class Odd(nn.Module):
    """A layer whose weight is used by itself too, or whose model differentiates by its inputs."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.plain, self.way = nn.Linear(3, 3, bias=False), nn.Linear(3, 3), way

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "by itself":
            return self.plain(self.layer(x).tanh()) + x.sin() @ self.layer.weight.T
        x = x.detach().requires_grad_()
        energy = self.layer(x).tanh().sum()
        return self.plain(torch.autograd.grad(energy, x, create_graph=True)[0])


@pytest.mark.parametrize("way", ["by itself", "within its forward pass"])
def test_a_weight_used_in_other_ways_has_the_factors_of_its_gradients(
    way: str, limited: Limited
) -> None:
    limited(kfac_samples=1)
    x, y = normal(COUNT, 3, seed=1), normal(COUNT, 3)
    model = Odd(way).double()
    scales, inputs, _ = found(model, x, y)["layer.weight"]
    gradients = []
    for i in range(COUNT):
        loss = 0.5 * (model(x[i : i + 1]) - y[i]).square().sum()
        gradients.append(torch.autograd.grad(loss, model.layer.weight)[0])
    stacked = torch.stack(gradients)
    torch.testing.assert_close(scales, stacked.square().sum((0, 2)) / COUNT)
    moments = (stacked.mT @ stacked).sum(0)
    torch.testing.assert_close(inputs[0], moments / moments.trace())
    plain = found(model, x, y)["plain.weight"]  # has the factors of its layer
    assert float(plain.inputs.diagonal(dim1=1, dim2=2).sum()) != pytest.approx(1)


def test_layers_that_the_loss_does_not_depend_on_have_no_scales() -> None:
    class Detached(Own):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.layer(x).detach())

    factors = found(Detached(), normal(COUNT, 3, seed=1), normal(COUNT, 2))
    assert not factors["layer.weight"].scales.any() and factors["matrix"].scales.any()


def test_the_models_own_gradients_are_left_alone() -> None:
    model = Odd("by itself").double()
    model.plain.weight.grad = torch.ones(3, 3, dtype=torch.float64)
    space = ParameterSpace.from_model(model, include="layer.*")
    batches = [(normal(COUNT, 3, seed=1), normal(COUNT, 3))]
    objective = Objective.from_model(model, batches, squared_error, space)
    row_factors(objective, COUNT, 1000, observed)
    assert bool((model.plain.weight.grad == 1).all()) and model.layer.weight.grad is None


def test_a_tensor_of_an_own_module_has_the_factors_of_its_gradients(limited: Limited) -> None:
    limited(kfac_samples=1)  # gradients of single samples, whose squares add up exactly
    x, y = normal(COUNT, 3, seed=1), normal(COUNT, 2)
    model = Own()
    factors = found(model, x, y)
    gradients = torch.einsum("ni,no->nio", x, slopes(model(x), y))
    scales, inputs, _ = factors["matrix"]
    torch.testing.assert_close(scales, gradients.square().sum((0, 2)) / COUNT)
    moments = (gradients.mT @ gradients).sum(0)
    torch.testing.assert_close(inputs[0], moments / moments.trace())
    assert factors["shift"].layout == RowLayout(2, 1)
    assert not factors["unused"].scales.any()


class Tied(nn.Module):
    """One matrix as an embedding and as the head of a language model."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tokens(x).tanh())


def test_a_tied_matrix_has_the_trace_of_both_uses_over_every_row() -> None:
    tokens, y = torch.tensor([[0, 1], [1, 4], [2, 0]]), normal(3, 2, 5, seed=2)
    model = Tied()
    scales, inputs, _ = found(model, tokens, y)["tokens.weight"]
    a = model.tokens(tokens).tanh().detach().flatten(0, 1)
    g = slopes(model(tokens), y).flatten(0, 1)
    through = (g @ model.head.weight).detach() * (1 - a.square())
    occurred = (tokens.flatten().bincount(minlength=5) + 1) * 6 / 11
    rows = g.square().sum(0) / 3 * a.square().sum() / 6
    rows += occurred / 3 * through.square().sum() / 6
    torch.testing.assert_close(scales * inputs[0].trace(), rows)


def test_batches_are_cut_by_the_memory_of_the_backward_pass(limited: Limited) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = normal(COUNT, 3, seed=1), normal(COUNT, 2)
    together = found(model, x, y)["0.weight"]
    limited(kfac_samples=2)
    apart = found(model, x, y)["0.weight"]
    torch.testing.assert_close(apart.scales, together.scales)
    torch.testing.assert_close(apart.inputs, together.inputs)


def test_inputs_that_are_not_finite_are_named() -> None:
    x = normal(COUNT, 3, seed=1)
    x[2, 1] = torch.inf
    with pytest.raises(WoodburyError, match="'weight' are not finite"):
        found(nn.Linear(3, 2), x, normal(COUNT, 2))
