"""One layer after the other: against the same least squares by hand, and where it is taken."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.random import normal
from torch import Tensor, nn

import woodbury
from woodbury import Objective, Pruner
from woodbury.errors import WoodburyError
from woodbury.linalg.sparse_least_squares import SparseLeastSquares
from woodbury.model.batches import Batch
from woodbury.pruning import LayerSequence, ShareSearch
from woodbury.pruning.autoconfig import IN_TURN
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.updates import zero

EVEN = Pruner(None, magnitude, zero, selection=woodbury.selections.evenly)
QUICK = woodbury.presets.quick


def dense_of(model: nn.Module, *batches: Tensor) -> Objective:
    space = woodbury.ParameterSpace.from_model(model, min_ndim=2)
    return Objective.from_model(model.double(), [(x, None) for x in batches], space=space)


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4)).double()


def by_hand(layer: Any, given: Tensor, goal: Tensor, k: int) -> Tensor:
    """The layer's weight, from dense float64 moments."""
    moments = given.T @ given / len(given)
    cross = (goal - layer.bias).T @ given / len(given)
    return SparseLeastSquares()(moments[None], cross[None], layer.weight[None], k).weights[0]


def test_each_layer_is_fitted_on_what_the_pruned_ones_before_it_leave() -> None:
    model, x = perceptron(), normal(50, 6, seed=1)
    dense = dense_of(model, x[:20], x[20:])
    pruned = LayerSequence()(dense, 0.6).objective.parameters
    layers: Any = model
    first, second = layers[0], layers[2]
    with torch.no_grad():
        hidden = first(x)
        weight = by_hand(first, x, hidden, 24)
        torch.testing.assert_close(pruned["0.weight"], weight)
        left = torch.tanh(x @ weight.T + first.bias)
        truth = by_hand(second, left, second(torch.tanh(hidden)), 16)
        torch.testing.assert_close(pruned["2.weight"], truth)


class Shared(nn.Module):
    """A layer that is used twice, one that is not used, and a convolution of two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Conv2d(2, 8, 3, groups=2)
        self.twice = nn.Linear(32, 32)
        self.unused = nn.Linear(4, 4)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.kernel(x)).flatten(1)
        return self.head(self.twice(torch.relu(self.twice(x))))


def test_kernels_groups_and_layers_used_twice_come_closer_than_by_magnitude() -> None:
    torch.manual_seed(0)
    model, x = Shared(), normal(200, 2, 4, 4, seed=1)
    dense = dense_of(model, x)
    before = copy.deepcopy(model.state_dict())
    ours, theirs = (recipe(dense, 0.7) for recipe in (LayerSequence(EVEN), EVEN))
    assert ours.sparsity == pytest.approx(0.7, abs=1e-3)
    goal, *found = (
        one.forward(one.parameters, x) for one in (dense, ours.objective, theirs.objective)
    )
    near, far = (float((outputs - goal).detach().norm()) for outputs in found)
    assert near < 0.6 * far
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    shares = [
        float((ours.objective.parameters[name] == 0).double().mean())
        for name in before
        if "weight" in name
    ]
    assert shares == pytest.approx([0.7] * 4, abs=0.04)


def test_zeros_stay_where_they_are() -> None:
    model, x = perceptron(), normal(50, 6, seed=1)
    with torch.no_grad():
        model[0].weight[:, ::2] = 0  # type: ignore[index,operator]
    pruned = woodbury.prune(model, [(x, torch.arange(50) % 4)], 0.6, effort=QUICK, keep_zeros=True)
    assert pruned.sparsity == 0.6
    assert not model[0].weight[:, ::2].any()  # type: ignore[index,operator]


def test_the_shares_say_how_many_weights_each_tensor_keeps() -> None:
    dense = dense_of(perceptron(), normal(50, 6, seed=1))
    shares = replace(EVEN, selection=woodbury.selections.greedy)
    pruned = LayerSequence(shares)(dense, {"0.*": 0.25, "*": 0.75})
    weights = pruned.objective.parameters
    assert int((weights["0.weight"] == 0).sum()) == 15
    assert int((weights["2.weight"] == 0).sum()) == 30


def test_the_distance_is_that_of_the_outputs() -> None:
    model, x = perceptron(), normal(4000, 6, seed=1)
    space = woodbury.ParameterSpace.from_model(model, min_ndim=2)
    dense = Objective.from_model(model, [(x, None)], woodbury.squared_error, space)
    pruned = LayerSequence()(dense, 0.6)
    refit = woodbury.Refit(mc_samples=8)
    truth = refit.distance(pruned.objective, dense)
    assert pruned.predicted == pytest.approx(truth, rel=0.1)
    silent = replace(dense, likelihood=replace(dense.likelihood, directions=None))
    assert LayerSequence()(silent, 0.6).predicted is None


def test_samples_of_several_shapes_are_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    dense = dense_of(model, normal(8, 3, 6), normal(8, 5, 6))
    with pytest.raises(WoodburyError, match="they come in 2 shapes: pad them to one"):
        LayerSequence()(dense, 0.5)


def test_inputs_that_are_not_finite_name_their_layer() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    with pytest.raises(WoodburyError, match=r"layer of '0.weight' has inputs .* not finite"):
        LayerSequence()(dense_of(model, torch.full((8, 6), torch.nan).double()), 0.5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"shares": replace(EVEN, unit=woodbury.units.block(2))}, "chooses single weights"),
        (
            {"shares": replace(EVEN, scope=woodbury.scopes.consecutive(4))},
            "scopes.global_ or scopes.layerwise",
        ),
        ({"positions": 0}, "positions is 0"),
        ({"samples": 0}, "samples is 0"),
    ],
)
def test_fields_out_of_range(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(WoodburyError, match=sentence):
        LayerSequence(**options)


class Recurrent(nn.Module):
    """A network with weights that are not those of a layer with inputs of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(6, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def labelled(*inputs: Tensor) -> list[Batch]:
    return [(x, torch.arange(len(x)) % 3) for x in inputs]


def test_quick_goes_in_turn_where_the_network_and_the_data_allow_it() -> None:
    torch.manual_seed(0)
    mean = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    model = nn.Sequential(mean, nn.AdaptiveMaxPool2d((1, None)), nn.Flatten())
    one, several = normal(40, 4, 6).float(), normal(40, 7, 6, seed=2).float()

    def structure(network: nn.Module, data: list[Batch]) -> str:
        return woodbury.plan(network, data, 0.5, effort=QUICK).structure

    assert structure(model, labelled(one)) == IN_TURN
    assert structure(model, labelled(one, several)) != IN_TURN
    assert structure(Recurrent(), labelled(one)) != IN_TURN
    with woodbury.Limits(memory=2000):
        assert structure(model, labelled(one)) != IN_TURN


def test_quick_does_what_it_planned() -> None:
    data = [(normal(400, 6, seed=1).float(), torch.arange(400) % 4)]
    model = perceptron().float()
    plan = woodbury.plan(model, data, 0.5, effort=QUICK)
    assert plan.rows == 0 and plan.stages == 1 and plan.passes == 2 and plan.samples == 400
    pruned = woodbury.prune(model, data, 0.5, effort=QUICK)
    assert pruned.settings["structure"] == plan.structure == IN_TURN
    assert pruned.settings["rows"] == "none" and pruned.sparsity == 0.5
    assert pruned.predicted is not None and pruned.predicted > 0


def test_shares_are_chosen_by_the_outputs_of_the_other_half() -> None:
    """All weights of the head count, and a twentieth of those of the first layer."""
    torch.manual_seed(0)
    first = nn.Linear(60, 20)
    model = nn.Sequential(first, nn.Tanh(), nn.Linear(20, 4)).double()
    with torch.no_grad():
        first.weight.mul_(torch.where(normal(20, 60, seed=3) > 1.64, 1.0, 1e-3))
    x = normal(400, 60, seed=1)
    dense = dense_of(model, x)
    search = ShareSearch()
    assert search.chosen(dense, 0.9) is search.candidates[1]
    pruned = search(dense, 0.9)
    by_hand = LayerSequence(search.candidates[1])(dense, 0.9)
    assert torch.equal(pruned.weights, by_hand.weights)
    others = normal(500, 60, seed=2)

    def distance(recipe: LayerSequence | ShareSearch) -> float:
        reached = recipe(dense, 0.9).objective
        goal, found = (one.forward(one.parameters, others).detach() for one in (dense, reached))
        return float((goal - found).norm())

    assert distance(search) < distance(LayerSequence())
    swapped = ShareSearch(candidates=search.candidates[::-1])
    assert swapped.chosen(dense, 0.9) is swapped.candidates[0]


def test_a_search_without_directions_or_with_few_samples_goes_by_the_outputs() -> None:
    dense = dense_of(perceptron(), normal(12, 6, seed=1))
    silent = replace(dense, likelihood=replace(dense.likelihood, directions=None))
    assert ShareSearch()(silent, 0.5).sparsity == 0.5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"candidates": ()}, "candidates is empty"),
        (
            {"candidates": (replace(EVEN, unit=woodbury.units.block(2)),)},
            "chooses single weights",
        ),
        ({"samples": 1}, "samples is 1"),
        ({"positions": 0}, "positions is 0"),
    ],
)
def test_a_search_out_of_range(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(WoodburyError, match=sentence):
        ShareSearch(**options)


def test_a_search_of_shares_on_no_objective_is_a_sentence() -> None:
    wrong: Any = torch.ones(3)
    with pytest.raises(WoodburyError, match="objective is a Tensor"):
        ShareSearch().chosen(wrong, 0.5)
