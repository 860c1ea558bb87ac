"""Exhaustive search: the best subset of each small pool, as in n:m sparsity, by trying all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.limits import Limits
from woodbury.pruning.budget import Budget
from woodbury.pruning.feasibility import RELATIVE_TOLERANCE
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.saliencies import Saliency, joint_cost


def exhaustive(quadratic: Quadratic, budget: Budget, saliency: Saliency) -> Tensor:
    """From each pool the subset of single weights whose joint removal costs least  (eq. 53).

    For scopes whose pools have few weights, such as `scopes.consecutive(4)`. The cost of a subset
    is that of its removal with all other weights free to move, from the block of F⁻¹ on its pool.
    It is exact where the pools do not interact.

    Args:
        quadratic: The model of the loss, with a Fisher; its gradient counts, if it has one.
        budget: Single weights of equal cost within a pool, without a max layer sparsity.
        saliency: Not read: the costs are those of the quadratic.

    Returns:
        (d,) bool on the CPU, True = kept.

    Raises:
        WoodburyError: If there is no Fisher, the budget is another, or a pool has more than
            `Limits.subsets` subsets.

    Example:
        >>> import torch, woodbury
        >>> space = woodbury.ParameterSpace.from_model(torch.nn.Linear(4, 1, bias=False))
        >>> pruner = woodbury.Pruner(scope=woodbury.scopes.consecutive(4))
        >>> fisher = woodbury.fisher.Dense(torch.ones(4, 4), damping=0.1)
        >>> quadratic = Quadratic(torch.tensor([4.0, -1.0, 2.0, -2.5]), fisher)
        >>> exhaustive(quadratic, pruner.budget(space, 0.5), woodbury.saliencies.obs)
        tensor([ True, False, False,  True])
    """
    fisher = quadratic.curvature("The exhaustive selection")
    stiffness = fisher.diagonal().double()
    distance = quadratic.from_minimum
    keep = torch.ones(budget.d, dtype=torch.bool)
    for members, count in _pools_by_size(budget):
        size = members.shape[1]
        subsets = torch.tensor(list(combinations(range(size), count)))  # (c, count)
        elements_of_a_pool = len(subsets) * count**2 + size**2
        pools_at_once = max(1, Limits.current().temporary // elements_of_a_pool)
        for pools in members.to(distance.device).split(pools_at_once):
            # 1. The block of F⁻¹ on each pool: (r, size, size).
            inverse = fisher.inverse_blocks(pools)
            # 2. Of it the block on each subset: (r, c, count, count).
            of_subsets = inverse[:, subsets[:, :, None], subsets[:, None, :]]
            # 3. What the joint removal of each subset costs: (r, c)  (eq. 52).
            costs = joint_cost(
                distance[pools][:, subsets], of_subsets, stiffness[pools][:, subsets]
            )
            # 4. The weights of the cheapest subset of each pool: (r, count).
            best = subsets.to(pools.device)[costs.argmin(1)]
            keep[pools.gather(1, best).flatten().cpu()] = False
    return keep


class _Pools(NamedTuple):
    """The r pools of one size that lose equally many weights.

    Attributes:
        members: (r, size) int64, the weights of each pool.
        count: How many each loses, at least 1.
    """

    members: Tensor
    count: int


def _pools_by_size(budget: Budget) -> Iterator[_Pools]:
    """The pools that lose weights, those of equal size and loss together."""
    # The cost of some weight of each pool, which must be that of all.
    cost_of_pool = torch.ones_like(budget.pool_budgets).index_copy_(0, budget.pools, budget.costs)
    if budget.groups is not None or bool((budget.costs != cost_of_pool[budget.pools]).any()):
        raise WoodburyError(
            "The exhaustive selection takes single weights, of equal cost within a pool: "
            "take selections.greedy or iterative_greedy for others."
        )
    if budget.layer_limits is not None:
        raise WoodburyError(
            "The exhaustive selection does not support max_layer_sparsity: leave it at 1."
        )
    sizes = torch.bincount(budget.pools, minlength=len(budget.pool_budgets))
    counts = (budget.pool_budgets / cost_of_pool * (1 + RELATIVE_TOLERANCE)).floor().long()
    by_pool = budget.pools.argsort(stable=True)
    starts = sizes.cumsum(0) - sizes
    kinds = torch.stack([sizes, counts], 1)[counts > 0].unique(dim=0)
    for size, count in kinds.tolist():
        _check_few_subsets(size, count)
        same_kind = (sizes == size) & (counts == count)
        yield _Pools(by_pool[starts[same_kind][:, None] + torch.arange(size)], count)


def _check_few_subsets(size: int, count: int) -> None:
    subsets = math.comb(size, count)
    most = Limits.current().subsets
    if subsets > most:
        raise WoodburyError(
            f"{count} of {size} weights can be removed in {subsets:,} ways, more than {most:,}: "
            "give a scope of small pools such as scopes.consecutive(4), or take selections.greedy "
            "or iterative_greedy."
        )
