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
from woodbury.model.flop_count import Flops
from woodbury.pruning.costs import power
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.scopes import Scope
from woodbury.pruning.selections.greedy_selection import Selection
from woodbury.pruning.semi_structured import n_of_m
from woodbury.pruning.units import Unit


@dataclass(frozen=True)
class SelectionRules:
    """Which weights are removed, as objects.

    Attributes:
        unit: What is removed together.
        scope: What competes.
        selection: How saliencies become the kept weights.
        pattern: (n, m) of an n:m pattern, None without one.
        flops: Whether the sparsity is a share of the FLOPs.
        flops_power: Of the FLOPs that saliencies are divided by, None for the usual one.
        max_layer_sparsity: The largest sparsity of a tensor.
    """

    unit: Unit
    scope: Scope
    selection: Selection
    pattern: tuple[int, int] | None
    flops: bool
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
            flops=options.flops,
            flops_power=options.flops_power,
            max_layer_sparsity=options.max_layer_sparsity,
        )

    def applied(self, pruner: Pruner, flops: Flops | None) -> Pruner:
        """The pruner that follows the rules.

        Args:
            pruner: One without rules of its own.
            flops: Of the model; None leaves the rules about FLOPs out.
        """
        pruner = replace(
            pruner,
            unit=self.unit,
            scope=self.scope,
            selection=self.selection,
            max_layer_sparsity=self.max_layer_sparsity,
        )
        if self.pattern:
            pruner = n_of_m(*self.pattern, pruner).pruner
        if flops and self.flops:
            pruner = replace(pruner, cost=flops)
        if flops and self.flops_power is not None:
            pruner = replace(pruner, normalize_by=power(flops, self.flops_power))
        return pruner


def _check_alone_with_pattern(options: SelectionOptions) -> None:
    """Raise WoodburyError for an option that a pattern leaves nothing to decide."""
    usual = SelectionOptions()
    for name in ("scope", "selection", "unit"):
        value = getattr(options, name)
        if value != getattr(usual, name):
            raise WoodburyError(f"--pattern fixes the {name}: leave --{name} {value} out.")
