"""Local search and inner steps against all subsets of a small problem."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from support.random import normal
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher
from woodbury.fisher.dense import Dense
from woodbury.fisher.lowrank import LowRank
from woodbury.model.space import ParameterSpace
from woodbury.pruning.budget import Budget, budget_for
from woodbury.pruning.costs import weights
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.saliencies import magnitude, obs
from woodbury.pruning.scopes import global_, layerwise
from woodbury.pruning.selections.greedy_selection import Selection, greedy, iterative_greedy
from woodbury.pruning.selections.local_search import iterative_hard_thresholding, swaps
from woodbury.pruning.units import block, single
from woodbury.pruning.updates import joint

SPACE = ParameterSpace.from_model(
    nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False))
)  # 6 + 4 weights
SELECTIONS = {
    "greedy": greedy,
    "iterative_greedy": iterative_greedy(6),
    "swaps": swaps(30),
    "iterative_hard_thresholding": iterative_hard_thresholding(30),
}


def problem(seed: int, gradient: bool = False) -> Quadratic:
    """Few rows with a common direction: the weights interact strongly."""
    rows = normal(5, 10, seed=seed) + 2 * normal(1, 10, seed=seed + 1000)
    return Quadratic(
        normal(10, seed=seed + 1),
        LowRank(rows, 1e-2),
        0.1 * normal(10, seed=seed + 2) if gradient else None,
    )


def increase(quadratic: Quadratic, keep: Tensor) -> float:
    return quadratic.increase(joint(quadratic, keep))


def rules(sparsity: float = 0.6, scope=global_, unit=single) -> Budget:
    return budget_for(SPACE, sparsity, unit, scope, weights)


def best(quadratic: Quadratic) -> float:
    """The least increase over all subsets of 6 of 10."""
    found = []
    for gone in combinations(range(10), 6):
        keep = torch.ones(10, dtype=torch.bool)
        keep[list(gone)] = False
        found.append(increase(quadratic, keep))
    return min(found)


def chosen(
    selection: Selection, quadratic: Quadratic, rules_: Budget | None = None, saliency=obs
) -> Tensor:
    return selection(quadratic, rules_ or rules(), saliency)


@pytest.mark.parametrize("gradient", [False, True])
def test_local_search_is_never_worse_and_nearer_to_the_best_subset(gradient: bool) -> None:
    excess = dict.fromkeys(SELECTIONS, 0.0)
    for seed in range(12):
        quadratic = problem(seed, gradient)
        truth, start = best(quadratic), increase(quadratic, chosen(greedy, quadratic))
        for name, selection in SELECTIONS.items():
            keep = chosen(selection, quadratic)
            assert int((~keep).sum()) == 6
            found = increase(quadratic, keep)
            assert found >= truth - 1e-12
            if name in ("swaps", "iterative_hard_thresholding"):
                assert found <= start + 1e-12
            excess[name] += found - truth
    assert excess["swaps"] < 0.6 * excess["greedy"]
    assert excess["iterative_greedy"] < excess["greedy"]
    assert excess["iterative_hard_thresholding"] < excess["greedy"]


def test_local_search_is_optimal_when_weights_do_not_interact() -> None:
    diagonal = Dense(torch.diag(normal(10, seed=4).square()), 1e-3)
    quadratic = Quadratic(normal(10), diagonal)
    for selection in (swaps(30, _worst), iterative_hard_thresholding(30, _worst)):
        assert increase(quadratic, chosen(selection, quadratic)) == pytest.approx(best(quadratic))


def _worst(quadratic: Quadratic, rules_: Budget, saliency) -> Tensor:
    return rules_.keep(rules_.cheapest(-saliency(quadratic, None)))


def test_thresholded_steps_are_lengthened_where_the_exact_one_exchanges_nothing() -> None:
    """As in large networks: far more weights than rows, and an exact step too short for any."""
    quadratic = Quadratic(normal(400, seed=6), LowRank(normal(20, 400), 1e-3))
    space = ParameterSpace.from_model(nn.Linear(20, 20, bias=False))
    limits = budget_for(space, 0.9, single, global_, weights)
    start = greedy(quadratic, limits, magnitude)
    found = iterative_hard_thresholding(20)(quadratic, limits, magnitude)
    assert int(found.sum()) == int(start.sum()) == 40 and not torch.equal(found, start)
    assert increase(quadratic, found) < 0.8 * increase(quadratic, start)


def test_one_weight_a_step_is_optimal_brain_surgeon() -> None:
    quadratic = problem(3)
    matrix = quadratic.fisher @ torch.eye(10, dtype=torch.float64)  # type: ignore[operator]
    left, value = list(range(10)), quadratic.weights.clone()
    for _ in range(6):
        inverse = torch.linalg.inv(matrix[left][:, left])
        worst = int((value[left].square() / inverse.diagonal()).argmin())
        value[left] = value[left] - inverse[:, worst] * value[left[worst]] / inverse[worst, worst]
        del left[worst]
    assert chosen(iterative_greedy(6), quadratic).nonzero()[:, 0].tolist() == left


@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=list(SELECTIONS))
def test_budgets_per_layer_are_kept(selection: Selection) -> None:
    for seed in range(4):
        keep = chosen(selection, problem(seed), rules(0.5, layerwise))
        assert [int((~keep[:6]).sum()), int((~keep[6:]).sum())] == [3, 2]


@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS)
def test_nothing_to_remove_and_nothing_but_zeros_to_remove(selection: Selection) -> None:
    quadratic = problem(0)
    assert bool(chosen(selection, quadratic, rules(0.0)).all())
    zeros = torch.arange(10) < 6
    sparse = Quadratic(quadratic.weights.masked_fill(zeros, 0), quadratic.fisher)
    assert torch.equal(~chosen(selection, sparse), zeros)


def test_inner_steps_of_blocks_and_of_no_fisher() -> None:
    keep = chosen(iterative_greedy(3), problem(1), rules(0.6, unit=block(2)))
    assert keep.view(5, 2).all(1).sum() == 2 == keep.sum() / 2
    plain = Quadratic(normal(10))
    assert torch.equal(
        chosen(iterative_greedy(4), plain, saliency=magnitude),
        chosen(greedy, plain, saliency=magnitude),
    )


def test_the_restricted_quadratic_is_at_its_optimum() -> None:
    for gradient in (False, True):
        quadratic, keep = problem(2, gradient), torch.arange(10) % 3 > 0
        smaller = quadratic.restrict(keep)
        torch.testing.assert_close(
            smaller.weights, (quadratic.weights + joint(quadratic, keep))[keep]
        )
        assert isinstance(smaller.fisher, Fisher)
        further = torch.ones(6, dtype=torch.bool)
        further[1] = False
        both = keep.clone()
        both[keep.nonzero()[1, 0]] = False
        direct = (quadratic.weights + joint(quadratic, both))[both]
        torch.testing.assert_close((smaller.weights + joint(smaller, further))[further], direct)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: swaps(0), "at least 1"),
        (lambda: iterative_hard_thresholding(-1), "at least 1"),
        (lambda: iterative_greedy(0), "from 1 to"),
        (lambda: chosen(swaps(2), problem(0), rules(0.6, unit=block(2))), "one for one"),
        (
            lambda: chosen(swaps(2, _worst), Quadratic(normal(10)), saliency=magnitude),
            "needs a Fisher",
        ),
    ],
)
def test_bad_input_is_refused(call, says: str) -> None:
    with pytest.raises(WoodburyError, match=says):
        call()
