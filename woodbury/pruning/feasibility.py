"""Which sparsities can be reached: what is to be removed, what is removed already, and what may be.

Costs are compared by one rule, `exceeds`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from woodbury.errors import WoodburyError, user_code
from woodbury.linalg.conversion import as_tensor
from woodbury.model.space import ParameterSpace, matches
from woodbury.pruning.costs import Cost, weights
from woodbury.pruning.schedule import Targets, check_sparsity
from woodbury.pruning.scopes import Scope, global_

RELATIVE_TOLERANCE = 1e-9
"""By how much a sum of costs may exceed a limit, relative to it, and count as equal.

The same costs in another order add up to another float64: ten million times 0.1, one after the
other, is off by 1.6e-10. Sums of whole numbers are exact, so that weights are counted exactly up to
10⁹.
"""

NAMES_IN_ERROR = 8
"""Parameter names that an error lists at most."""


def exceeds(amount: Tensor, limit: Tensor) -> Tensor:
    """Whether sums of costs are above their limits by more than rounding.

    Args:
        amount: Sums of costs, of any shape.
        limit: What each may be, of the same shape.

    Returns:
        `amount > limit · (1 + RELATIVE_TOLERANCE)`, bool.

    Example:
        >>> exceeds(torch.tensor([0.1, 0.1, 0.1]).double().sum(), torch.tensor(0.3).double())
        tensor(False)
    """
    return amount > limit * (1 + RELATIVE_TOLERANCE)


def is_constant(values: Tensor) -> bool:
    """Whether a vector is one number, stored once: what `number.expand(n)` gives.

    The costs and the pool of single weights that all compete are such vectors: eight bytes for
    each of 10⁸ weights would be several times the network.

    Args:
        values: (n,).

    Returns:
        True without reading more than the shape.

    Example:
        >>> is_constant(torch.ones(1).expand(9)), is_constant(torch.ones(9))
        (True, False)
    """
    return len(values) > 1 and values.stride(0) == 0


def chosen(values: Tensor, mask: Tensor) -> Tensor:
    """`values[mask]`, stored once where the values are one number.

    Args:
        values: (n,).
        mask: (n,) bool.

    Returns:
        (k,) for the k entries that the mask chooses.
    """
    if is_constant(values):
        return values[:1].expand(int(mask.count_nonzero()))
    return values[mask]


def sum_by(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Values added up by their index.

    Args:
        values: (k,).
        index: (k,) int64 in [0, count).
        count: Sums to return.

    Returns:
        (count,) float64.
    """
    sums = torch.zeros(count, dtype=torch.float64)
    if is_constant(values) and is_constant(index):
        sums[index[0]] = len(values) * float(values[0])
        return sums
    return sums.index_add_(0, index, values.double())


@dataclass(frozen=True, eq=False)
class Account:
    """What the weights of each pool cost: all of them, those to remove, and those removed already.

    Attributes:
        space: The n weights, and which of them are kept.
        targets: The sparsities asked for.
        costs: (n,) float64, the cost of each weight.
        pools: (n,) int64, the pool of each weight: those of the scope, cut by the targets'
            patterns.
        total: (p,) float64, the cost of each pool.
        target: (p,) float64, the cost to remove of each pool in all; a whole number where every
            weight costs 1.
        removed: (p,) float64, the cost of what is removed already.
    """

    space: ParameterSpace
    targets: Targets
    costs: Tensor
    pools: Tensor
    total: Tensor
    target: Tensor
    removed: Tensor

    @classmethod
    def of(cls, space: ParameterSpace, targets: Targets, scope: Scope, costs: Tensor) -> Account:
        """Add up the costs.

        Args:
            space: The n weights, and which of them are kept.
            targets: Removed ÷ all, in the unit of the costs.
            scope: Which weights compete.
            costs: (n,) float64, what `weight_costs` gave.

        Returns:
            The account.

        Raises:
            WoodburyError: If the targets are no sparsities or miss a tensor.
        """
        pools, sparsities = _pools(space, targets, scope)
        removed = ~space.keep.cpu()  # of one byte a weight
        total = sum_by(costs, pools, len(sparsities))
        target = total * sparsities
        each_costs_one = bool((costs[:1] if is_constant(costs) else costs).eq(1).all())
        return cls(
            space=space,
            targets=targets,
            costs=costs,
            pools=pools,
            total=total,
            target=target.round() if each_costs_one else target,
            removed=sum_by(chosen(costs, removed), chosen(pools, removed), len(sparsities)),
        )

    @property
    def to_remove(self) -> Tensor:
        """The cost that is still to be removed from each pool, (p,) float64; at least 0."""
        return (self.target - self.removed).clamp_min(0)

    def check_sum(self) -> None:
        """Raise unless the targets, all pools together, leave a weight and undo no removal.

        Raises:
            WoodburyError: If no weight would be kept, or more is removed already.
        """
        total = self.total.sum()
        target = self.target.sum()
        removed = self.removed.sum()
        if bool(target >= total):
            raise WoodburyError(
                f"sparsity {_format_targets(self.targets)} leaves none of {self.space.n} weights: "
                "ask for less."
            )
        if bool(exceeds(removed, target)):
            reached = float(removed / total)
            raise WoodburyError(
                f"sparsity {_format_targets(self.targets)} is below the {reached:.4f} "
                "reached already: removed weights stay removed, so ask for more."
            )

    def check_each_pool(self) -> None:
        """Raise if some pool has lost more already than its target.

        Raises:
            WoodburyError: If there is one; the sentence names its first tensor.
        """
        over = exceeds(self.removed, self.target).nonzero()[:, 0]
        if len(over):
            pool = int(over[0])
            first = self.space.name_at(int((self.pools == pool).nonzero()[0]))
            raise WoodburyError(
                f"sparsity {_format_targets(self.targets)} is below what is reached already: of "
                f"what competes with {first!r}, {float(self.removed[pool]):.6g} is removed and "
                f"{float(self.target[pool]):.6g} would be. Removed weights stay removed, so ask "
                "for more."
            )


def account_of(space: ParameterSpace, targets: Targets, scope: Scope, cost: Cost) -> Account:
    """The account of a cost.

    Args:
        space: The n weights, and which of them are kept.
        targets: Removed ÷ all, in the unit of the cost.
        scope: Which weights compete.
        cost: What each weight counts.

    Returns:
        The account.

    Raises:
        WoodburyError: If the targets are no sparsities or miss a tensor, or a cost is not positive.
    """
    return Account.of(space, targets, scope, weight_costs(cost, space))


def check_reachable(space: ParameterSpace, targets: Targets, scope: Scope, cost: Cost) -> None:
    """Raise if some pool has lost more already than its target.

    Args:
        space: The n weights, and which of them are kept.
        targets: Removed ÷ all, in the unit of the cost.
        scope: Which weights compete.
        cost: What each weight counts.

    Raises:
        WoodburyError: If it has, or for what `account_of` raises.
    """
    account_of(space, targets, scope, cost).check_each_pool()


def current_sparsity(space: ParameterSpace, targets: Targets, cost: Cost) -> Targets:
    """The sparsity reached already, at most that of the targets.

    Args:
        space: The n weights, and which of them are kept.
        targets: A sparsity, or one for each of several name patterns.
        cost: What each weight counts.

    Returns:
        A share of the cost, or one for each pattern of the targets.

    Raises:
        WoodburyError: If a cost is not positive, or the patterns miss a tensor.
    """
    costs = weight_costs(cost, space)
    removed = ~space.keep.cpu()
    if not isinstance(targets, Mapping):
        if is_constant(costs):
            return min(targets, int(removed.count_nonzero()) / len(costs))
        return min(targets, float((costs * removed).sum() / costs.sum()))
    pattern_of = _pattern_index(space, list(targets))
    shares = {}
    for index, (pattern, sparsity) in enumerate(targets.items()):
        matched = costs * (pattern_of == index)
        total = float(matched.sum())
        # An earlier pattern may have taken all tensors that match.
        share = float((matched * removed).sum()) / total if total else 0.0
        shares[pattern] = min(sparsity, share)
    return shares


def kept_count(space: ParameterSpace, targets: Targets) -> float:
    """How many weights are kept at the targets.

    Args:
        space: The n weights.
        targets: Removed ÷ all weights, or one for each of several name patterns.

    Returns:
        A whole number of weights.

    Raises:
        WoodburyError: If a target matches no parameter, or a parameter has none.
    """
    account = account_of(space, targets, global_, weights)
    return float((account.total - account.target).sum())


def weight_costs(cost: Cost, space: ParameterSpace) -> Tensor:
    """The cost of each of the n weights.

    Args:
        cost: What each weight counts.
        space: The n weights.

    Returns:
        (n,) float64 on the CPU.

    Raises:
        WoodburyError: If the cost has another shape, or is not positive and finite everywhere.
    """
    with user_code("The cost cannot be taken of this space."):
        costs = as_tensor(cost(space), "What the cost gave").double().cpu()
    if costs.shape != (space.n,):
        raise WoodburyError(
            f"The cost gave shape {tuple(costs.shape)}: give one number for each of {space.n} "
            "weights."
        )
    read = costs[:1] if is_constant(costs) else costs
    bad = ~(torch.isfinite(read) & (read > 0))
    if bool(bad.any()):
        name = space.name_at(int(bad.nonzero()[0]))
        raise WoodburyError(
            f"A cost in {name!r} is zero, negative or not finite: every weight must cost something."
        )
    return costs


def check_inside(
    space: ParameterSpace, groups: Sequence[Tensor], parts: Tensor, which: str, remedy: str
) -> None:
    """Raise if a unit has weights in two parts.

    Args:
        space: The weights that are kept.
        groups: The units by size, each (g, s) int64 indices in [0, d).
        parts: (d,) int64, the part of each kept weight: its pool or its tensor.
        which: What the parts are, for the sentence.
        remedy: What to do, for the sentence.

    Raises:
        WoodburyError: If there is one; the sentence names its first tensor.
    """
    for units in groups:
        crossing = (parts[units] != parts[units][:, :1]).any(1).nonzero()[:, 0]
        if len(crossing):
            among_kept = int(units[crossing[0], 0])
            name = space.name_of(among_kept)
            raise WoodburyError(
                f"A unit that begins in {name!r} lies in two {which}: {remedy}, or give smaller "
                "units."
            )


def check_enough(required: Tensor, possible: Tensor, costs: Tensor) -> None:
    """Raise if a budget is missed by as much as the dearest unit, or more.

    A smaller gap is the grain of the units: every budget is met to within one of them.

    Args:
        required: (p,), the cost to remove from each pool.
        possible: (p,), the cost that can be removed of it.
        costs: (g,), the cost of each unit.

    Raises:
        WoodburyError: If some budget is missed.
    """
    read = costs[:1] if is_constant(costs) else costs
    dearest = float(read.max()) if len(costs) else 0.0
    missed = exceeds(required, possible) & (required - possible >= dearest)
    if bool(missed.any()):
        raise WoodburyError(
            f"Only {float(possible[missed].sum()):.6g} of {float(required[missed].sum()):.6g} "
            "requested removals are possible, each counted by its cost: ask for less, for smaller "
            "units such as single weights, for units that cover more, or for a higher "
            "max_layer_sparsity."
        )


def _pools(space: ParameterSpace, targets: Targets, scope: Scope) -> tuple[Tensor, Tensor]:
    """The pool of each of the n weights and the sparsity of each pool.

    The pools are those of the scope; several targets cut each into one pool for every pattern.
    """
    with user_code("The scope cannot be taken of this space."):
        pools = as_tensor(scope(space), "What the scope gave")
    if not isinstance(targets, Mapping):
        count = int(pools[:1].max() if is_constant(pools) else pools.max()) + 1
        return pools, torch.full((count,), check_sparsity(targets), dtype=torch.float64)
    patterns = list(targets)
    for pattern in patterns:
        if not any(matches(name, pattern) for name in space.shapes):
            known = ", ".join(list(space.shapes)[:NAMES_IN_ERROR])
            raise WoodburyError(
                f"The target {pattern!r} matches no parameter: the space has {known}."
            )
    pattern_of = _pattern_index(space, patterns)
    sparsities = [check_sparsity(targets[pattern]) for pattern in patterns]
    # A pool and a pattern in one number, and the numbers that occur counted from 0.
    pairs, pair_of = (pools * len(patterns) + pattern_of).unique(return_inverse=True)
    return pair_of, torch.tensor(sparsities, dtype=torch.float64)[pairs % len(patterns)]


def _pattern_index(space: ParameterSpace, patterns: Sequence[str]) -> Tensor:
    """The index of the first pattern that matches the tensor of each weight: (n,) int64."""
    by_tensor = [_first_match(name, patterns) for name in space.shapes]
    return torch.tensor(by_tensor)[space.tensor_index()]


def _first_match(name: str, patterns: Sequence[str]) -> int:
    for index, pattern in enumerate(patterns):
        if matches(name, pattern):
            return index
    raise WoodburyError(f"No target is given for {name!r}: add one, such as '*' for the rest.")


def _format_targets(targets: Targets) -> str:
    if not isinstance(targets, Mapping):
        return str(targets)
    return ", ".join(f"{pattern}={sparsity}" for pattern, sparsity in targets.items())
