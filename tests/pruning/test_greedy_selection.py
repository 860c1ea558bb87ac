"""Greedy selections and the restricted quadratic against elimination by the dense matrix."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from support import dense
from support.random import normal
from torch import nn

from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher
from woodbury.fisher.blocks_of_rows import dense_blocks
from woodbury.fisher.dense import Dense
from woodbury.fisher.lowrank import LowRank
from woodbury.model.space import ParameterSpace
from woodbury.pruning.budget import budget_for
from woodbury.pruning.costs import weights
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.saliencies import Saliency, magnitude, obs, woodtaylor
from woodbury.pruning.scopes import global_, layerwise
from woodbury.pruning.selections.by_tensor_size import by_size, evenly
from woodbury.pruning.selections.greedy_selection import greedy, iterative_greedy, unit_scores
from woodbury.pruning.units import output_channels, single
from woodbury.pruning.updates import joint

D, DAMPING = 10, 0.05
EYE = torch.eye(D, dtype=torch.float64)
SPACE = ParameterSpace.from_model(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), min_ndim=2)


ROWS = normal(6, D, seed=1) + 1.5 * normal(6, 1, seed=2)
FISHERS = [
    LowRank(ROWS, DAMPING),
    Dense(dense.low_rank(ROWS, 0.0), DAMPING),
    dense_blocks(ROWS, [4, 6], DAMPING),
]


def quadratic_of(fisher: Fisher, with_gradient: bool, seed: int = 0) -> Quadratic:
    return Quadratic(
        normal(D, seed=seed), fisher, 0.4 * normal(D, seed=seed + 70) if with_gradient else None
    )


def surgeon(with_gradient: bool) -> Saliency:
    return woodtaylor if with_gradient else obs


def eliminated(quadratic: Quadratic, count: int) -> list[int]:
    """OBS one weight after the other: each time the one of least increase, others optimal."""
    gone: list[int] = []
    for _ in range(count):
        costs = {}
        for q in set(range(D)) - set(gone):
            keep = torch.ones(D, dtype=torch.bool)
            keep[[*gone, q]] = False
            costs[q] = quadratic.increase(joint(quadratic, keep))
        gone.append(min(costs, key=costs.__getitem__))
    return gone


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("fisher", FISHERS, ids=["low rank", "dense", "blocks"])
def test_one_weight_per_step_is_greedy_elimination(fisher: Fisher, with_gradient: bool) -> None:
    another = 0
    for seed in range(4):
        quadratic = quadratic_of(fisher, with_gradient, seed)
        for count in (1, 3, 7):
            keep = torch.ones(D, dtype=torch.bool)
            for step in range(
                1, count + 1
            ):  # the schedule keeps equal fractions: budgets of one weight by hand
                made = budget_for(SPACE.restrict(keep), step / D, single, global_, weights)
                left = quadratic if bool(keep.all()) else quadratic.restrict(keep)
                keep[keep.clone()] = greedy(left, made, surgeon(with_gradient))
            assert sorted((~keep).nonzero()[:, 0].tolist()) == sorted(eliminated(quadratic, count))
            at_once = greedy(
                quadratic,
                budget_for(SPACE, count / D, single, global_, weights),
                surgeon(with_gradient),
            )
            another += not torch.equal(at_once, keep)
    assert another  # or the steps would have been in vain


def test_the_first_removed_is_the_best_single_weight() -> None:
    for fisher in FISHERS:
        quadratic = quadratic_of(fisher, False)
        keep = greedy(quadratic, budget_for(SPACE, 0.1, single, global_, weights), obs)
        assert (~keep).nonzero()[:, 0].tolist() == eliminated(quadratic, 1)


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("fisher", FISHERS, ids=["low rank", "dense", "blocks"])
def test_inner_steps_are_restrictions_one_after_the_other(
    fisher: Fisher, with_gradient: bool
) -> None:
    quadratic, made = (
        quadratic_of(fisher, with_gradient),
        budget_for(SPACE, 0.7, single, layerwise, weights),
    )
    found = iterative_greedy(3)(quadratic, made, surgeon(with_gradient))
    keep = torch.ones(D, dtype=torch.bool)
    for left in (3, 2, 1):
        scored = torch.full((D,), torch.inf, dtype=torch.float64)
        for q in keep.nonzero()[
            :, 0
        ].tolist():  # by the dense truth, from the start, with all that is gone at zero
            both = keep.clone()
            both[q] = False
            scored[q] = quadratic.increase(joint(quadratic, both))
        for part, wanted in zip(SPACE.slices.values(), (4, 3), strict=True):
            stay = int(keep[part].sum())
            goal = part.stop - part.start - wanted
            keep[
                scored[part].argsort()[: int(stay * (1 - (goal / stay) ** (1 / left)) + 1e-9)]
                + part.start
            ] = False
    assert torch.equal(found, keep)


def test_steps_add_up_to_the_budget() -> None:
    for steps in (1, 2, 5, 30):
        for sparsity in (0.0, 0.3, 0.9):
            keep = iterative_greedy(steps)(
                quadratic_of(FISHERS[0], False),
                budget_for(SPACE, sparsity, single, global_, weights),
                obs,
            )
            assert int((~keep).sum()) == round(sparsity * D)


def test_inner_steps_remove_whole_channels() -> None:
    made = budget_for(SPACE, 0.6, output_channels, global_, weights)
    keep = iterative_greedy(2)(quadratic_of(FISHERS[0], False), made, obs)
    for some in made.groups or ():
        assert (keep[some].all(1) | ~keep[some].any(1)).all()
    assert 4 <= int((~keep).sum()) <= 6


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("fisher", FISHERS, ids=["low rank", "dense", "blocks"])
def test_a_restricted_quadratic_is_the_quadratic_from_its_constrained_optimum(
    fisher: Fisher, with_gradient: bool
) -> None:
    quadratic = quadratic_of(fisher, with_gradient)
    matrix, keep = (
        fisher @ EYE,
        torch.tensor([True, False, True, True, False, True, True, True, False, True]),
    )
    left = quadratic.restrict(keep)
    assert left.fisher is not None
    step = dense.compensate(
        matrix, keep, quadratic.weights.masked_fill(keep, 0), quadratic.gradient
    )
    torch.testing.assert_close(left.weights, quadratic.weights[keep] + step)
    torch.testing.assert_close(
        left.fisher @ torch.eye(7, dtype=torch.float64), matrix[keep][:, keep]
    )
    base = quadratic.increase(joint(quadratic, keep))
    for seed in range(5):  # every further step costs what it costs from the start
        further = normal(7, seed=seed)
        whole = joint(quadratic, keep)
        whole[keep] += further
        assert left.increase(further) == pytest.approx(quadratic.increase(whole) - base, rel=1e-9)


@pytest.mark.parametrize("with_gradient", [False, True])
def test_the_scores_of_units_of_unequal_size_are_true_constrained_minima(
    with_gradient: bool,
) -> None:
    """Blocks of 4 and 6 cut the units of 3 and 2 weights: uncoupled parts add up."""
    for fisher in FISHERS:
        quadratic = quadratic_of(fisher, with_gradient)
        made = budget_for(SPACE, 0.5, output_channels, global_, weights)
        free = quadratic.increase(joint(quadratic, torch.ones(D, dtype=torch.bool)))
        truth = []
        for unit in (unit for some in made.groups or () for unit in some):
            keep = torch.ones(D, dtype=torch.bool)
            keep[unit] = False
            truth.append(quadratic.increase(joint(quadratic, keep)) - free)
        torch.testing.assert_close(
            unit_scores(quadratic, made, surgeon(with_gradient)), torch.tensor(truth).double()
        )


def test_no_subset_of_units_is_better_where_they_do_not_interact() -> None:
    fisher = dense_blocks(ROWS, [3, 3, 2, 2], DAMPING)
    quadratic, made = (
        quadratic_of(fisher, False),
        budget_for(SPACE, 0.5, output_channels, global_, lambda s: torch.ones(s.n) * 2),
    )
    found = greedy(quadratic, made, obs)
    units = [unit for some in made.groups or () for unit in some]
    budget, costs = float(made.pool_budgets), {}
    for size in range(len(units) + 1):
        for chosen in combinations(range(len(units)), size):
            keep = torch.ones(D, dtype=torch.bool)
            for index in chosen:
                keep[units[index]] = False
            if 2 * int((~keep).sum()) == int((~found).sum()) * 2 <= budget:
                costs[chosen] = quadratic.increase(joint(quadratic, keep))
    assert quadratic.increase(joint(quadratic, found)) == pytest.approx(min(costs.values()))


def test_without_a_fisher_kept_weights_do_not_move() -> None:
    quadratic, keep = Quadratic(normal(D, seed=0)), torch.arange(D) > 3
    assert torch.equal(quadratic.restrict(keep).weights, quadratic.weights[keep])
    made = budget_for(SPACE, 0.6, single, global_, weights)
    assert torch.equal(
        iterative_greedy(4)(quadratic, made, magnitude), greedy(quadratic, made, magnitude)
    )


def test_zero_steps_are_refused() -> None:
    with pytest.raises(WoodburyError, match="number of inner steps"):
        iterative_greedy(0)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
def test_evenly_takes_the_same_share_of_every_tensor_and_meets_the_whole(sparsity: float) -> None:
    model = nn.Sequential(nn.Linear(7, 11), nn.Linear(11, 5), nn.Linear(5, 13))
    space = ParameterSpace.from_model(model, min_ndim=2)
    budget = budget_for(space, sparsity, single, global_, weights)
    own = normal(space.n, seed=4) * torch.logspace(-3, 3, space.n, dtype=torch.float64)
    keep = evenly(Quadratic(own), budget, magnitude)
    assert int((~keep).sum()) == round(sparsity * space.n)
    for where in space.slices.values():
        kept, sizes = keep[where], own[where].abs()
        assert abs(float((~kept).sum()) - sparsity * len(kept)) <= 1
        assert sizes[kept].min() > sizes[~kept].max()


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("power", [0.0, 0.125, 0.5, 1.0])
def test_by_size_keeps_shares_in_proportion_to_a_power_of_the_size(
    sparsity: float, power: float
) -> None:
    model = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 40), nn.Linear(40, 30))
    space = ParameterSpace.from_model(model, min_ndim=2)
    budget = budget_for(space, sparsity, single, global_, weights)
    own = normal(space.n, seed=4)
    keep = by_size(power)(Quadratic(own), budget, magnitude)
    assert int((~keep).sum()) == round(sparsity * space.n)
    constants = []
    for where in space.slices.values():
        kept, sizes = keep[where], own[where].abs()
        if not kept.all():
            constants.append(float(kept.sum() + 0.5) * len(kept) ** (power - 1))
            assert sizes[kept].min() > sizes[~kept].max()
    assert max(constants) < 1.2 * min(constants)


@pytest.mark.parametrize("power", [-0.1, 1.1, float("nan")])
def test_a_power_out_of_range_is_refused(power: float) -> None:
    with pytest.raises(WoodburyError, match="from 0 to 1"):
        by_size(power)


def test_evenly_refuses_scores_that_are_not_finite() -> None:
    budget = budget_for(SPACE, 0.5, single, global_, weights)
    scores = normal(D, seed=1)
    scores[3] = torch.nan
    with pytest.raises(WoodburyError, match="unit 3 is not finite"):
        evenly(Quadratic(normal(D)), budget, lambda quadratic, groups: scores)
