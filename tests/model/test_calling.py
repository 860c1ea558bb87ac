"""Calling a model leaves it, its buffers, its attributes and the inputs as they were."""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import woodbury
from woodbury.estimation.engines import looped, vmapped
from woodbury.estimation.gradients import gradient_rows
from woodbury.model.attributes import attributes_kept
from woodbury.model.calling import call_model
from woodbury.model.objective import Objective

Batches = list[tuple[Any, Tensor]]


class Remembering(nn.Module):
    """A model that keeps on itself what passes through it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.features: Tensor | None = None
        self.history: list[Tensor] = []
        self.by_name: dict[str, Tensor] = {}
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.features = y
        self.history.append(y)
        self.by_name["last"] = y
        self.lazy = y
        if "mask" not in self._buffers:
            self.register_buffer("mask", torch.ones_like(y))
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * y.mean(0)
        return y


class InPlace(nn.Module):
    """A model that normalises its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.sub_(1.0))


class Shared(nn.Module):
    """One layer under three names, and a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.all = nn.Sequential(self.first, nn.Tanh(), self.first, nn.Tanh(), nn.Linear(6, 6))
        self.last = nn.Linear(6, 3)
        self.all[4].weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.all(x))


class Lists(nn.Module):
    """A model whose one argument is a list."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.a(features[0]) + self.b(features[1])


def data() -> Batches:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 16, 6, generator=generator)
    return [(batch, torch.arange(16) % 3) for batch in inputs]


def everything(model: nn.Module, batches: Batches) -> None:
    """Prune by two ways on a copy of the weights, with whatever these do on the way."""
    woodbury.plan(model, batches, 0.5)
    woodbury.prune(model, batches, 0.5)
    recipe = woodbury.Pruner(woodbury.mfac(32, engine=looped))
    woodbury.prune(model, batches, 0.6, pruner=recipe)
    Objective.from_model(model, batches).loss()


@pytest.mark.parametrize("build", [Remembering, InPlace, Shared])
def test_pruning_leaves_all_but_the_weights(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = build().train()
    batches = data()
    inputs = [batch.clone() for batch, _ in batches]
    parameters = [(module, dict(module._parameters)) for module in model.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    attributes = {name: copy.copy(value) for name, value in vars(model).items()}
    everything(model, batches)
    assert all(torch.equal(given, batch) for given, (batch, _) in zip(inputs, batches, strict=True))
    for module, before in parameters:
        assert all(module._parameters[name] is one for name, one in before.items())
    now = dict(model.named_buffers())
    assert now.keys() == buffers.keys()
    assert all(torch.equal(buffers[name], buffer) for name, buffer in now.items())
    assert vars(model).keys() == attributes.keys()
    assert model.training
    copied = copy.deepcopy(model)
    torch.save(copied, io.BytesIO())
    model(batches[0][0].clone()).sum().backward()


def test_an_error_in_the_model_leaves_it_too() -> None:
    model = Remembering()
    with pytest.raises(RuntimeError):
        call_model(model, torch.zeros(2, 5), dict(model.named_parameters()))
    with pytest.raises(KeyError), attributes_kept(model):
        model.history.append(torch.zeros(1))
        raise KeyError
    assert not model.history
    assert float(model.calls) == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", [vmapped, looped])
def test_rows_of_shared_layers_are_those_of_autograd(engine: Callable) -> None:
    torch.manual_seed(0)
    model = Shared().double()
    batches = [(batch.double(), target) for batch, target in data()[:1]]
    objective = Objective.from_model(model, batches)
    rows = gradient_rows(objective, 5, engine=engine)
    for index, row in enumerate(rows):
        inputs, target = batches[0][0][index : index + 1], batches[0][1][index : index + 1]
        loss = nn.functional.cross_entropy(model(inputs), target)
        names = dict(model.named_parameters())
        slopes = torch.autograd.grad(loss, [names[name] for name in objective.space.shapes])
        expected = torch.cat([slope.flatten() for slope in slopes])
        torch.testing.assert_close(row, expected)


def test_a_model_that_normalises_in_place_is_pruned_as_one_that_does_not() -> None:
    masks = []
    for in_place in (True, False):
        torch.manual_seed(0)
        model = InPlace() if in_place else nn.Sequential(nn.Linear(6, 3))
        batches = data() if in_place else [(batch - 1, target) for batch, target in data()]
        masks.append(woodbury.prune(model, batches, 0.5).keep)
    assert torch.equal(*masks)


def test_nested_inputs() -> None:
    torch.manual_seed(0)
    batches: Batches = [(([batch, batch.flip(0)],), target) for batch, target in data()]
    assert woodbury.prune(Lists(), batches, 0.5).sparsity == 0.5


def test_a_loss_may_read_what_the_model_has_stored() -> None:
    model = Remembering()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        assert model.features is not None
        return nn.functional.cross_entropy(model.features, target)

    objective = Objective.from_model(model, data(), woodbury.Likelihood(loss))
    usual = Objective.from_model(model, data())
    assert objective.loss() == usual.loss()
    torch.testing.assert_close(gradient_rows(objective, 8), gradient_rows(usual, 8))


class Checkpointed(nn.Module):
    """A model that computes its hidden layer again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        def body(y: Tensor) -> Tensor:
            return torch.tanh(self.hidden(torch.tanh(y)))

        return self.last(checkpoint(body, self.first(x), use_reentrant=self.reentrant))


class Plain(Checkpointed):
    """The same network without that."""

    def __init__(self) -> None:
        super().__init__(reentrant=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.hidden(torch.tanh(self.first(x)))))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_sees_the_weights_that_are_asked_for(reentrant: bool) -> None:
    torch.manual_seed(0)
    model, plain = Checkpointed(reentrant), Plain()
    plain.load_state_dict(model.state_dict())
    found = []
    for each in (model, plain):
        objective = Objective.from_model(each, data())
        elsewhere = objective.at(torch.linspace(-1, 1, objective.space.d))
        found.append([gradient_rows(elsewhere, 9, engine=engine) for engine in (vmapped, looped)])
    torch.testing.assert_close(found[0], found[1])
    # A training loop of one's own still has its checkpoints.
    seen = []
    model.hidden.register_forward_hook(lambda *_: seen.append(1))
    model(data()[0][0].requires_grad_()).sum().backward()
    assert len(seen) == 2


class Forces(nn.Module):
    """A model whose output is a slope of its own energy."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        energy = self.last(torch.tanh(self.first(x))).sum()
        return torch.autograd.grad(energy, x, create_graph=True)[0]


def test_a_model_that_differentiates_by_its_inputs() -> None:
    torch.manual_seed(0)
    model = Forces().double()
    batches = [(inputs.double(), inputs.double() - 1) for inputs, _ in data()]
    space = woodbury.ParameterSpace.from_model(model, min_ndim=2)
    objective = Objective.from_model(model, batches, woodbury.squared_error, space)
    weights = [model.first.weight, model.last.weight]
    for index, row in enumerate(gradient_rows(objective, 5)):
        x, y = (part[index : index + 1].clone() for part in batches[0])
        slopes = torch.autograd.grad(0.5 * (model(x) - y).square().sum(), weights)
        torch.testing.assert_close(row, torch.cat([slope.flatten() for slope in slopes]))
    pruned = woodbury.prune(model, batches, 0.5, likelihood=woodbury.squared_error)
    assert pruned.sparsity == pytest.approx(0.5, abs=0.02)


def test_a_model_that_draws_random_numbers_is_named() -> None:
    class Noisy(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(nn.functional.dropout(input, 0.5))

    before = torch.get_rng_state()
    model = Noisy(6, 3)
    state = torch.get_rng_state()
    with pytest.raises(woodbury.WoodburyError, match="draws random numbers"):
        woodbury.prune(model, data(), 0.5)
    assert torch.equal(state, torch.get_rng_state()) and not torch.equal(state, before)


def random_states() -> list[Any]:
    numbers = numpy.random.get_state(legacy=True)  # noqa: NPY002
    return [random.getstate(), numbers[1].tolist(), numbers[2:], torch.get_rng_state().tolist()]


def test_what_model_and_data_draw_moves_no_generator() -> None:
    class Noisy(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            draws = random.random() + numpy.random.rand()  # noqa: NPY002
            return super().forward(input + 1e-6 * draws * torch.randn_like(input))

    model = Noisy(6, 3)
    dataset = torch.utils.data.TensorDataset(torch.randn(40, 6), torch.arange(40) % 3)
    loader = torch.utils.data.DataLoader(dataset, 10, shuffle=True)
    before = random_states()
    woodbury.plan(model, loader, 0.5)
    woodbury.prune(model, loader, 0.5)
    woodbury.prune(model, loader, 0.6, pruner=woodbury.Pruner(woodbury.mfac(20)))
    in_order = torch.utils.data.DataLoader(dataset, 10)
    woodbury.influence(model, in_order, in_order, damping=0.1)
    woodbury.inspect(model, loader)
    Objective.from_model(model, loader).loss()
    woodbury.Gradual(model, torch.optim.SGD(model.parameters(), 0.1), loader, 0.7, end=1, steps=1)
    assert random_states() == before
