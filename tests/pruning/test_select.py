"""The selection by score: exact counts whatever the ties, budgets of pools, and costs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.model.space import ParameterSpace
from woodbury.pruning.budget import budget_for, select
from woodbury.pruning.costs import weights
from woodbury.pruning.scopes import global_, layerwise
from woodbury.pruning.units import single

UNITS = st.lists(
    st.tuples(st.integers(-2, 2), st.integers(0, 2)), min_size=1, max_size=30
)  # (score, pool), many ties


def ones(scores: Tensor) -> Tensor:
    return torch.ones_like(scores)


@given(units=UNITS, share=st.floats(0, 1))
def test_each_pool_loses_exactly_its_budget_whatever_the_ties(
    units: list[tuple[int, int]], share: float
) -> None:
    scores = torch.tensor(units, dtype=torch.float64).T[0]
    pools = torch.tensor(units)[:, 1]
    budgets = torch.tensor([round(share * int((pools == pool).sum())) for pool in range(3)])
    remove = select(scores, ones(scores), pools, budgets)
    for pool, budget in enumerate(budgets.tolist()):
        in_pool = pools == pool
        assert int((remove & in_pool).sum()) == budget
        if 0 < budget < int(in_pool.sum()):
            assert scores[remove & in_pool].max() <= scores[~remove & in_pool].min()


@given(
    units=st.lists(st.tuples(st.integers(0, 3), st.floats(0.1, 9)), min_size=1, max_size=20),
    budget=st.floats(0, 60),
)
def test_costs_never_exceed_the_budget_and_low_scores_are_removed_first(
    units: list[tuple[int, float]], budget: float
) -> None:
    scores, costs = torch.tensor(units, dtype=torch.float64).T
    remove = select(
        scores,
        costs,
        torch.zeros(len(units), dtype=torch.int64),
        torch.tensor([budget], dtype=torch.float64),
    )
    assert float(costs[remove].sum()) <= budget * (1 + 1e-9)
    order = scores.argsort(stable=True)
    removed = remove[order].tolist()
    assert removed == sorted(removed, reverse=True)  # the lowest scores, without a gap
    if not all(removed):  # and not one fewer than fit
        assert float(costs[order][: sum(removed) + 1].sum()) > budget


def test_ties_are_removed_in_the_order_of_their_index() -> None:
    remove = select(
        torch.zeros(1000),
        torch.ones(1000),
        torch.zeros(1000, dtype=torch.int64),
        torch.tensor([700.0]),
    )
    assert remove.tolist() == [True] * 700 + [False] * 300


def test_pools_without_a_budget_are_kept() -> None:
    remove = select(
        torch.zeros(4), torch.ones(4), torch.tensor([0, 1, 1, 2]), torch.tensor([0.0, 2.0, 0.0])
    )
    assert remove.tolist() == [False, True, True, False]


def test_float_costs_that_add_up_to_the_budget_fit() -> None:
    costs = torch.full((3,), 0.1, dtype=torch.float64)
    assert select(
        torch.zeros(3),
        costs,
        torch.zeros(3, dtype=torch.int64),
        torch.tensor([0.3], dtype=torch.float64),
    ).all()


def test_a_dear_pool_costs_the_others_no_unit_by_rounding() -> None:
    """Beside a cost of 1e9, sums of 0.1 are off by 1e-7."""
    count = 1000
    costs = torch.full((4 * count + 1,), 0.1, dtype=torch.float64)
    costs[0] = 1e9
    remove = select(
        torch.rand(len(costs), generator=torch.Generator().manual_seed(0)),
        costs,
        torch.cat([torch.tensor([0]), torch.arange(1, count + 1).repeat_interleave(4)]),
        torch.full((count + 1,), 0.2, dtype=torch.float64),
    )
    assert not remove[0]
    assert (remove[1:].view(count, 4).sum(1) == 2).all()


@pytest.mark.parametrize(
    ("scores", "costs", "says"),
    [
        ([0.0, float("nan"), 1.0], [1.0, 1.0, 1.0], "unit 1 is not finite"),
        ([0.0, 1.0, float("inf")], [1.0, 1.0, 1.0], "unit 2 is not finite"),
        ([0.0, 1.0, 2.0], [1.0, 0.0, 1.0], "cost is zero"),
        ([0.0, 1.0, 2.0], [1.0, -1.0, 1.0], "cost is zero"),
        ([0.0, 1.0, 2.0], [1.0, float("nan"), 1.0], "cost is zero"),
    ],
)
def test_bad_scores_and_costs_are_refused(
    scores: list[float], costs: list[float], says: str
) -> None:
    with pytest.raises(WoodburyError, match=says):
        select(
            torch.tensor(scores),
            torch.tensor(costs),
            torch.zeros(3, dtype=torch.int64),
            torch.tensor([1.0]),
        )


def net() -> ParameterSpace:
    return ParameterSpace.from_model(
        nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)), min_ndim=2
    )  # 20 and 10 weights


def without(space: ParameterSpace, *removed: int) -> ParameterSpace:
    keep = torch.ones(space.d, dtype=torch.bool)
    keep[list(removed)] = False
    return space.restrict(keep)


def test_scopes() -> None:
    assert global_(net()).tolist() == [0] * 30
    assert layerwise(net()).tolist() == [0] * 20 + [1] * 10
    assert (
        layerwise(without(net(), 3)).tolist() == [0] * 20 + [1] * 10
    )  # over all n weights, removed ones too


@pytest.mark.parametrize(
    ("removed", "sparsity", "everywhere", "per_layer"),
    [
        ((), 0.0, 0, (0, 0)),
        ((), 0.5, 15, (10, 5)),
        ((), 0.34, 10, (7, 3)),  # round(10.2), round(6.8), round(3.4)
        ((0, 1, 25), 0.5, 12, (8, 4)),
        (
            tuple(range(12)),
            0.5,
            3,
            (0, 5),
        ),  # the first layer is beyond its share: nothing is put back
    ],
)
def test_budgets_count_the_weights_removed_already(
    removed: tuple[int, ...], sparsity: float, everywhere: int, per_layer: tuple[int, int]
) -> None:
    space = without(net(), *removed)
    for scope, budgets in ((global_, [everywhere]), (layerwise, per_layer)):
        if sparsity * 30 >= len(removed):
            assert budget_for(
                space, sparsity, single, scope, weights
            ).pool_budgets.tolist() == list(budgets)
