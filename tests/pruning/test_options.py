"""Every option on a trained network and real images: exact targets, better than magnitude."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from woodbury.estimation.recipes import diagonal_fisher, mfac, woodfisher
from woodbury.model.flop_count import Flops, flops
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.pruning.costs import power
from woodbury.pruning.pruned import Pruned
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.saliencies import magnitude, obd, obs, woodtaylor
from woodbury.pruning.schedule import Targets, geometric
from woodbury.pruning.scopes import consecutive, layerwise
from woodbury.pruning.selections.greedy_selection import greedy, iterative_greedy
from woodbury.pruning.selections.subset_search import exhaustive
from woodbury.pruning.semi_structured import n_of_m
from woodbury.pruning.staged import run_stages
from woodbury.pruning.units import block, custom, input_channels, output_channels
from woodbury.pruning.updates import independent, joint, zero

pytestmark = pytest.mark.slow
COUNT = 300
BY_MAGNITUDE = Pruner(None, magnitude, zero)


@dataclass(frozen=True)
class Case:
    """A recipe, its target, and the share of magnitude's loss that it must stay below."""

    name: str
    pruner: Pruner
    target: Targets = 0.9
    below: float = 1.0
    stages: int = 1
    share: Callable[[ParameterSpace], Tensor] = field(default=lambda space: torch.ones(space.n))


@cache
def task() -> tuple[nn.Module, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The demo's network of 21,612 weights trained on scikit-learn's digits.

    Returns the network, images to calibrate on, and images to evaluate on.
    """
    pytest.importorskip("sklearn")
    from woodbury.cli.digits import load_digits, train_network

    digits = load_digits(0)
    return train_network(digits, 0), digits.calibration, digits.held_out


def dense() -> Objective:
    model, calibration, _ = task()
    return Objective.from_model(
        model, [calibration], space=ParameterSpace.from_model(model, min_ndim=2)
    )


def cost(space: ParameterSpace) -> Tensor:
    return counted()(space)


@cache
def counted() -> Flops:
    model, (images, _), _ = task()
    return flops(model, images[:2])


def pruned_by(case: Case, pruner: Pruner) -> Pruned:
    return run_stages(pruner, dense(), geometric(case.target, case.stages))


def unseen_loss(pruned: Pruned) -> float:
    """On training images that no Fisher saw."""
    return pruned.objective.loss([task()[2]])


def coupled(name: str, reader: str, channels: int, each: int) -> Any:
    """Output channels of one tensor with what reads them in the next, `each` columns for one."""
    columns = [slice(each * c, each * (c + 1)) for c in range(channels)]
    return custom({name: c, reader: (slice(None), columns[c])} for c in range(channels))


FULL, SMALL = mfac(COUNT, 1e-2), woodfisher(COUNT, 100, 1e-2)
CASES = [
    Case("published", Pruner(SMALL, update=independent)),
    Case("diagonal", Pruner(diagonal_fisher(COUNT, 1e-2), obd, zero), 0.8),
    Case("joint", Pruner(FULL), below=0.8),
    Case("joint in stages", Pruner(FULL), below=0.5, stages=4),
    Case("per layer", Pruner(FULL, scope=layerwise)),
    Case("iterative greedy", Pruner(SMALL, selection=iterative_greedy(8))),
    Case("woodtaylor, large damping", Pruner(mfac(COUNT, 10.0), woodtaylor, first_order=True), 0.8),
    Case("targets by layer", Pruner(FULL), {"0.*": 0.0, "6.*": 0.95, "*": 0.8}, 0.8),
    Case("max layer sparsity", Pruner(FULL, max_layer_sparsity=0.92), below=0.8),
    Case("blocks of 4", Pruner(FULL, unit=block(4)), 0.75),
    Case("blocks of 2 × 1 in kernels", Pruner(FULL, unit=block(2, 1)), 0.75),
    Case("output channels", Pruner(FULL, unit=output_channels), {"6.*": 0.5, "*": 0.0}, 0.9),
    Case("input channels", Pruner(FULL, unit=input_channels), {"6.*": 0.7, "*": 0.0}, 0.9),
    Case(
        "woodtaylor of channels",
        Pruner(mfac(COUNT, 10.0), woodtaylor, unit=output_channels, first_order=True),
        {"6.*": 0.3, "*": 0.0},
    ),
    Case("coupled channels", Pruner(FULL, unit=coupled("2.weight", "6.weight", 24, 16)), 0.3, 0.9),
    Case("a share of FLOPs", Pruner(FULL, cost=cost), 0.75, 0.8, share=cost),
    Case(
        "FLOPs-aware", Pruner(FULL, cost=cost, normalize_by=power(cost, 0.5)), 0.75, 0.8, share=cost
    ),
    Case(
        "FLOPs of channels",
        Pruner(FULL, cost=cost, unit=output_channels, max_layer_sparsity=0.9),
        0.3,
        0.9,
        share=cost,
    ),
]


def test_units_of_unequal_size_are_ranked_by_score_per_cost() -> None:
    """Undivided, the small units of the first layers are removed first, which ruins the network."""
    losses = {}
    for name, per in (("divided", None), ("undivided", lambda space: 1.0 / weights_of_unit(space))):
        losses[name] = unseen_loss(
            Pruner(FULL, unit=output_channels, normalize_by=per, max_layer_sparsity=0.9)(
                dense(), 0.3
            )
        )
    assert losses["divided"] < 0.2 * losses["undivided"]


def weights_of_unit(space: ParameterSpace) -> Tensor:
    """(n,): how many weights the output channel of each weight has."""
    sizes = [
        torch.full((shape.numel(),), float(shape[1:].numel())) for shape in space.shapes.values()
    ]
    return torch.cat(sizes)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_target_is_met_and_magnitude_beaten(case: Case) -> None:
    pruned, space = pruned_by(case, case.pruner), dense().space
    shares, gone = case.share(space).double(), ~pruned.keep
    units = case.pruner.unit(space)
    largest = (
        float(shares.max())
        if units is None
        else max(float(shares[some].sum(1).max()) for some in units)
    )
    targets = case.target if isinstance(case.target, dict) else {"*": case.target}
    left = dict(space.slices)
    for pattern, goal in targets.items():
        own = [
            left.pop(name) for name in list(left) if pattern == "*" or name.startswith(pattern[:-1])
        ]
        there, removed = (
            sum(float((shares * gone if g else shares)[p].sum()) for p in own)
            for g in (False, True)
        )
        exact = units is None and case.share(space).eq(1).all()
        assert (
            removed == round(goal * there)
            if exact
            else goal * there - largest <= removed <= goal * there * (1 + 1e-9)
        )
    if case.pruner.max_layer_sparsity < 1:
        assert all(
            float(gone[part].double().mean()) <= case.pruner.max_layer_sparsity
            for part in space.slices.values()
        )
    for some in units or ():
        assert (gone[some].all(1) | ~gone[some].any(1)).all()  # every unit is whole or gone
    plain = replace(
        case.pruner,
        fisher=None,
        saliency=magnitude,
        update=zero,
        selection=greedy,
        first_order=False,
    )
    assert unseen_loss(pruned) < case.below * unseen_loss(pruned_by(case, plain))


def test_two_of_four() -> None:
    losses = {}
    for name, pruner in {
        "magnitude": n_of_m(2, 4, BY_MAGNITUDE)[1],
        "greedy": Pruner(FULL, scope=consecutive(4)),
        "exact": n_of_m(2, 4, Pruner(FULL))[1],
    }.items():
        pruned = pruner(matrices(), 0.5)
        for own, part in pruned.objective.space.slices.items():
            shape = pruned.objective.space.shapes[own]
            assert (pruned.keep[part].view(shape).unflatten(1, (-1, 4)).sum(2) == 2).all(), own
        losses[name] = unseen_loss(pruned)
    assert max(losses["exact"], losses["greedy"]) < losses["magnitude"]


def matrices() -> Objective:
    """Without the first kernel, which has one input channel."""
    model, calibration, _ = task()
    return Objective.from_model(
        model, [calibration], space=ParameterSpace.from_model(model, exclude="0.*", min_ndim=2)
    )


def test_the_exact_subsets_cost_less_where_blocks_are_pools() -> None:
    """Blocks of WoodFisher that are the pools: each pool loses the best of its six subsets."""
    objective = matrices()
    space = ParameterSpace.from_model(task()[0], include=["6.weight", "8.weight"])
    objective = Objective.from_model(objective.model, objective.batches, space=space)
    fisher = woodfisher(COUNT, 4, 1e-5)(objective)
    budget = Pruner(scope=consecutive(4)).budget(space, 0.5)
    quadratic = Quadratic(objective.weights, fisher)
    costs = {}
    for selection in (greedy, exhaustive):
        keep = selection(quadratic, budget, obs)
        costs[selection] = quadratic.increase(joint(quadratic, keep))
    assert costs[exhaustive] < costs[greedy]
