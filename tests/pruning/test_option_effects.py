"""Every option of a Pruner does what it is for, on problems small enough to know the answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.random import normal
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.estimation.recipes import (
    diagonal_fisher,
    gauss_newton,
    hessian_diagonal,
    kfac,
    mfac,
    woodfisher,
)
from woodbury.fisher.base import Fisher
from woodbury.fisher.dense import Dense
from woodbury.fisher.diagonal import Diagonal
from woodbury.fisher.lowrank import LowRank
from woodbury.model.likelihood import squared_error
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.pruning.pruned import Pruned
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.saliencies import magnitude, obd, obs, woodtaylor
from woodbury.pruning.scopes import consecutive, global_, layerwise
from woodbury.pruning.selections.greedy_selection import Selection, greedy, iterative_greedy
from woodbury.pruning.selections.local_search import iterative_hard_thresholding, swaps
from woodbury.pruning.selections.subset_search import exhaustive
from woodbury.pruning.semi_structured import n_of_m
from woodbury.pruning.units import block, custom, input_channels, output_channels, single
from woodbury.pruning.updates import independent, joint, zero

SEEDS = range(8)
SEARCHES = {"swaps": swaps, "iterative hard thresholding": iterative_hard_thresholding}


def classifier(seed: int = 0) -> Objective:
    """Two matrices of 4 × 6 and 3 × 4 weights on 40 samples of three classes."""
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False))
    model.double()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=10 * seed + index))
    inputs = normal(40, 6, seed=10 * seed + 7)
    return Objective.from_model(model, [(inputs, torch.arange(40) % 3)])


def interacting(seed: int) -> Fisher:
    """On 36 weights, whose rows have a common direction: removed weights interact strongly."""
    rows = normal(40, 36, seed=seed) + 2 * normal(1, 36, seed=seed + 1000)
    return LowRank(rows, 1e-2)


def predicted(fisher: Fisher, seed: int, **options: Any) -> float:
    """The predicted increase of the loss when 25 of 36 weights are removed."""
    increase = Pruner(lambda _: fisher, **options)(classifier(seed), 0.7).predicted
    assert increase is not None
    return increase


def removed_by_layer(pruned: Pruned) -> list[int]:
    parts = pruned.objective.space.slices.values()
    return [int((~pruned.keep[part]).sum()) for part in parts]


def costs_of_layers(*each: float) -> Any:
    return lambda space: torch.tensor(each, dtype=torch.float64)[space.tensor_index()]


DEFAULT: dict[str, Any] = {"fisher": mfac(40, 1e-2)}
OPTIONS: dict[str, dict[str, Any]] = {
    "damping": {"fisher": mfac(40, 1.0)},
    "count": {"fisher": mfac(20, 1e-2)},
    "block of mfac": {"fisher": mfac(40, 1e-2, block=4)},
    "batch": {"fisher": mfac(20, 1e-2, batch=2)},
    "woodfisher": {"fisher": woodfisher(40, 6, 1e-2)},
    "kfac": {"fisher": kfac(40, 1e-2)},
    "gauss_newton": {"fisher": gauss_newton(mfac(40, 1e-2), 1)},
    "diagonal_fisher": {"fisher": diagonal_fisher(40, 1e-2)},
    "hessian_diagonal": {"fisher": hessian_diagonal(40, 1e-2)},
    "magnitude": {"saliency": magnitude},
    "obd": {"saliency": obd},
    "woodtaylor": {"saliency": woodtaylor, "first_order": True},
    "first_order": {"first_order": True},
    "zero": {"update": zero},
    "independent": {"update": independent},
    "block": {"unit": block(2)},
    "block of inputs": {"unit": block(1, 2)},
    "output_channels": {"unit": output_channels},
    "input_channels": {"unit": input_channels},
    "custom": {"unit": custom([{"0.weight": 0}, {"0.weight": slice(1, 3)}, {"2.weight": 1}])},
    "layerwise": {"scope": layerwise},
    "consecutive": {"scope": consecutive(2)},
    "consecutive along outputs": {"scope": consecutive(2, {"0.*": 0, "*": 1})},
    "iterative_greedy": {"selection": iterative_greedy(4)},
    "swaps": {"selection": swaps(3)},
    "iterative_hard_thresholding": {"selection": iterative_hard_thresholding(3)},
    "cost": {"cost": costs_of_layers(1, 5)},
    "max_layer_sparsity": {"max_layer_sparsity": 0.5},
    "normalize_by": {"normalize_by": costs_of_layers(1, 50)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_changes_the_pruned_weights(name: str) -> None:
    """An option that were read nowhere would leave them as they are."""
    pruned = Pruner(**{**DEFAULT, **OPTIONS[name]})(classifier(), 0.4)
    by_default = Pruner(**DEFAULT)(classifier(), 0.4)
    assert not torch.allclose(pruned.weights, by_default.weights)


def test_the_joint_update_predicts_the_least_increase() -> None:
    for seed in SEEDS:
        fisher = interacting(seed)
        least = predicted(fisher, seed, update=joint)
        assert least < predicted(fisher, seed, update=independent)
        assert least < predicted(fisher, seed, update=zero)


def test_curvature_in_the_saliency_lowers_the_predicted_increase() -> None:
    """With a diagonal Fisher the lowest obs scores are the best choice, which magnitude misses."""
    for seed in SEEDS:
        fisher = Diagonal(normal(36, seed=seed).square(), 1e-3)
        by_magnitude = predicted(fisher, seed, saliency=magnitude)
        assert predicted(fisher, seed, saliency=obs) < 0.8 * by_magnitude
        assert predicted(fisher, seed, saliency=obd) < 0.8 * by_magnitude


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_each_step_of_a_local_search_lowers_the_predicted_increase(search: Any) -> None:
    lowered = 0
    for seed in SEEDS:
        fisher = interacting(seed)
        before = predicted(fisher, seed, selection=greedy)
        for max_steps in (1, 2, 4, 16):
            after = predicted(fisher, seed, selection=search(max_steps))
            assert after <= before
            lowered += after < before
            before = after
    assert lowered >= len(SEEDS)


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_a_local_search_goes_on_from_its_start(search: Any) -> None:
    lowered = 0
    for seed in SEEDS:
        fisher = interacting(seed)
        start = iterative_greedy(3)
        before = predicted(fisher, seed, selection=start)
        after = predicted(fisher, seed, selection=search(20, start))
        assert after <= before
        lowered += after < before
    assert lowered


def test_more_inner_steps_lower_the_predicted_increase() -> None:
    totals = {
        steps: sum(
            predicted(interacting(seed), seed, selection=iterative_greedy(steps)) for seed in SEEDS
        )
        for steps in (1, 2, 8)
    }
    by_greedy = sum(predicted(interacting(seed), seed) for seed in SEEDS)
    assert totals[1] == pytest.approx(by_greedy, rel=1e-12)
    assert totals[8] < totals[2] < 0.9 * totals[1]


def pair() -> tuple[Objective, Fisher]:
    """Four weights, of which the first two do the same.

    To remove one of these costs 0.01, as the other takes over, but to remove both costs 2. To
    remove one of the others costs 0.07.
    """
    model = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1.0, 1.2, 1.2]]))
    curvature = torch.eye(4, dtype=torch.float64)
    curvature[0, 1] = curvature[1, 0] = 0.99
    curvature[2, 2] = curvature[3, 3] = 0.1
    batches = [(torch.ones(1, 4, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))]
    return Objective.from_model(model, batches, squared_error), Dense(curvature, 1e-9)


@pytest.mark.parametrize(
    ("selection", "scope", "kept_of_pair", "increase"),
    [
        (greedy, global_, 0, 1.99),
        (iterative_greedy(1), global_, 0, 1.99),
        (iterative_greedy(2), global_, 1, 0.082),
        (swaps(1), global_, 2, 0.144),
        (iterative_hard_thresholding(1), global_, 2, 0.144),
        (exhaustive, consecutive(4), 1, 0.082),
    ],
    ids=["greedy", "one inner step", "inner steps", "swaps", "thresholding", "exhaustive"],
)
def test_selections_that_see_interactions_keep_one_of_two_equal_weights(
    selection: Selection, scope: Any, kept_of_pair: int, increase: float
) -> None:
    objective, fisher = pair()
    pruned = Pruner(lambda _: fisher, selection=selection, scope=scope)(objective, 0.5)
    assert int(pruned.keep.sum()) == 2
    assert int(pruned.keep[:2].sum()) == kept_of_pair
    assert pruned.predicted == pytest.approx(increase, abs=1e-3)


def test_two_of_four_keeps_two_and_chooses_the_best_two() -> None:
    objective, fisher = pair()
    sparsity, pruner = n_of_m(2, 4, Pruner(lambda _: fisher))
    assert pruner(objective, sparsity).predicted == pytest.approx(0.082, abs=1e-3)
    wide = Objective.from_model(nn.Linear(8, 3, bias=False).double(), [])
    rows = normal(5, 24) + 2 * normal(1, 24, seed=1)
    sparsity, pruner = n_of_m(1, 4, Pruner(lambda _: LowRank(rows, 1e-2)))
    pruned = pruner(wide, sparsity)
    assert pruned.sparsity == 0.75
    assert (pruned.keep.view(6, 4).sum(1) == 1).all()


@pytest.mark.parametrize("unit", [block(4), block(1, 2), output_channels, input_channels])
def test_units_are_removed_whole(unit: Any) -> None:
    pruned = Pruner(mfac(40, 1e-2), unit=unit)(classifier(), 0.5)
    groups = unit(ParameterSpace.from_model(classifier().model))
    assert 0 < int((~pruned.keep).sum()) <= 18
    for members in groups:
        kept = pruned.keep[members]
        assert (kept.all(1) | ~kept.any(1)).all()
    of_single_weights = Pruner(mfac(40, 1e-2), unit=single)(classifier(), 0.5)
    assert not torch.equal(pruned.keep, of_single_weights.keep)


def small_second_layer() -> Objective:
    """The second layer's weights are a hundredth of the first's: globally all of them go first."""
    objective = classifier()
    weights = objective.weights.clone()
    weights[24:] *= 0.01
    return objective.at(weights, objective.space)


BY_MAGNITUDE: dict[str, Any] = {"fisher": None, "saliency": magnitude, "update": zero}


@pytest.mark.parametrize(
    ("options", "removed"),
    [
        ({}, [6, 12]),
        ({"scope": layerwise}, [12, 6]),
        ({"max_layer_sparsity": 0.75}, [9, 9]),
        ({"max_layer_sparsity": 0.5}, [12, 6]),
        # Half of a cost of 24 · 1 + 12 · 4 = 72 are 12 · 3 of the second layer's 12 · 4.
        ({"cost": costs_of_layers(1, 4)}, [0, 9]),
        ({"normalize_by": costs_of_layers(1e9, 1)}, [18, 0]),
    ],
    ids=["global", "layerwise", "three quarters", "half", "cost", "normalize_by"],
)
def test_where_weights_are_removed(options: dict[str, Any], removed: list[int]) -> None:
    pruned = Pruner(**BY_MAGNITUDE, **options)(small_second_layer(), 0.5)
    assert removed_by_layer(pruned) == removed


def test_targets_by_name_are_those_of_their_layers() -> None:
    pruned = Pruner(**BY_MAGNITUDE)(small_second_layer(), {"0.*": 0.75, "*": 0.25})
    assert removed_by_layer(pruned) == [18, 3]


def test_the_first_order_term_lowers_the_loss_of_a_network_that_is_not_converged() -> None:
    """Least squares with the exact Hessian: the step goes to the minimum of the kept weights."""
    inputs = normal(40, 6) @ normal(6, 6, seed=1)
    target = inputs @ normal(6, 1, seed=2)
    model = nn.Linear(6, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(normal(1, 6, seed=3))
    objective = Objective.from_model(model, [(inputs, target)], squared_error)
    hessian = Dense(inputs.mT @ inputs / 40, 1e-13)
    losses = {}
    for first_order in (False, True):
        pruner = Pruner(lambda _: hessian, obs, joint, first_order=first_order)
        pruned = pruner(objective, 0.5)
        losses[first_order] = pruned.objective.loss()
        assert pruned.steps[0].trust == (1.0 if first_order else None)
    best = least_squares_loss(inputs[:, pruned.keep], target)
    assert losses[True] == pytest.approx(best, rel=1e-8)
    assert losses[True] < 0.5 * losses[False]


def least_squares_loss(inputs: Tensor, target: Tensor) -> float:
    residuals = target - inputs @ torch.linalg.lstsq(inputs, target).solution
    return 0.5 * float(residuals.square().sum(1).mean())


def test_the_budget_is_made_once_for_a_stage() -> None:
    calls = []

    def counted(space: ParameterSpace) -> Tensor:
        calls.append(space)
        return global_(space)

    pruner = Pruner(mfac(40, 1e-2), scope=counted)
    pruner(classifier(), 0.5)
    assert len(calls) == 1
    pruner.check(classifier().space, 0.5)
    assert len(calls) == 2


def test_a_prepared_budget_is_taken_as_it_is() -> None:
    objective = classifier()
    pruner = Pruner(mfac(40, 1e-2))
    quadratic = pruner.quadratic(objective)
    prepared = pruner.on_quadratic(quadratic, objective, 0.5, pruner.budget(objective.space, 0.5))
    assert torch.equal(prepared.weights, pruner.on_quadratic(quadratic, objective, 0.5).weights)
    other = pruner.on_quadratic(quadratic, objective, 0.5, pruner.budget(objective.space, 0.25))
    assert other.sparsity == 0.25


def test_impossible_options_are_refused_before_any_gradient() -> None:
    def no_gradient(objective: Objective) -> Fisher:
        raise AssertionError("the Fisher was estimated")

    for options, sparsity, sentence in (
        ({"max_layer_sparsity": 0.3}, 0.5, "Only 11 of 18 requested removals"),
        ({"max_layer_sparsity": 1.5}, 0.5, "max_layer_sparsity is 1.5"),
        ({"unit": block(5)}, 0.5, "do not tile"),
        ({"scope": consecutive(5)}, 0.5, "Groups of 5 do not divide"),
        ({}, 1.0, "sparsity is 1.0"),
        ({}, "0.5", "sparsity is 0.5"),
    ):
        with pytest.raises(WoodburyError, match=sentence):
            Pruner(no_gradient, **options)(classifier(), sparsity)
