"""Rules: the words for what falls together, what competes, how it is chosen and what counts, and what they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, TypeVar

from woodbury.errors import WoodburyError
from woodbury.model.flop_count import Flops
from woodbury.pruning.costs import power
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.schedule import Targets, check_sparsity, check_targets
from woodbury.pruning.scopes import Scope, global_, layerwise
from woodbury.pruning.selections.greedy_selection import Selection, greedy, iterative_greedy
from woodbury.pruning.selections.local_search import iterative_hard_thresholding, swaps
from woodbury.pruning.selections.subset_search import exhaustive
from woodbury.pruning.semi_structured import n_of_m
from woodbury.pruning.units import Unit, block, input_channels, output_channels, single

T = TypeVar("T")
SCOPES: Mapping[str, Scope] = {"global": global_, "layers": layerwise}
UNITS: Mapping[str, Unit] = {
    "single": single,
    "channels": output_channels,
    "rows": output_channels,
    "columns": input_channels,
}
SELECTIONS: Mapping[str, Selection] = {"once": greedy, "exhaustive": exhaustive}
STEPPED: Mapping[str, Callable[[int], Selection]] = {
    "stepwise": iterative_greedy,
    "swaps": swaps,
    "thresholded": iterative_hard_thresholding,
}
"""Selections that are told a number: `stepwise:16`."""


def pick(table: Mapping[str, T], name: str, what: str) -> T:
    """The object of that name, or an error that lists the names there are."""
    if name not in table:
        near = get_close_matches(name, table, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose {', '.join(table)}."
        raise WoodburyError(f"There is no {what} {name!r}: {hint}")
    return table[name]


def unit(word: str) -> Unit:
    """`single`, `channels`, `rows`, `columns`, or tiles as `block:4`, `block:4x1`."""
    name, colon, size = word.partition(":")
    if name != "block":
        return pick(UNITS, word, "unit")
    sides = size.split("x")
    if not (colon and all(side.isdigit() and int(side) for side in sides)):
        raise WoodburyError(
            f"--unit is {word!r}: give the size of a block, such as block:4 or block:4x1."
        )
    return block(*map(int, sides))


def selection(word: str) -> Selection:
    """`once`, `exhaustive`, or with a number `stepwise:16`, `swaps:20`, `thresholded:20`."""
    name, colon, number = word.partition(":")
    if not colon and name not in STEPPED:
        return pick(SELECTIONS | STEPPED, name, "selection")  # type: ignore[return-value,operator]
    if not number.isdigit():
        raise WoodburyError(
            f"--selection is {word!r}: give a number of steps, such as stepwise:16."
        )
    return pick(STEPPED, name, "selection with a number")(int(number))


def pattern(word: str) -> tuple[int, int]:
    """`2:4` as (2, 4)."""
    n, _, m = word.partition(":")
    if not (n.isdigit() and m.isdigit()):
        raise WoodburyError(f"--pattern is {word!r}: give how many stay of how many, such as 2:4.")
    return int(n), int(m)


def targets(text: str) -> Targets:
    """A sparsity, or several as `conv1*=0,fc*=0.8,*=0.9`, of which the first that matches a tensor counts."""
    try:
        if "=" not in text:
            return check_sparsity(float(text))
        pairs = [part.rsplit("=", 1) for part in text.split(",")]
        return check_targets({name.strip(): float(number) for name, number in pairs})
    except WoodburyError:
        raise
    except ValueError as error:
        raise WoodburyError(
            f"--sparsity is {text!r}: give a number such as 0.9, or PATTERN=NUMBER with commas between, such as fc*=0.8,*=0.9."
        ) from error


def sparsity_of(text: str | None, runs: str | None) -> Targets:
    """The target: as asked for, or what the n:m pattern makes of it."""
    if runs is None:
        if text is None:
            raise WoodburyError(
                "There is no target: give --sparsity, such as --sparsity 0.9, or --pattern."
            )
        return targets(text)
    if text is not None:
        raise WoodburyError(f"--pattern {runs} settles the sparsity: leave --sparsity out.")
    return pattern_sparsity(runs)


def pattern_sparsity(word: str) -> float:
    """`2:4` as 0.5."""
    sparsity, _ = n_of_m(*pattern(word))
    return sparsity


@dataclass(frozen=True)
class Rules:
    """What falls together, what competes, how it is chosen and what counts."""

    unit: Unit
    scope: Scope
    selection: Selection
    pattern: tuple[int, int] | None
    flops: bool
    flops_power: float | None
    ceiling: float

    def applied(self, pruner: Pruner, flops: Flops | None) -> Pruner:
        """The pruner that follows them; flops: of the model, where they are counted."""
        pruner = replace(
            pruner, unit=self.unit, scope=self.scope, selection=self.selection, ceiling=self.ceiling
        )
        if self.pattern:
            n, m = self.pattern
            _, pruner = n_of_m(n, m, pruner)
        if flops and self.flops:
            pruner = replace(pruner, cost=flops)
        if flops and self.flops_power is not None:
            pruner = replace(pruner, normalize_by=power(flops, self.flops_power))
        return pruner


def by_words(words: Mapping[str, Any]) -> Rules:
    """The rules by the words of the command line. Raises WoodburyError for unknown ones and for those that do not go together."""
    runs = pattern(words["pattern"]) if words["pattern"] else None
    if runs:
        pattern_sparsity(words["pattern"])
        for name, usual in (("scope", "global"), ("selection", "once"), ("unit", "single")):
            if words[name] != usual:
                raise WoodburyError(
                    f"--pattern settles the {name}: leave --{name} {words[name]} out."
                )
    if not 0 < words["ceiling"] <= 1:
        raise WoodburyError(
            f"--ceiling is {words['ceiling']}: the share of a tensor that may go lies in (0, 1]."
        )
    return Rules(
        unit=unit(words["unit"]),
        scope=pick(SCOPES, words["scope"], "scope"),
        selection=selection(words["selection"]),
        pattern=runs,
        flops=words["flops"],
        flops_power=words["flops_power"],
        ceiling=words["ceiling"],
    )
