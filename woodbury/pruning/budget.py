"""Contest: the units that compete for removal, what each costs, and how much must go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.model.space import ParameterSpace
from woodbury.pruning.costs import Cost, weights
from woodbury.pruning.schedule import Targets, check_sparsity
from woodbury.pruning.scopes import Scope, global_, layerwise
from woodbury.pruning.units import Unit

TOO_LITTLE = (
    "The units that may fall cost {:.6g} too little: ask for less, for smaller units such as single weights, for units that "
    "cover more, or for a higher ceiling."
)


@dataclass(frozen=True, eq=False)
class Budget:
    """Units of the d weights left, and the rules by which they fall.

    groups: the units, each tensor (g_i, s_i) of indices in [0, d), g = Σ g_i in that order; None: single weights.
    costs, labels, layers: (g,). budgets: what must go per label; ceilings: what may go at most per layer. per: (g,), what
    scores are divided by; None: nothing, as for equal units.
    """

    d: int
    groups: tuple[Tensor, ...] | None
    costs: Tensor
    labels: Tensor
    budgets: Tensor
    layers: Tensor
    ceilings: Tensor | None = None
    per: Tensor | None = None

    def cheapest(self, scores: Tensor) -> Tensor:
        """The units that fall by their scores (g,), divided by `per`: (g,) bool.

        Raises WoodburyError if too few are there to fall  (eq. 51).
        """
        scores = scores.cpu() if self.per is None else scores.cpu().double() / self.per
        labels, budgets = self.labels, self.budgets
        if (
            self.ceilings is not None
        ):  # the units that a layer cannot spare compete under a label without a budget
            spare = select(scores, self.costs, self.layers, self.ceilings)
            labels, budgets = (
                labels.masked_fill(~spare, len(budgets)),
                torch.cat([budgets, budgets.new_zeros(1)]),
            )
        remove = select(scores, self.costs, labels, budgets)
        self._check_enough(remove, labels)
        return remove

    def keep(self, remove: Tensor) -> Tensor:
        """(d,) bool: the weights that stay when the units `remove` (g,) fall."""
        if self.groups is None:
            return ~remove
        keep = torch.ones(self.d, dtype=torch.bool)
        for groups, fallen in zip(
            self.groups, remove.split([len(groups) for groups in self.groups]), strict=True
        ):
            keep[groups[fallen].flatten()] = False
        return keep

    def after_removing(self, remove: Tensor) -> Budget:
        """The contest that is left when the units `remove` (g,) have fallen, over the weights that stay."""
        keep, left = self.keep(remove), ~remove
        groups = self.groups
        if groups is not None:
            place, parts = keep.cumsum(0) - 1, left.split([len(some) for some in groups])
            groups = tuple(place[some[part]] for some, part in zip(groups, parts, strict=True))
        return replace(
            self,
            d=int(keep.sum()),
            groups=groups,
            costs=self.costs[left],
            labels=self.labels[left],
            layers=self.layers[left],
            per=None if self.per is None else self.per[left],
            budgets=self.budgets
            - _sums(self.costs[remove], self.labels[remove], len(self.budgets)),
            ceilings=None
            if self.ceilings is None
            else self.ceilings - _sums(self.costs[remove], self.layers[remove], len(self.ceilings)),
        )

    def first_step_of(self, steps: int) -> Budget:
        """The same with the budgets of the first of `steps` that each keep the same fraction  (eq. 20)."""
        left = (1 - self.budgets / self._totals.clamp_min(1e-300)).clamp_min(0)
        return replace(
            self, budgets=self._totals * (1 - left ** (1 / steps)) if steps > 1 else self.budgets
        )

    @cached_property
    def _totals(self) -> Tensor:
        return _sums(self.costs, self.labels, len(self.budgets))

    def _check_enough(self, remove: Tensor, labels: Tensor) -> None:
        spent = _sums(self.costs[remove], self.labels[remove], len(self.budgets))
        open_ = torch.bincount(labels[~remove], minlength=len(self.budgets))[: len(self.budgets)]
        largest = float(self.costs.max()) if len(self.costs) else 0.0
        short = (self.budgets - spent)[
            (open_ == 0) & (self.budgets - spent >= max(largest, 1e-9))
        ].sum()
        if (
            short > 0
        ):  # the cheapest of a layer are all that it can spare, and they may compete elsewhere
            raise WoodburyError(TOO_LITTLE.format(float(short)))


def budget_for(
    space: ParameterSpace,
    targets: Targets,
    unit: Unit,
    scope: Scope,
    cost: Cost,
    ceiling: float = 1.0,
    per: Cost | None = None,
) -> Budget:
    """The contest over the weights left in `space`, in O(n). per: what scores are divided by, None for the cost  (eq. 51).

    Raises WoodburyError for targets and ceilings that cannot be met, costs that are no costs, and units across scopes.
    """
    account = _account(space, targets, scope, cost)
    account.check()
    keep = space.keep.cpu()
    owner, labels = space.tensor_index()[keep], account.labels[keep]
    units = unit(space)
    groups = None if units is None else tuple(units)
    first = torch.arange(space.d) if groups is None else torch.cat([some[:, 0] for some in groups])
    if groups is not None:
        _check_inside(space, groups, labels, "scopes, or two targets: let all weights compete")
    costs = _by_unit(account.prices[keep], groups)
    divisor = costs if per is None else _by_unit(_prices(per, space)[keep], groups)
    made = Budget(
        d=space.d,
        groups=groups,
        costs=costs,
        labels=labels[first],
        budgets=account.room(),
        layers=owner[first],
        ceilings=None if ceiling == 1 else _ceilings(space, ceiling, cost, groups, owner),
        per=None if bool((divisor == divisor[0]).all()) else divisor,
    )
    _check_enough_units(made)
    return made


def _by_unit(values: Tensor, groups: tuple[Tensor, ...] | None) -> Tensor:
    """(d,) summed over the units: (g,)."""
    return values if groups is None else torch.cat([values[some].sum(1) for some in groups])


def _ceilings(
    space: ParameterSpace,
    ceiling: float,
    cost: Cost,
    groups: tuple[Tensor, ...] | None,
    owner: Tensor,
) -> Tensor:
    if not 0 < ceiling < 1:
        raise WoodburyError(
            f"The ceiling is {ceiling}: it is the share of a tensor that may go and must lie in (0, 1]."
        )
    if groups is not None:
        _check_inside(space, groups, owner, "tensors: leave the ceiling out")
    return _account(space, ceiling, layerwise, cost).room()


def _check_inside(
    space: ParameterSpace, groups: tuple[Tensor, ...], labels: Tensor, across: str
) -> None:
    for some in groups:
        astray = (labels[some] != labels[some][:, :1]).any(1).nonzero()[:, 0]
        if len(astray):
            name = _name(space, int(space.keep.cpu().nonzero()[int(some[astray[0], 0]), 0]))
            raise WoodburyError(
                f"A unit that begins in {name!r} lies in two {across}, or give smaller units."
            )


def _check_enough_units(made: Budget) -> None:
    """An error if the units under a label cannot add up to its budget, whatever their scores will be."""
    there = _sums(made.costs, made.labels, len(made.budgets))
    if made.ceilings is not None:
        count = len(made.ceilings)
        pairs, pair = (made.labels * count + made.layers).unique(return_inverse=True)
        there = torch.minimum(_sums(made.costs, pair, len(pairs)), made.ceilings[pairs % count])
        there = _sums(there, pairs // count, len(made.budgets))
    short = made.budgets - there
    short = float(short[short >= max(float(made.costs.max()), 1e-9)].sum())
    if short:
        raise WoodburyError(TOO_LITTLE.format(short))


def current_sparsity(space: ParameterSpace, targets: Targets, cost: Cost) -> Targets:
    """How much is gone already, at most what `targets` ask for: a share of the cost, or one for each of their patterns."""
    prices, gone = _prices(cost, space), ~space.keep.cpu()
    if not isinstance(targets, Mapping):
        return min(targets, float((prices * gone).sum() / prices.sum()))
    patterns, shares = list(targets), {}
    owner = torch.tensor([_first_match(name, patterns) for name in space.shapes])[
        space.tensor_index()
    ]
    for index, pattern in enumerate(patterns):
        own = prices * (owner == index)
        shares[pattern] = min(
            targets[pattern], float((own * gone).sum() / own.sum().clamp_min(1e-300))
        )
    return shares


def kept_count(space: ParameterSpace, targets: Targets) -> float:
    """How many weights stay at `targets`. Raises WoodburyError for targets that match no parameter, and for missing ones."""
    account = _account(space, targets, global_, weights)
    return float((account.original - account.wanted).sum())


def check_reachable(space: ParameterSpace, targets: Targets, scope: Scope, cost: Cost) -> None:
    """An error if some label has lost more already than its target would take."""
    account = _account(space, targets, scope, cost)
    over = (account.gone > account.wanted * (1 + 1e-9)).nonzero()[:, 0]
    if len(over):
        first = _name(space, int((account.labels == over[0]).nonzero()[0]))
        raise WoodburyError(
            f"sparsity {_format_targets(targets)} is below what is reached already: {float(account.gone[over[0]]):.6g} of what competes "
            f"with {first!r} is gone, {float(account.wanted[over[0]]):.6g} would go; pruned weights stay."
        )


@dataclass(frozen=True, eq=False)
class _Account:
    """What each of the n weights costs and competes with, and per label what there was, must go and is gone."""

    space: ParameterSpace
    targets: Targets
    prices: Tensor
    labels: Tensor
    original: Tensor
    wanted: Tensor
    gone: Tensor

    def room(self) -> Tensor:
        return (self.wanted - self.gone).clamp_min(0)

    def check(self) -> None:
        if float(self.wanted.sum()) >= float(self.original.sum()):
            raise WoodburyError(
                f"sparsity {_format_targets(self.targets)} leaves none of {self.space.n} weights: ask for less."
            )
        if float(self.wanted.sum()) < float(self.gone.sum()) * (1 - 1e-9):
            reached = float(self.gone.sum() / self.original.sum())
            raise WoodburyError(
                f"sparsity {_format_targets(self.targets)} is below the {reached:.4f} reached already: pruned weights stay."
            )


def _account(space: ParameterSpace, targets: Targets, scope: Scope, cost: Cost) -> _Account:
    prices, keep = _prices(cost, space), space.keep.cpu()
    labels, goals = _labels(space, targets, scope)
    original = _sums(prices, labels, len(goals))
    wanted = original * goals
    if bool((prices == 1).all()):
        wanted = wanted.round()
    gone = _sums(prices[~keep], labels[~keep], len(goals))
    return _Account(space, targets, prices, labels, original, wanted, gone)


def _prices(cost: Cost, space: ParameterSpace) -> Tensor:
    prices = cost(space).double().cpu()
    if prices.shape != (space.n,):
        raise WoodburyError(
            f"The cost gave shape {tuple(prices.shape)}: give one number for each of {space.n} weights."
        )
    bad = ~(torch.isfinite(prices) & (prices > 0))
    if bool(bad.any()):
        name = _name(space, int(bad.nonzero()[0]))
        raise WoodburyError(
            f"A cost in {name!r} is zero, negative or not finite: every weight must cost something."
        )
    return prices


def _labels(space: ParameterSpace, targets: Targets, scope: Scope) -> tuple[Tensor, Tensor]:
    """The label of each of the n weights and the target of each label: the scope's, within each of the targets' groups."""
    labels = scope(space)
    if not isinstance(targets, Mapping):
        return labels, torch.full(
            (int(labels.max()) + 1,), check_sparsity(targets), dtype=torch.float64
        )
    names, patterns = list(space.shapes), list(targets)
    unused = [p for p in patterns if not any(fnmatchcase(name, p) for name in names)]
    if unused:
        raise WoodburyError(
            f"The target {unused[0]!r} matches no parameter: the space has {', '.join(names[:8])}."
        )
    group_of = [_first_match(name, patterns) for name in names]
    group = torch.tensor(group_of)[space.tensor_index()]
    goals = torch.tensor(
        [check_sparsity(targets[pattern]) for pattern in patterns], dtype=torch.float64
    )
    pairs, own = (labels * len(patterns) + group).unique(return_inverse=True)
    return own, goals[pairs % len(patterns)]


def _first_match(name: str, patterns: Sequence[str]) -> int:
    for index, pattern in enumerate(patterns):
        if fnmatchcase(name, pattern):
            return index
    raise WoodburyError(f"No target is given for {name!r}: add one, such as '*' for the rest.")


def _format_targets(targets: Targets) -> str:
    return (
        ", ".join(f"{p}={t}" for p, t in targets.items())
        if isinstance(targets, Mapping)
        else str(targets)
    )


def _name(space: ParameterSpace, weight: int) -> str:
    return next(name for name, part in space.slices.items() if part.start <= weight < part.stop)


def _sums(values: Tensor, labels: Tensor, count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.float64).index_add_(0, labels, values.double())


def select(scores: Tensor, costs: Tensor, labels: Tensor, budgets: Tensor) -> Tensor:
    """The units to remove, (g,) bool: per label the lowest scores whose costs add up to at most its budget  (eq. 18).

    scores, costs, labels: (g,), labels from 0; budgets: one per label. Equal scores fall in the order of their index, so
    that unit costs meet a whole budget exactly. Raises WoodburyError on scores that are not finite or costs that are not
    positive.
    """
    if not bool(torch.isfinite(scores).all()):
        worst = int((~torch.isfinite(scores)).nonzero()[0])
        raise WoodburyError(
            f"The saliency of unit {worst} is not finite: raise the damping or look at that weight."
        )
    if not bool((costs > 0).all()):
        raise WoodburyError("A cost is zero, negative or NaN: every unit must cost something.")
    order = scores.argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]  # by label, then by score
    spent = torch.cat([costs.new_zeros(1, dtype=torch.float64), costs[order].double().cumsum(0)])
    members = torch.bincount(labels, minlength=len(budgets))
    label = labels[order]
    before = spent[members.cumsum(0) - members][label]
    affordable = spent[1:] - before <= budgets[label] * (1 + 1e-12) + 1e-15 * spent[-1]
    return torch.zeros(len(scores), dtype=torch.bool, device=scores.device).index_fill_(
        0, order[affordable], True
    )
