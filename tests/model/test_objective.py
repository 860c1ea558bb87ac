"""Objective: the model's own loss at any weights, without touching the model."""

from __future__ import annotations

import math
from collections import UserDict
from types import MappingProxyType
from typing import Any

import pytest
import torch
from support.random import normal
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from woodbury.errors import WoodburyError
from woodbury.estimation.gradients import gradient_chunks
from woodbury.model.batches import samples_in
from woodbury.model.likelihood import Likelihood, cross_entropy, squared_error
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)
    ).double()
    net(3 * normal(50, 4) + 1)  # running statistics that are not 0 and 1
    return net


INPUTS, TARGET = normal(10, 4), torch.arange(10) % 3
BATCHES = [(INPUTS[:7], TARGET[:7]), (INPUTS[7:], TARGET[7:])]


def own_loss(model: nn.Module) -> float:
    with torch.no_grad(), eval_mode(model):
        return float(nn.functional.cross_entropy(model(INPUTS), TARGET))


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_loss_is_the_models_own_in_eval_mode() -> None:
    model = network()
    objective = Objective.from_model(model, BATCHES)
    assert objective.loss() == pytest.approx(
        own_loss(model), rel=1e-12
    )  # a mean over samples, not over batches
    assert objective.loss([(INPUTS, TARGET)]) == pytest.approx(own_loss(model), rel=1e-12)
    assert objective.loss() == objective.loss()
    assert objective.loss([(INPUTS[:0], TARGET[:0]), *BATCHES]) == objective.loss()
    loader = DataLoader(TensorDataset(INPUTS, TARGET), batch_size=3)
    assert Objective.from_model(model, loader).loss() == pytest.approx(own_loss(model), rel=1e-12)


def test_other_weights_leave_the_model_untouched() -> None:
    model = network()
    before, objective = copied(model), Objective.from_model(model, BATCHES)
    other = objective.at(objective.weights * 2)
    moved = other.loss()
    assert moved != pytest.approx(objective.loss(), rel=1e-3)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    other.write()
    assert moved == pytest.approx(own_loss(model), rel=1e-12)
    assert torch.equal(
        objective.weights * 2, Objective.from_model(model, BATCHES).weights
    )  # weights are a copy, not a view


def test_a_part_of_the_parameters_leaves_the_others_at_the_models_own() -> None:
    model = network()
    objective = Objective.from_model(
        model, BATCHES, space=ParameterSpace.from_model(model, "3.weight")
    )
    moved = objective.at(objective.weights + 1).loss()
    with torch.no_grad():
        model[3].weight += 1  # type: ignore[index]
    assert moved == pytest.approx(own_loss(model), rel=1e-12)


@pytest.mark.parametrize("min_ndim", [1, 2])
def test_write_gives_exact_zeros_and_touches_nothing_else(min_ndim: int) -> None:
    model = network()
    before, space = copied(model), ParameterSpace.from_model(model, min_ndim=min_ndim)
    objective, keep = (
        Objective.from_model(model, BATCHES, space=space),
        torch.arange(space.n) % 2 == 0,
    )
    smaller = objective.at(objective.weights[keep] * 1.5, space.restrict(keep))
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    smaller.write()
    torch.testing.assert_close(
        space.flatten(dict(model.named_parameters())).detach(), objective.weights * 1.5 * keep
    )
    assert int((space.flatten(dict(model.named_parameters())) == 0).sum()) >= int((~keep).sum())
    for name in set(before) - set(space.shapes):
        assert torch.equal(model.state_dict()[name], before[name])
    assert [
        parameter.data_ptr() for parameter in model.parameters()
    ] == pointers  # in place: optimizers still hold them
    assert smaller.loss() == pytest.approx(own_loss(model), rel=1e-12)


def test_tied_weights_move_together() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)).double()
    model[1].weight = model[0].weight
    objective = Objective.from_model(model, [(normal(5, 3), torch.arange(5) % 3)])
    moved = objective.at(objective.weights * 3)
    predicted = moved.loss()
    moved.write()
    assert model[1].weight is model[0].weight
    assert objective.space.d == 9
    assert Objective.from_model(model, objective.batches).loss() == pytest.approx(
        predicted, rel=1e-12
    )


@pytest.mark.parametrize("fails", [False, True])
def test_each_modules_mode_is_restored(fails: bool) -> None:
    model = network().train()
    model[1].eval()  # type: ignore[index]  # a frozen BatchNorm inside a training net
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    batches: list[Any] = [*BATCHES, (INPUTS, None)] if fails else BATCHES
    if fails:
        with pytest.raises(WoodburyError, match="no labels"):
            Objective.from_model(model, batches).loss()
    else:
        Objective.from_model(model, batches).loss()
    assert [module.training for module in model.modules()] == modes


class Two(nn.Module):
    """Takes its inputs by position or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, a: Tensor, b: Tensor, flip: bool = False) -> Tensor:
        return self.left(a) - self.right(b) if flip else self.left(a) + self.right(b)


def test_inputs_are_a_tensor_a_tuple_or_keywords() -> None:
    model, other = Two().double(), normal(10, 2)
    truth = float(nn.functional.cross_entropy(model(INPUTS, other), TARGET).detach())
    for inputs in (
        (INPUTS, other),
        [INPUTS, other],
        {"b": other, "a": INPUTS},
        (INPUTS, other, False),
    ):
        assert Objective.from_model(model, [(inputs, TARGET)]).loss() == pytest.approx(
            truth, rel=1e-12
        )
    flipped = float(nn.functional.cross_entropy(model(INPUTS, other, flip=True), TARGET).detach())
    named = {"flip": True, "a": INPUTS, "b": other}
    assert Objective.from_model(model, [(named, TARGET)]).loss() == pytest.approx(
        flipped, rel=1e-12
    )
    assert samples_in(named) == 10


def test_a_mapping_that_is_no_dict_is_keywords_too() -> None:
    model, given = Two().double(), {"b": normal(10, 2), "a": INPUTS}
    for read in (UserDict(given), MappingProxyType(given)):
        assert samples_in(read) == 10
        assert (
            Objective.from_model(model, [(read, TARGET)]).loss()
            == Objective.from_model(model, [(given, TARGET)]).loss()
        )


def loss_of(likelihood: Likelihood = cross_entropy, batches: Any = None) -> float:
    return Objective.from_model(
        network(), BATCHES if batches is None else batches, likelihood
    ).loss()


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (
            lambda: loss_of(Likelihood(lambda o, t: o.sum(1))),
            r"gave a tensor of shape \(7,\): it must give .* scalar",
        ),
        (lambda: loss_of(Likelihood(lambda o, t: 1.0)), "gave float"),
        (lambda: loss_of(squared_error), r"outputs of shape \(7, 3\) and targets of shape \(7,\)"),
        (lambda: loss_of(batches=[(INPUTS,)]), "Batch 0 is a tuple, not a pair .* labels missing"),
        (lambda: loss_of(batches=[*BATCHES, INPUTS]), "Batch 2 is a Tensor, not a pair"),
        (
            lambda: loss_of(batches=[{"x": INPUTS, "labels": TARGET}]),
            r'is a dict, .*: give \(batch, batch\["labels"\]\)',
        ),
        (lambda: loss_of(batches=[("words", TARGET)]), "hold no tensor"),
        (lambda: Objective.from_model(network(), iter(BATCHES)), "read only once"),
        (lambda: Objective.from_model(network(), (batch for batch in BATCHES)), "read only once"),
        (
            lambda: Objective.from_model(network(), BATCHES).at(torch.ones(3)).loss(),
            r"A space of .* kept weights got a vector of shape \(3,\)",
        ),
        (
            lambda: Objective.from_model(network(), BATCHES).at(torch.ones(3)).write(),
            r"A space of .* kept weights got a vector of shape \(3,\)",
        ),
        (
            lambda: Objective.from_model(
                nn.Linear(4, 3), BATCHES, space=ParameterSpace.from_model(network())
            ),
            "'0.weight' is missing",
        ),
    ],
)
def test_bad_input_is_named(act, says: str) -> None:
    with pytest.raises(WoodburyError, match=says):
        act()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(bad: float) -> None:
    model = network()
    with torch.no_grad():
        model[3].bias[1] = bad  # type: ignore[index]
    with pytest.raises(WoodburyError, match=r"'3\.bias' is not finite"):
        Objective.from_model(model, BATCHES)
    Objective.from_model(
        model, BATCHES, space=ParameterSpace.from_model(model, "0.*")
    )  # outside the space it is the model's business


def test_no_data_is_an_error() -> None:
    with pytest.raises(WoodburyError, match="batch"):
        loss_of(batches=[])


class Counting:
    """Batches that count how often they are read."""

    reads = 0

    def __iter__(self):
        self.reads += 1
        return iter(BATCHES)


@pytest.mark.parametrize("place", [0, 1])
def test_batchnorm_without_running_statistics_is_named(place: int) -> None:
    norms = [nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.GroupNorm(2, 4)]
    norms[place] = nn.BatchNorm1d(4, track_running_stats=False)
    model = nn.Sequential(*norms, nn.Linear(4, 3)).double()
    with pytest.raises(WoodburyError, match=f"BatchNorm '{place}' has no running statistics"):
        Objective.from_model(model, BATCHES)


def test_batches_without_labels_are_probed_by_drawn_ones() -> None:
    objective, state = Objective.from_model(network(), [(INPUTS, None)]), torch.get_rng_state()
    objective.probe()
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(WoodburyError, match="draws none"):
        Objective.from_model(network(), [(INPUTS, None)], Likelihood(cross_entropy.loss)).probe()
    with pytest.raises(WoodburyError, match="refuses the first batch"):
        Objective.from_model(network(), [(normal(5, 7), None)]).probe()


def test_making_an_objective_reads_nothing() -> None:
    batches = Counting()
    Objective.from_model(network(), batches)
    assert batches.reads == 0


def test_the_fisher_of_a_sequence_is_the_curvature_of_its_loss() -> None:
    torch.manual_seed(0)
    model, x = nn.Conv1d(2, 3, 1, bias=False), torch.randn(3000, 2, 8)
    with torch.no_grad():
        target = torch.distributions.Categorical(
            logits=model(x).transpose(1, 2)
        ).sample()  # converged: F is the Hessian
    objective = Objective.from_model(model, [(x, target)])
    rows = torch.cat(list(gradient_chunks(objective, 3000)))

    def loss(weights: torch.Tensor) -> torch.Tensor:
        return objective.batch_loss({"weight": weights.view(3, 2, 1)}, x, target)

    hessian = torch.autograd.functional.hessian(loss, objective.weights)
    assert isinstance(hessian, torch.Tensor)
    torch.testing.assert_close(rows.square().mean(0).sum(), hessian.trace(), rtol=0.1, atol=0)


def test_data_that_are_not_finite_are_named_by_their_batch() -> None:
    good = (normal(4, 3).float(), normal(4, 2).float())
    objective = Objective.from_model(nn.Linear(3, 2), [good], squared_error)
    for part, what in ((0, "an input"), (1, "a label")):
        bad = [tensor.clone() for tensor in good]
        bad[part][1, 0] = math.nan
        with pytest.raises(WoodburyError, match=f"Batch 1 holds {what} that is not finite"):
            objective.loss([good, tuple(bad)])
    assert math.isinf(objective.at(torch.full((8,), 1e30)).loss())  # not for want of sound data


def test_missing_values_that_a_model_fills_in_are_data() -> None:
    class Filling(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.nan_to_num(0.0))

    inputs = normal(4, 3).float()
    inputs[1, 0] = math.nan
    objective = Objective.from_model(Filling(3, 2), [(inputs, torch.arange(4) % 2)])
    assert math.isfinite(objective.loss())
