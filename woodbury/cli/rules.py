"""Which weights are removed: the options of the selection as objects."""

from __future__ import annotations

from dataclasses import dataclass, replace

from woodbury.cli.names import (
    SCOPES,
    parse_pattern,
    parse_selection,
    parse_unit,
    pattern_sparsity,
)
from woodbury.cli.options import SelectionOptions
from woodbury.errors import WoodburyError
from woodbury.pruning.costs import Cost, power
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.scopes import Scope
from woodbury.pruning.selections.greedy_selection import Selection
from woodbury.pruning.semi_structured import n_of_m
from woodbury.pruning.units import Unit, single


@dataclass(frozen=True)
class SelectionRules:
    """Which weights are removed, as objects.

    Attributes:
        unit: What is removed together; None for what is coupled in the network.
        scope: What competes.
        selection: How saliencies become the kept weights.
        pattern: (n, m) of an n:m pattern, None without one.
        costs: Whether the sparsity is a share of the FLOPs, or of the time.
        flops_power: Of the FLOPs that saliencies are divided by, None for the usual one.
        max_layer_sparsity: The largest sparsity of a tensor.
    """

    unit: Unit | None
    scope: Scope
    selection: Selection
    pattern: tuple[int, int] | None
    costs: bool
    flops_power: float | None
    max_layer_sparsity: float

    @classmethod
    def of(cls, options: SelectionOptions) -> SelectionRules:
        """The rules that options name.

        Raises:
            WoodburyError: For a name that there is not, or options that exclude each other.
        """
        pattern = parse_pattern(options.pattern) if options.pattern else None
        if options.pattern:
            pattern_sparsity(options.pattern)  # refuses 4:4
            _check_alone_with_pattern(options)
        if options.latency and (options.flops or options.flops_power is not None):
            raise WoodburyError(
                "--latency counts seconds in place of FLOPs: leave --flops and --flops-power out."
            )
        if not 0 < options.max_layer_sparsity <= 1:
            raise WoodburyError(
                f"--max-layer-sparsity is {options.max_layer_sparsity}: it is the largest sparsity "
                "of a tensor, in (0, 1]."
            )
        return cls(
            unit=parse_unit(options.unit),
            scope=SCOPES[options.scope],
            selection=parse_selection(options.selection),
            pattern=pattern,
            costs=options.flops or options.latency,
            flops_power=options.flops_power,
            max_layer_sparsity=options.max_layer_sparsity,
        )

    def applied(self, pruner: Pruner, cost: Cost | None, coupled: Unit | None = None) -> Pruner:
        """The pruner that follows the rules.

        Args:
            pruner: One without rules of its own.
            cost: FLOPs or seconds of the model's weights; None leaves the rules about them out.
            coupled: What is coupled in the network, for rules that name no other unit.
        """
        pruner = replace(
            pruner,
            unit=self.unit or coupled or single,
            scope=self.scope,
            selection=self.selection,
            max_layer_sparsity=self.max_layer_sparsity,
        )
        if self.pattern:
            pruner = n_of_m(*self.pattern, pruner).pruner
        if cost and self.costs:
            pruner = replace(pruner, cost=cost)
        if cost and self.flops_power is not None:
            pruner = replace(pruner, normalize_by=power(cost, self.flops_power))
        return pruner


def _check_alone_with_pattern(options: SelectionOptions) -> None:
    """Raise WoodburyError for an option that a pattern leaves nothing to decide."""
    usual = SelectionOptions()
    for name in ("scope", "selection", "unit"):
        value = getattr(options, name)
        if value != getattr(usual, name):
            raise WoodburyError(f"--pattern fixes the {name}: leave --{name} {value} out.")
