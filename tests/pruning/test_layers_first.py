"""The default: layers in turn at first, then stages of all of them."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import woodbury
from woodbury.errors import WoodburyError
from woodbury.pruning import LayerSequence, Pruned, ShareSearch
from woodbury.pruning.autoconfig import IN_TURN
from woodbury.pruning.layers_first import LayersFirst, in_turn_to
from woodbury.pruning.presets import InTurn, quick, standard

Data = list[tuple[Tensor, Tensor]]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 4)
    )


def data(seed: int = 1, samples: int = 200) -> Data:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 12, generator=generator)
    return [(x, x[:, :4].argmax(1))]


@pytest.fixture(scope="module")
def trained() -> nn.Sequential:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    [(x, y)] = data(seed=0, samples=1000)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def pruned(
    model: nn.Module, sparsity: woodbury.pruning.schedule.Targets, effort=standard, **options
) -> Pruned:
    return woodbury.prune(copy.deepcopy(model), data(), sparsity, effort=effort, **options)


@pytest.mark.parametrize(
    ("sparsity", "reached"),
    [
        (0.5, [0.5]),
        (0.8, [0.8]),
        (0.81, [0.8, 0.81]),
        (0.9, [0.8, 0.8318, 0.8586, 0.8811, 0.9]),
        (0.95, [0.9, 0.9159, 0.9293, 0.9405, 0.95]),
    ],
)
def test_stages_begin_where_twice_as_many_weights_are_left(
    sparsity: float, reached: list[float], trained: nn.Sequential
) -> None:
    done = pruned(trained, sparsity)
    assert [step.sparsity for step in done.steps] == pytest.approx(reached, abs=1e-3)
    assert done.settings["stages"] == len(reached)
    assert str(done.settings["structure"]).startswith(IN_TURN)
    assert done.plan is not None and done.plan.structure == done.settings["structure"]
    assert ("refit" in {phase.name for phase in done.plan.phases}) == (len(reached) > 1)


def test_it_is_a_search_of_shares_and_then_the_stages(trained: nn.Sequential) -> None:
    space = woodbury.ParameterSpace.for_pruning(trained)
    dense = woodbury.Objective.from_model(copy.deepcopy(trained), data(), space=space)
    halfway = ShareSearch()(dense, 0.8)
    done = pruned(trained, 0.9)
    assert torch.equal(done.keep & halfway.keep, done.keep)  # what was removed remains removed
    assert done.steps[0].distance == pytest.approx(halfway.steps[0].distance)
    assert done.steps[0].predicted is None and done.steps[-1].predicted is not None


def test_stages_after_layers_in_turn_beat_either_alone(trained: nn.Sequential) -> None:
    [(x, y)] = data(seed=5, samples=1000)

    def loss(effort: woodbury.presets.Effort) -> float:
        return pruned(trained, 0.95, effort).objective.loss([(x, y)])

    default, in_turn = loss(standard), loss(quick)
    in_stages = loss(replace(standard, in_turn=None))
    assert default < 0.9 * in_turn and default < 0.9 * in_stages


def test_a_sparsity_for_each_layer_has_its_own_way_there(trained: nn.Sequential) -> None:
    done = pruned(trained, {"0.weight": 0.5, "*": 0.9})
    first = done.objective.space.slices["0.weight"]
    removed = 1 - done.keep.double()
    assert float(removed[first].mean()) == pytest.approx(0.5, abs=2e-3)
    assert float(removed[first.stop :].mean()) == pytest.approx(0.9, abs=2e-3)
    assert len(done.steps) == 5


def test_a_network_that_is_as_sparse_already_has_stages_only(trained: nn.Sequential) -> None:
    sparse = copy.deepcopy(trained)
    woodbury.prune(sparse, data(), 0.9)
    done = pruned(sparse, 0.92, keep_zeros=True)
    assert IN_TURN not in str(done.settings["structure"])
    assert done.sparsity == pytest.approx(0.92, abs=1e-3)


def test_where_to_begin() -> None:
    assert in_turn_to({"a": 0.5, "*": 0.95}, 0.8) == {"a": 0.5, "*": pytest.approx(0.9)}
    assert in_turn_to(0.99, 1.0) == 0.99


def test_the_number_of_weights_decides() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 8, bias=False)
    dense = woodbury.Objective.from_model(model, [(torch.randn(20, 4), torch.arange(20) % 8)])
    recipe = LayersFirst(LayerSequence(), woodbury.Pruner(woodbury.mfac(20)), least_kept=16)
    assert recipe(dense, 0.5).steps[0].predicted is None
    assert recipe(dense, 0.75).steps[0].predicted is not None
    assert recipe.rules is recipe.then


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"until": 0.0}, "until is 0.0"),
        ({"until": 1.5}, "until is 1.5"),
        ({"keep_per_stage": 1.0}, "keep_per_stage is 1.0"),
    ],
)
def test_fields_out_of_range_are_named(fields: dict[str, float], says: str) -> None:
    with pytest.raises(WoodburyError, match=says):
        InTurn(**fields)
