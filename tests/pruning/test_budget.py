"""Budgets in any cost, targets per layer, max layer sparsity, and errors before any work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.model.space import ParameterSpace
from woodbury.pruning.budget import Budget, budget_for
from woodbury.pruning.costs import power, weights
from woodbury.pruning.feasibility import check_reachable, current_sparsity, exceeds
from woodbury.pruning.scopes import consecutive, global_, layerwise
from woodbury.pruning.units import block, custom, output_channels, single

SPACE = ParameterSpace.from_model(
    nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2), nn.Linear(2, 10)), min_ndim=2
)  # 20, 10, 20
PARTS = list(SPACE.slices.values())


def costs_of_layers(*each: float) -> Any:
    """A cost per weight of each of the three layers, as a table of latencies would give."""
    return lambda space: torch.tensor(each, dtype=torch.float64)[space.tensor_index()]


def budget_of(
    targets: Any = 0.5, unit: Any = single, scope: Any = global_, cost: Any = weights, **more: Any
) -> Budget:
    return budget_for(more.pop("space", SPACE), targets, unit, scope, cost, **more)


def scores_of(made: Budget, seed: int = 0) -> Tensor:
    return torch.rand(
        len(made.costs), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


@given(
    target=st.floats(0, 0.99),
    costs=st.lists(st.floats(0.1, 50), min_size=3, max_size=3),
    seed=st.integers(0, 9),
)
@example(target=0.75, costs=[1.0, 1.0, 1.0], seed=0)  # 37.5 of 50 weights
@pytest.mark.parametrize("unit", [single, block(2), output_channels])
def test_a_budget_of_costs_is_met_within_one_unit(
    unit: Any, target: float, costs: list[float], seed: int
) -> None:
    made = budget_of(target, unit, cost=costs_of_layers(*costs))
    remove = made.cheapest(scores_of(made, seed))
    each = costs_of_layers(*costs)(SPACE)
    removed = float(each[~made.keep(remove)].sum())
    wanted = target * float(each.sum())
    if costs == [1.0, 1.0, 1.0]:  # the cost counts weights, and a target is a whole number of them
        wanted = round(wanted)
    assert wanted - float(made.costs.max()) < removed + 1e-9
    assert removed <= wanted * (1 + 1e-9)


def test_single_weights_are_exact() -> None:
    for target, count in ((0.0, 0), (0.31, 16), (0.5, 25), (0.9, 45)):
        made = budget_of(target)
        assert int(made.cheapest(scores_of(made)).sum()) == count


def test_targets_for_each_layer() -> None:
    for scope in (global_, layerwise):
        made = budget_of({"0.*": 0.0, "2.weight": 0.8, "*": 0.9}, scope=scope)
        gone = ~made.keep(made.cheapest(scores_of(made)))
        assert [int(gone[part].sum()) for part in PARTS] == [0, 9, 16]


def test_a_group_of_layers_shares_its_target() -> None:
    made = budget_of({"1.weight": 0.0, "*": 0.5})
    scores = torch.arange(50, dtype=torch.float64)
    gone = ~made.keep(made.cheapest(scores))
    assert [int(gone[part].sum()) for part in PARTS] == [20, 0, 0]


def test_costs_and_divisors_are_sums_over_the_unit() -> None:
    made = budget_of(
        0.5,
        output_channels,
        cost=costs_of_layers(1, 2, 3),
        normalize_by=power(costs_of_layers(4, 9, 16), 0.5),
    )
    first = torch.cat([some[:, 0] for some in made.groups or ()])
    layer = SPACE.tensor_index()[first]
    size = torch.tensor([4.0, 5.0, 2.0], dtype=torch.float64)[layer]
    assert torch.equal(made.costs, size * (layer + 1))
    torch.testing.assert_close(made.divisors, size * (layer + 2))
    assert torch.equal(made.layers, layer)


def test_scores_are_divided_by_what_a_weight_costs() -> None:
    made = budget_of(0.4, normalize_by=costs_of_layers(1, 1, 100))
    gone = ~made.keep(made.cheapest(torch.full((50,), 0.5, dtype=torch.float64)))
    assert [int(gone[part].sum()) for part in PARTS] == [0, 0, 20]


def test_scores_are_divided_by_the_cost_by_default() -> None:
    """Most of the cost lies in the last layer: there equal scores buy the most of it."""
    made = budget_of(0.4, cost=costs_of_layers(1, 1, 10))
    gone = ~made.keep(made.cheapest(torch.full((50,), 0.5, dtype=torch.float64)))
    assert [int(gone[part].sum()) for part in PARTS] == [0, 0, 9]
    assert (
        budget_of().divisors is None and budget_of(0.4, block(2)).divisors is None
    )  # equal units: nothing to divide
    plain = budget_of(0.4, cost=costs_of_layers(1, 1, 10), normalize_by=weights)
    assert plain.divisors is None


@given(target=st.floats(0.1, 0.85), seed=st.integers(0, 50))
def test_no_layer_loses_more_than_its_max_sparsity(target: float, seed: int) -> None:
    made = budget_of(target, max_layer_sparsity=0.9)
    scores = scores_of(made, seed) * torch.tensor([1.0, 100.0, 1e4])[SPACE.tensor_index()]
    gone = ~made.keep(made.cheapest(scores))
    assert int(gone.sum()) == round(50 * target)
    assert all(int(gone[part].sum()) <= 0.9 * (part.stop - part.start) + 1e-9 for part in PARTS)


def test_max_layer_sparsity_counts_what_is_removed_already() -> None:
    keep = torch.ones(50, dtype=torch.bool)
    keep[:15] = False
    made = budget_of(0.5, space=SPACE.restrict(keep), max_layer_sparsity=0.8)
    remove = made.cheapest(torch.arange(35, dtype=torch.float64))
    assert (
        int(remove.sum()) == 10 and remove[:1].all() and int(remove[:5].sum()) == 1
    )  # 16 of 20 may go


def test_the_budget_after_removing_is_that_of_the_restricted_space() -> None:
    for unit in (single, output_channels):
        for more in ({}, {"max_layer_sparsity": 0.95, "normalize_by": costs_of_layers(3, 2, 1)}):
            made = budget_of(0.7, unit, layerwise, cost=costs_of_layers(1, 2, 3), **more)
            remove = made.first_step_of(3).cheapest(scores_of(made))
            left = made.after_removing(remove)
            anew = budget_of(
                0.7,
                unit,
                layerwise,
                cost=costs_of_layers(1, 2, 3),
                space=SPACE.restrict(made.keep(remove)),
                **more,
            )
            for name in (
                "costs",
                "pools",
                "pool_budgets",
                "layers",
                "layer_limits",
                "divisors",
            ):
                torch.testing.assert_close(getattr(left, name), getattr(anew, name))
            for some, other in zip(left.groups or (), anew.groups or (), strict=True):
                assert torch.equal(some, other)


def test_consecutive_pools_lie_along_the_inputs() -> None:
    space = ParameterSpace.from_model(
        nn.Sequential(nn.Conv2d(4, 3, 2), nn.Linear(6, 4)), min_ndim=2
    )
    labels = consecutive(2)(space)
    kernel, matrix = labels[:48].view(3, 4, 2, 2), labels[48:].view(4, 6)
    assert torch.equal(kernel[:, 0], kernel[:, 1]) and torch.equal(matrix[:, ::2], matrix[:, 1::2])
    assert torch.bincount(labels).tolist() == [2] * 36
    transposed = consecutive(2, {"1.*": 0})(space)
    assert torch.equal(transposed[48:].view(4, 6)[::2], transposed[48:].view(4, 6)[1::2])
    assert torch.equal(transposed[:48], labels[:48])


def test_consecutive_pools_keep_n_of_m() -> None:
    made = budget_of(
        0.5, scope=consecutive(2, 0), space=ParameterSpace.from_model(nn.Linear(4, 6), min_ndim=2)
    )
    assert (made.pool_budgets == 1).all()
    keep = made.keep(made.cheapest(scores_of(made)))
    assert (keep.view(3, 2, 4).sum(1) == 1).all()


COUPLED = custom([{"0.weight": 0, "1.weight": (slice(None), 0)}])


IN_PAIRS = custom([{"0.weight": row, "1.weight": (slice(None), row)} for row in range(5)])
"""Each output of the first layer with all that reads it."""


def test_units_of_two_tensors_share_a_limit_and_no_tensor_exceeds_it() -> None:
    unit = custom([*(_parts(row) for row in range(5)), *({"2.weight": row} for row in range(10))])
    made = budget_of(0.5, unit, max_layer_sparsity=0.6)
    # The pairs are the cheapest, so that without a limit all of them are removed.
    scores = torch.arange(len(made.costs), dtype=torch.float64)
    by_size = torch.tensor([groups.shape[1] for groups in made.groups or ()])
    assert by_size.tolist() == [2, 6]
    scores[-5:] -= 100
    keep = made.keep(made.cheapest(scores))
    shares = [1 - float(keep[part].double().mean()) for part in PARTS]
    assert shares == pytest.approx([0.6, 0.6, 0.3])  # 3 of 5 pairs; 3 more rows: 18 + 6 of 25
    free = budget_of(0.5, unit)
    assert not free.keep(free.cheapest(scores - 1000 * (scores < 0)))[PARTS[0]].all()

    # What earlier stages removed counts: 2 of the 3 pairs that may be removed are.
    rest = budget_of(0.5, unit, space=SPACE.restrict(_without_pairs(2)), max_layer_sparsity=0.6)
    scores = torch.arange(len(rest.costs), dtype=torch.float64)
    scores[-3:] -= 100
    assert int(rest.cheapest(scores)[-3:].sum()) == 1


def _parts(row: int) -> dict[str, Any]:
    return {"0.weight": row, "1.weight": (slice(None), row)}


def _without_pairs(count: int) -> Tensor:
    keep = SPACE.unflatten(torch.ones(SPACE.n))
    keep["0.weight"][:count] = 0
    keep["1.weight"][:, :count] = 0
    return torch.cat([each.flatten() for each in keep.values()]).bool()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"targets": 1.0}, "sparsity is 1.0"),
        ({"targets": float("nan")}, "sparsity is nan"),
        ({"targets": {"0.*": 0.5}}, r"No target is given for '1\.weight'"),
        ({"targets": {"conv*": 0.5, "*": 0.9}}, r"The target 'conv\*' matches no parameter"),
        ({"targets": {"0.*": 1.5, "*": 0.9}}, "sparsity is 1.5"),
        (
            {"cost": costs_of_layers(1, 0, 1)},
            r"A cost in '1\.weight' is zero, negative or not finite",
        ),
        ({"cost": costs_of_layers(1, 1, float("nan"))}, r"A cost in '2\.weight'"),
        ({"cost": costs_of_layers(-1, 1, 1)}, r"A cost in '0\.weight'"),
        (
            {"cost": lambda space: torch.ones(7)},
            r"The cost gave shape \(7,\): give one number for each of 50",
        ),
        ({"normalize_by": costs_of_layers(1, 0, 1)}, r"A cost in '1\.weight' is zero"),
        ({"unit": block(4), "targets": 0.5}, r"do not tile '1\.weight'"),
        (
            {"scope": consecutive(4)},
            r"Groups of 4 do not divide the 5 weights along dimension 1 of '1\.weight'",
        ),
        ({"scope": consecutive(0)}, "size is 0: it is the number of weights in a pool"),
        ({"scope": consecutive(2, 2)}, r"'0\.weight' has shape \(5, 4\) and no dimension 2"),
        (
            {"scope": consecutive(2, {"1.*": 0, "*": -1}), "unit": output_channels},
            r"begins in '0\.weight' lies in two scopes",
        ),
        (
            {"scope": layerwise, "unit": COUPLED, "targets": 0.1},
            "lies in two scopes, or two targets",
        ),
        (
            {"targets": {"0.*": 0.1, "*": 0.2}, "unit": COUPLED},
            "lies in two scopes, or two targets",
        ),
        (  # rows of the first and columns of the second are 20 + 10 of 50 weights, 80 % of them 24
            {"unit": IN_PAIRS, "targets": 0.6, "max_layer_sparsity": 0.8},
            "Only 24 of 30 requested removals",
        ),
        ({"max_layer_sparsity": 0.4}, "Only 20 of 25 requested removals"),
        (
            {"targets": {"1.*": 0.9, "*": 0.2}, "max_layer_sparsity": 0.8},
            "Only 8 of 9 requested removals",
        ),
        ({"max_layer_sparsity": 0.0}, "max_layer_sparsity is 0.0"),
        ({"max_layer_sparsity": 1.1}, "max_layer_sparsity is 1.1"),
        ({"max_layer_sparsity": float("nan")}, "max_layer_sparsity is nan"),
        ({"unit": custom([{"0.weight": 0}])}, "Only 4 of 25 requested removals"),
    ],
)
def test_impossible_budgets_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(WoodburyError, match=says):
        budget_of(**given)


def test_a_sparsity_below_the_present_one_is_refused() -> None:
    keep = torch.ones(50, dtype=torch.bool)
    keep[:30] = False
    with pytest.raises(WoodburyError, match=r"below the 0\.6000 reached"):
        budget_of(0.5, space=SPACE.restrict(keep))


@given(seed=st.integers(0, 99), cost=st.sampled_from([0.1, 1 / 3, 1.7e-12, 3e8 + 0.1]))
def test_the_sparsity_that_is_reached_can_be_asked_for_again(seed: int, cost: float) -> None:
    """Sums of the same costs in another order differ by rounding, which must refuse nothing."""
    keep = torch.rand(50, generator=torch.Generator().manual_seed(seed)) < 0.6
    space = SPACE.restrict(keep)
    costs = costs_of_layers(cost, 3 * cost, cost / 7)
    for targets in (0.99, {"1.*": 0.99, "*": 0.98}):
        reached = current_sparsity(space, targets, costs)
        check_reachable(space, reached, global_, costs)
        budget = budget_of(reached, space=space, cost=costs)
        assert not bool(budget.cheapest(scores_of(budget)).any())


def test_a_sum_exceeds_a_limit_by_more_than_rounding() -> None:
    limit = torch.tensor([0.0, 1.0, 1e9], dtype=torch.float64)
    assert not bool(exceeds(limit * (1 + 1e-10), limit).any())
    assert exceeds(limit * (1 + 1e-8), limit).tolist() == [False, True, True]
    weights_removed = torch.tensor(10**8 + 1, dtype=torch.float64)
    assert bool(exceeds(weights_removed, torch.tensor(10**8, dtype=torch.float64)))
