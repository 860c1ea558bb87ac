"""The exhaustive selection against every subset of every pool."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import pytest
import torch
from support.random import normal
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher
from woodbury.fisher.blocks_of_rows import dense_blocks
from woodbury.fisher.dense import Dense
from woodbury.fisher.lowrank import LowRank
from woodbury.model.space import ParameterSpace
from woodbury.pruning.budget import Budget, budget_for
from woodbury.pruning.costs import weights
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.saliencies import magnitude, obs, woodtaylor
from woodbury.pruning.scopes import consecutive, global_
from woodbury.pruning.selections.greedy_selection import greedy
from woodbury.pruning.selections.subset_search import exhaustive
from woodbury.pruning.semi_structured import n_of_m
from woodbury.pruning.units import block, single
from woodbury.pruning.updates import joint, zero

SPACE = ParameterSpace.from_model(nn.Linear(4, 2), min_ndim=2)  # 2 rows of 4


def correlated(seed: int, size: int = 4) -> Fisher:
    """Two blocks, one for each pool, whose weights interact strongly and never across."""
    rows = normal(9, 8, seed=seed) + 2 * normal(9, 1, seed=seed + 100)
    return dense_blocks(rows, [size] * (8 // size), 0.05)


def posed(n: int, m: int, space: ParameterSpace = SPACE, **more: Any) -> Budget:
    return budget_for(
        space,
        1 - n / m,
        more.pop("unit", single),
        more.pop("scope", consecutive(m)),
        weights,
        **more,
    )


def best_of_all(quadratic: Quadratic, n: int, m: int) -> Tensor:
    """The keep of least true increase over all products of subsets, each with its joint update."""
    subsets = list(combinations(range(m), m - n))
    costs = {}
    for chosen in product(subsets, repeat=8 // m):
        keep = torch.ones(8, dtype=torch.bool)
        keep[[pool * m + place for pool, own in enumerate(chosen) for place in own]] = False
        costs[tuple(keep.tolist())] = quadratic.increase(joint(quadratic, keep))
    return torch.tensor(min(costs, key=costs.__getitem__))


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (1, 2)])
def test_the_best_of_all_subsets_where_pools_do_not_interact(
    n: int, m: int, with_gradient: bool
) -> None:
    better = 0
    for seed in range(8):
        fisher = correlated(seed, m)
        quadratic = Quadratic(
            normal(8, seed=seed), fisher, 0.3 * normal(8, seed=seed + 50) if with_gradient else None
        )
        found = exhaustive(quadratic, posed(n, m), obs)
        assert torch.equal(found, best_of_all(quadratic, n, m))
        first = greedy(quadratic, posed(n, m), woodtaylor if with_gradient else obs)
        better += not torch.equal(found, first)
    assert (
        better or m - n == 1
    )  # the greedy choice is another one, unless a single weight is removed


@pytest.mark.parametrize(
    "fisher", [LowRank(normal(5, 8, seed=1), 0.1), Dense(torch.eye(8).double(), 0.1)]
)
def test_n_of_every_m_are_kept(fisher: Fisher) -> None:
    keep = exhaustive(Quadratic(normal(8, seed=0), fisher), posed(2, 4), obs)
    assert (keep.view(2, 4).sum(1) == 2).all()


def test_a_diagonal_fisher_leaves_nothing_to_enumerate() -> None:
    quadratic = Quadratic(normal(8, seed=3), Dense(torch.diag(normal(8, seed=4).square()), 0.1))
    assert torch.equal(exhaustive(quadratic, posed(2, 4), obs), greedy(quadratic, posed(2, 4), obs))


def test_pools_that_have_lost_some_already_lose_the_rest() -> None:
    keep = torch.ones(8, dtype=torch.bool)
    keep[[0, 5, 6]] = False
    made = posed(2, 4, SPACE.restrict(keep))
    fisher = correlated(0).restrict(keep)
    stays = exhaustive(Quadratic(normal(5, seed=2), fisher), made, obs)
    whole = keep.clone()
    whole[keep] = stays
    assert (whole.view(2, 4).sum(1) == 2).all() and stays[3:].all()


def test_a_pattern_of_the_whole_net(n: int = 2, m: int = 4) -> None:
    sparsity, pruner = n_of_m(n, m, Pruner(None, magnitude, zero))
    assert (sparsity, pruner.selection) == (0.5, greedy)
    sparsity, pruner = n_of_m(1, 4)
    assert (sparsity, pruner.selection) == (0.75, exhaustive)
    labels = torch.arange(2).repeat_interleave(4)
    assert torch.equal(pruner.scope(SPACE), labels)


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda q: exhaustive(Quadratic(q.weights), posed(2, 4), obs), "needs a Fisher"),
        (lambda q: exhaustive(q, posed(2, 4, unit=block(2)), obs), "single weights, of equal cost"),
        (
            lambda q: exhaustive(q, posed(2, 4, max_layer_sparsity=0.9), obs),
            "does not support max_layer_sparsity",
        ),
        (lambda q: n_of_m(4, 4), "The pattern is 4:4"),
        (lambda q: n_of_m(0, 4), "The pattern is 0:4"),
        (lambda q: n_of_m(5, 4), "The pattern is 5:4"),
    ],
)
def test_bad_input_is_refused(act: Any, says: str) -> None:
    with pytest.raises(WoodburyError, match=says):
        act(Quadratic(normal(8, seed=0), correlated(0)))


def test_too_many_subsets_are_refused() -> None:
    space = ParameterSpace.from_model(nn.Linear(40, 1), min_ndim=2)
    quadratic = Quadratic(normal(40, seed=0), Dense(torch.eye(40).double(), 0.1))
    with pytest.raises(WoodburyError, match="137,846,528,820 ways"):
        exhaustive(quadratic, posed(1, 2, space, scope=global_), obs)
