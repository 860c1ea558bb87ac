"""Budget: the units that compete for removal, what each costs, and how much to remove."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from woodbury.errors import WoodburyError, user_code
from woodbury.fisher.checks import check_groups
from woodbury.model.space import ParameterSpace
from woodbury.pruning.costs import Cost
from woodbury.pruning.feasibility import (
    RELATIVE_TOLERANCE,
    Account,
    account_of,
    check_enough,
    check_inside,
    chosen,
    exceeds,
    is_constant,
    sum_by,
    weight_costs,
)
from woodbury.pruning.layer_limits import layer_limits
from woodbury.pruning.schedule import Targets
from woodbury.pruning.scopes import Scope
from woodbury.pruning.units import Unit

CUMSUM_ROUNDING = 1e-15
"""Error of a difference of two running sums, relative to the whole sum."""


@dataclass(frozen=True, eq=False)
class Budget:
    """Which units may be removed, what each costs, and how much to remove from each pool.

    The units of one pool compete. A step to a budget removes the units of lowest score in each pool
    while they fit its budget  (eq. 18, 51).

    Attributes:
        d: Weights that are kept so far.
        groups: The units by size, each (g_i, s_i) int64 indices in [0, d), g = Σ g_i in this order;
            None for single weights, g = d.
        costs: (g,) float64, the cost of each unit.
        pools: (g,) int64, the pool of each unit.
        pool_budgets: (p,) float64, the cost to remove from each pool.
        layers: (g,) int32, the tensor of each unit, the first of those that it is coupled with;
            None for single weights without limits, which lie tensor by tensor.
        layer_limits: (l,) float64, the cost that may be removed at most from each tensor, with all
            that it is coupled with; None without a max layer sparsity.
        divisors: (g,) float64, what scores are divided by before they compete; None for nothing, as
            between equal units.
        sizes: How many units each tensor has, where `layers` does not say.
    """

    d: int
    groups: tuple[Tensor, ...] | None
    costs: Tensor
    pools: Tensor
    pool_budgets: Tensor
    layers: Tensor | None
    layer_limits: Tensor | None = None
    divisors: Tensor | None = None
    sizes: tuple[int, ...] = ()

    def tensors(self) -> Tensor:
        """The tensor of each unit, (g,) whole numbers."""
        if self.layers is not None:
            return self.layers
        return torch.arange(len(self.sizes)).repeat_interleave(torch.tensor(self.sizes))

    def cheapest(self, scores: Tensor) -> Tensor:
        """The units to remove by their scores  (eq. 18, 51).

        Args:
            scores: (g,), low ones are removed first, after division by `divisors`.

        Returns:
            (g,) bool on the CPU, True = removed.

        Raises:
            WoodburyError: If a score is not finite, or too few units can be removed.
        """
        scores = scores.cpu()
        if self.divisors is not None:
            scores = scores.double() / self.divisors
        pools = self.pools
        pool_budgets = self.pool_budgets
        if self.layer_limits is not None and self.layers is not None:
            # 1. Each layer offers its cheapest units, as many as it may lose.
            # 2. All others compete in one more pool, whose budget of 0 keeps them.
            offered = select(scores, self.costs, self.layers, self.layer_limits)
            pools = pools.masked_fill(~offered, len(pool_budgets))
            pool_budgets = torch.cat([pool_budgets, pool_budgets.new_zeros(1)])
        remove = select(scores, self.costs, pools, pool_budgets)
        self._check_spent(remove, pools)
        return remove

    def keep(self, remove: Tensor) -> Tensor:
        """The weights that are kept when units are removed.

        Args:
            remove: (g,) bool, True = removed.

        Returns:
            (d,) bool, True = kept.
        """
        if self.groups is None:
            return ~remove
        keep = torch.ones(self.d, dtype=torch.bool)
        by_size = remove.split([len(groups) for groups in self.groups])
        for groups, removed in zip(self.groups, by_size, strict=True):
            keep[groups[removed].flatten()] = False
        return keep

    def after_removing(self, remove: Tensor) -> Budget:
        """The budget of the kept weights, once units are removed.

        Args:
            remove: (g,) bool, True = removed.

        Returns:
            The units that are left, over the kept weights, and what is still to be removed.
        """
        left = ~remove
        costs = chosen(self.costs, remove)
        spent = sum_by(costs, chosen(self.pools, remove), len(self.pool_budgets))
        limits = self.layer_limits
        if limits is not None and self.layers is not None:
            limits = limits - sum_by(costs, self.layers[remove], len(limits))
        return replace(
            self,
            d=int(left.sum()) if self.groups is None else int(self.keep(remove).sum()),
            groups=self._groups_after_removing(remove),
            costs=chosen(self.costs, left),
            pools=chosen(self.pools, left),
            pool_budgets=self.pool_budgets - spent,
            layers=None if self.layers is None else self.layers[left],
            layer_limits=limits,
            divisors=None if self.divisors is None else self.divisors[left],
            sizes=_counted(left, self.sizes),
        )

    def first_step_of(self, steps: int) -> Budget:
        """The same units with the budgets of the first of several steps  (eq. 20).

        Args:
            steps: Steps to the budget, each of which keeps the same fraction of what it finds.

        Returns:
            The budget of the first step.
        """
        if steps == 1:
            return self
        totals = self._pool_costs
        # A pool without units has nothing to keep a fraction of: 0 is left, and 0 removed.
        kept_fraction = (1 - self.pool_budgets / totals).nan_to_num(0, neginf=0).clamp_min(0)
        return replace(self, pool_budgets=totals * (1 - kept_fraction ** (1 / steps)))

    @property
    def lowest_count(self) -> int | None:
        """How many of all units are removed, where the budget is no more than a number of them.

        None where units have pools, limits, or costs of their own.
        """
        alike = is_constant(self.costs) and is_constant(self.pools)
        if self.groups is not None or not alike:
            return None
        if self.divisors is not None or self.layer_limits is not None:
            return None
        return lowest_count(len(self.costs), float(self.costs[0]), self.pool_budgets[self.pools[0]])

    @cached_property
    def _pool_costs(self) -> Tensor:
        """The cost of all units of each pool: (p,)."""
        return sum_by(self.costs, self.pools, len(self.pool_budgets))

    def _groups_after_removing(self, remove: Tensor) -> tuple[Tensor, ...] | None:
        """The units that are left, as indices into the kept weights."""
        if self.groups is None:
            return None
        index_among_kept = self.keep(remove).cumsum(0) - 1
        left = (~remove).split([len(groups) for groups in self.groups])
        return tuple(
            index_among_kept[groups[part]] for groups, part in zip(self.groups, left, strict=True)
        )

    def _check_spent(self, remove: Tensor, pools: Tensor) -> None:
        """An error for a budget that is missed with no unit left in its pool.

        With a max layer sparsity the units that a layer offers may be those of one pool, where
        another pool needs them.
        """
        count = len(self.pool_budgets)
        spent = sum_by(chosen(self.costs, remove), chosen(self.pools, remove), count)
        if is_constant(pools):
            empty = torch.zeros(count, dtype=torch.bool)
            empty[pools[0]] = bool(remove.all())
        else:
            empty = torch.bincount(pools[~remove], minlength=count)[:count] == 0
        check_enough(self.pool_budgets[empty], spent[empty], self.costs)


def budget_for(
    space: ParameterSpace,
    targets: Targets,
    unit: Unit,
    scope: Scope,
    cost: Cost,
    max_layer_sparsity: float = 1.0,
    normalize_by: Cost | None = None,
) -> Budget:
    """The budget of a step from the kept weights of a space to its targets.

    Args:
        space: The n weights, and which of them are kept.
        targets: Removed ÷ all in the unit of the cost, or one for each of several name patterns.
        unit: Which weights are removed together.
        scope: Which weights compete.
        cost: What each weight counts.
        max_layer_sparsity: Share of a tensor's cost that may be removed at most; 1 for no limit.
        normalize_by: What scores are divided by, summed over a unit; None for the cost  (eq. 51).

    Returns:
        The budget.

    Raises:
        WoodburyError: If the targets cannot be reached, a cost is not positive, or a unit lies in
            two pools.
    """
    account = account_of(space, targets, scope, cost)
    return budget_of(account, unit, max_layer_sparsity, normalize_by)


def budget_of(
    account: Account, unit: Unit, max_layer_sparsity: float, normalize_by: Cost | None
) -> Budget:
    """The budget of a step, from the account of its costs; see `budget_for`."""
    account.check_sum()
    space = account.space
    keep = space.keep.cpu()
    pools = chosen(account.pools, keep)
    with user_code("The unit fails on this space."):
        units = unit(space)
        groups = None if units is None else tuple(check_groups(each, space.d) for each in units)
    layers: Tensor | None = None
    if groups is not None or max_layer_sparsity != 1:
        layers = _tensor_index(space)
        layers = layers if space.kept is None else layers[keep]
    if groups is not None and layers is not None:
        check_inside(space, groups, pools, "scopes, or two targets", "let all weights compete")
        first = torch.cat([members[:, 0] for members in groups])
        pools, layers = pools[first], layers[first]
    costs = _by_unit(chosen(account.costs, keep), groups)
    divisors = costs
    if normalize_by is not None:
        divisors = _by_unit(weight_costs(normalize_by, space)[keep], groups)
    equal = is_constant(divisors) or bool((divisors == divisors[0]).all())
    limits = None
    if layers is not None:
        limits = layer_limits(account, max_layer_sparsity, layers, groups)
    budget = Budget(
        d=space.d,
        groups=groups,
        costs=costs,
        pools=pools,
        pool_budgets=account.to_remove,
        layers=layers if limits is None else limits.layers,
        layer_limits=None if limits is None else limits.costs,
        divisors=None if equal else divisors,
        sizes=space.kept_sizes if layers is None else (),
    )
    check_enough(budget.pool_budgets, _most_removable(budget), costs)
    return budget


def select(scores: Tensor, costs: Tensor, pools: Tensor, pool_budgets: Tensor) -> Tensor:
    """The units of lowest score in each pool whose costs fit its budget  (eq. 18).

    Equal scores are removed in the order of their index, so that unit costs meet a whole budget
    exactly.

    Args:
        scores: (g,).
        costs: (g,), positive.
        pools: (g,) int64 in [0, p).
        pool_budgets: (p,).

    Returns:
        (g,) bool, True = removed.

    Raises:
        WoodburyError: If a score is not finite, or a cost is not positive.

    Example:
        >>> scores = torch.tensor([3.0, 1.0, 2.0, 4.0])
        >>> select(scores, torch.ones(4), torch.tensor([0, 0, 0, 1]), torch.tensor([2.0, 0.0]))
        tensor([False,  True,  True, False])
    """
    check_finite_scores(scores)
    if not bool(((costs[:1] if is_constant(costs) else costs) > 0).all()):
        raise WoodburyError("A cost is zero, negative or NaN: every unit must cost something.")
    if is_constant(costs) and is_constant(pools):
        return _lowest(scores, float(costs[0]), pool_budgets[pools[0]])
    # 1. The units by pool, within a pool by score: two stable sorts.
    order = scores.argsort(stable=True)
    order = order[pools[order].argsort(stable=True)]
    # 2. What is spent before each unit and, at the end, by all of them.
    running = torch.cat([costs.new_zeros(1, dtype=torch.float64), costs[order].double().cumsum(0)])
    # 3. From it what the pool of each unit has spent with it: less what the pools before it spend.
    sizes = torch.bincount(pools, minlength=len(pool_budgets))
    pool_starts = sizes.cumsum(0) - sizes
    pool = pools[order]
    spent = running[1:] - running[pool_starts][pool]
    # 4. A difference carries the rounding of the whole sum, however small the pool.
    too_dear = exceeds(spent - CUMSUM_ROUNDING * running[-1], pool_budgets[pool].double())
    remove = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    return remove.index_fill_(0, order[~too_dear], True)


def lowest_count(g: int, cost: float, budget: Tensor) -> int:
    """How many units of one cost a budget pays for.

    Args:
        g: How many there are.
        cost: Of each.
        budget: A scalar.
    """
    affordable = (budget.double() * (1 + RELATIVE_TOLERANCE) + CUMSUM_ROUNDING * g * cost) / cost
    return min(g, int(affordable))


def _lowest(scores: Tensor, cost: float, budget: Tensor) -> Tensor:
    """`select` for units of one cost that all compete: no order of them all is made."""
    g = len(scores)
    count = lowest_count(g, cost, budget)
    remove = torch.zeros(g, dtype=torch.bool, device=scores.device)
    if not count:
        return remove
    values = scores.cpu().numpy().copy()
    values.partition(count - 1)
    threshold = float(values[count - 1])
    del values
    torch.lt(scores, threshold, out=remove)
    # Equal scores in the order of their index.
    equal = (scores == threshold).nonzero()[:, 0][: count - int(remove.count_nonzero())]
    return remove.index_fill_(0, equal, True)


def _counted(left: Tensor, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """How many of each of some parts are left."""
    return tuple(int(part.count_nonzero()) for part in left.split(sizes)) if sizes else ()


def _tensor_index(space: ParameterSpace) -> Tensor:
    """(n,) int32: the index of each weight's tensor, in half the memory of the space's own."""
    layers = torch.empty(space.n, dtype=torch.int32)
    for index, where in enumerate(space.slices.values()):
        layers[where] = index
    return layers


def check_finite_scores(scores: Tensor, first: int = 0) -> None:
    """Raise for a score that is not finite, without a temporary of their number.

    Args:
        scores: (g,).
        first: The number of the first unit.

    Raises:
        WoodburyError: If there is one.
    """
    if not len(scores):
        return
    least, largest = scores.aminmax()  # NaN spreads
    if not bool(torch.isfinite(least) & torch.isfinite(largest)):
        worst = first + int((~torch.isfinite(scores)).nonzero()[0])
        raise WoodburyError(
            f"The saliency of unit {worst} is not finite: raise the damping or look at that weight."
        )


def _by_unit(values: Tensor, groups: tuple[Tensor, ...] | None) -> Tensor:
    """Values (d,) summed over the units: (g,)."""
    if groups is None:
        return values
    return torch.cat([values[members].sum(1) for members in groups])


def _most_removable(budget: Budget) -> Tensor:
    """The cost that can be removed from each pool at most, whatever the scores: (p,)."""
    count = len(budget.pool_budgets)
    if budget.layer_limits is None or budget.layers is None:
        return sum_by(budget.costs, budget.pools, count)
    # A pool and a layer in one number: what they have in common, and what the layer may lose.
    layers = len(budget.layer_limits)
    pairs, pair_of = (budget.pools * layers + budget.layers).unique(return_inverse=True)
    shared = sum_by(budget.costs, pair_of, len(pairs))
    removable = torch.minimum(shared, budget.layer_limits[pairs % layers])
    return sum_by(removable, pairs // layers, count)
