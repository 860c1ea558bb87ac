"""Recipes are values: equal if their settings are, printed by them, pickled, replaced, as dicts."""

from __future__ import annotations

import pickle
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

import woodbury
from woodbury.estimation.recipes import mfac, woodfisher
from woodbury.model.space import ParameterSpace
from woodbury.pruning import costs, saliencies, scopes, selections, units, updates
from woodbury.pruning.damping_search import DampingSearch
from woodbury.pruning.pruner import Pruner, PruningRecipe
from woodbury.pruning.semi_structured import n_of_m

BY_MAGNITUDE = Pruner(None, saliencies.magnitude, updates.zero)
RECIPES: dict[str, Any] = {
    "default": Pruner(),
    "magnitude": BY_MAGNITUDE,
    "all fields": Pruner(
        woodfisher(100, 16, 1e-3),
        saliencies.woodtaylor,
        updates.independent,
        units.block(4, 1),
        scopes.consecutive(4, {"*": 0}),
        first_order=True,
        selection=selections.iterative_greedy(8),
        cost=costs.power(costs.weights, 2.0),
        max_layer_sparsity=0.9,
        normalize_by=costs.power(costs.weights, 0.3),
    ),
    "n of m": n_of_m(2, 4)[1],
    "swaps": Pruner(selection=selections.swaps(3, selections.iterative_greedy(2))),
    "thresholding": Pruner(selection=selections.iterative_hard_thresholding(3)),
    "custom": Pruner(unit=units.custom([{"0.weight": 3, "1.weight": (slice(None), 3)}])),
}
VALUES: dict[str, Any] = RECIPES | {
    "swaps alone": selections.swaps(3),
    "power": costs.power(costs.weights, 0.5),
    "consecutive": scopes.consecutive(4, 0),
    "custom alone": units.custom([{"weight": 0}]),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_copy_is_equal(name: str) -> None:
    value = VALUES[name]
    assert pickle.loads(pickle.dumps(value)) == value
    assert replace(value) == value


@pytest.mark.parametrize("name", VALUES)
def test_a_repr_holds_no_address(name: str) -> None:
    assert "0x" not in repr(VALUES[name])


def test_equal_settings_make_equal_pruners() -> None:
    assert Pruner() == Pruner()
    assert Pruner(mfac(500)) == Pruner(mfac(500))
    assert len({Pruner(), Pruner(), Pruner(mfac(500))}) == 2
    assert Pruner() != Pruner(mfac(500))
    assert Pruner() != replace(Pruner(), max_layer_sparsity=0.9)
    assert len(set(map(repr, RECIPES.values()))) == len(RECIPES)


def test_the_repr_of_a_pruner_is_the_expression_that_makes_it() -> None:
    pruner = replace(BY_MAGNITUDE, unit=units.block(4, 1), selection=selections.swaps(3))
    assert repr(pruner) == (
        "Pruner(fisher=None, saliency=magnitude, update=zero, unit=block(4, 1), scope=global_, "
        "first_order=False, selection=swaps(max_steps=3, start=greedy), cost=weights, "
        "max_layer_sparsity=1.0, normalize_by=None)"
    )
    names = {
        "Pruner": Pruner,
        **vars(saliencies),
        **vars(updates),
        **vars(units),
        **vars(scopes),
        **vars(selections),
        **vars(costs),
    }
    assert eval(repr(pruner), names) == pruner


def test_replace_changes_one_field() -> None:
    changed = replace(Pruner(), fisher=mfac(500), max_layer_sparsity=0.9)
    assert changed == Pruner(mfac(500), max_layer_sparsity=0.9)


def test_asdict_gives_the_settings() -> None:
    settings = asdict(Pruner(mfac(500, 1e-3), selection=selections.swaps(3)))
    assert settings["fisher"]["count"] == 500
    assert settings["fisher"]["damping"] == 1e-3
    assert settings["selection"] == {"max_steps": 3, "start": selections.greedy}
    assert settings["saliency"] is saliencies.obs
    assert settings["max_layer_sparsity"] == 1.0


def test_a_unit_block_is_a_value() -> None:
    assert units.block(4, 1) == units.block(4, 1) != units.block(4)
    assert pickle.loads(pickle.dumps(units.block(4, 1))) == units.block(4, 1)
    assert repr(units.block(4, 1)) == "block(4, 1)"


def test_what_prunes_is_a_pruning_recipe() -> None:
    batches = [(torch.ones(2, 3), torch.tensor([0, 1]))]
    assert isinstance(Pruner(), PruningRecipe)
    assert isinstance(DampingSearch(Pruner(), batches), PruningRecipe)
    assert not isinstance(mfac(500), PruningRecipe)
    assert not isinstance(lambda objective, sparsity: None, PruningRecipe)


def test_the_namespaces_hold_the_recipes() -> None:
    names = {
        "units": ["single", "block", "output_channels", "input_channels", "custom"],
        "scopes": ["global_", "layerwise", "consecutive"],
        "costs": ["weights", "flops", "power"],
        "saliencies": ["magnitude", "obd", "obs", "woodtaylor"],
        "updates": ["zero", "independent", "joint"],
        "selections": [
            "greedy",
            "iterative_greedy",
            "swaps",
            "iterative_hard_thresholding",
            "exhaustive",
        ],
    }
    for namespace, members in names.items():
        for member in members:
            assert callable(getattr(getattr(woodbury, namespace), member))
    space = ParameterSpace.from_model(torch.nn.Linear(4, 2, bias=False))
    assert [groups.tolist() for groups in woodbury.units.block(4)(space)] == [
        [[0, 1, 2, 3], [4, 5, 6, 7]]
    ]
