"""The one place where strings become objects: every name that the command line knows, and what it stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from woodbury.comparison import Method
from woodbury.errors import WoodburyError
from woodbury.fisher.estimate import Estimate, diagonal, hessian_diagonal, kfac, mfac, woodfisher
from woodbury.fisher.restricted import Elements, at_most, exactly
from woodbury.flops import Flops
from woodbury.gradients import Engine, Labels, Progress, looped, observed, sampled, vmapped
from woodbury.objective import Likelihood, cross_entropy, squared_error
from woodbury.optim import MFAC
from woodbury.pruning.exchange import swaps, thresholded
from woodbury.pruning.exhaustive import exhaustive
from woodbury.pruning.pattern import n_of_m
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.saliency import Saliency, magnitude, obd, obs, woodtaylor
from woodbury.pruning.schedule import Targets, check_sparsity, check_targets
from woodbury.pruning.select import Scope, everything, layers, raised
from woodbury.pruning.selection import Selection, once, stepwise
from woodbury.pruning.units import Unit, block, input_channels, output_channels, single
from woodbury.pruning.update import Update, independent, joint, zero

T = TypeVar("T")
AUTO = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""The dampings that `--damping auto` tries: which is best differs by network and sparsity by many powers of ten."""


@dataclass(frozen=True)
class Sampling:
    """What a Fisher is estimated from. labels: None for each method's own."""

    count: int
    batch: int
    block: int | None
    seed: int
    progress: Progress | None
    labels: Labels | None = None
    engine: Engine | None = None


@dataclass(frozen=True)
class Kind:
    """A method's name at the door: its Fisher, its saliencies without and with the gradient, its usual update."""

    estimate: Callable[[Sampling, float], Estimate] | None
    saliency: Saliency
    first_order: Saliency | None
    update: str


def _observed(s: Sampling) -> dict[str, Any]:
    """Options of the recipes whose own labels are the observed ones."""
    own = {"batch": s.batch, "labels": s.labels or observed, "seed": s.seed}
    return own | {"engine": s.engine, "progress": s.progress}


def _diagonal(s: Sampling, damping: float) -> Estimate:
    return diagonal(s.count, damping, **_observed(s))


def _hessian(s: Sampling, damping: float) -> Estimate:
    _check_single("hessian", s)
    return hessian_diagonal(s.count, damping, labels=s.labels or observed, seed=s.seed, progress=s.progress)


def _woodfisher(s: Sampling, damping: float) -> Estimate:
    return woodfisher(s.count, s.block or 2000, damping, **_observed(s))


def _mfac(s: Sampling, damping: float) -> Estimate:
    return mfac(s.count, damping, block=s.block, **_observed(s))


def _kfac(s: Sampling, damping: float, elements: Elements = exactly) -> Estimate:
    _check_single("kfac", s)
    labels = s.labels or sampled
    return kfac(s.count, damping, labels=labels, seed=s.seed, elements=elements, progress=s.progress)


def _check_single(name: str, s: Sampling) -> None:
    if s.batch > 1:
        raise WoodburyError(f"{name} takes single samples, not averages of {s.batch}: leave --batch out.")


METHODS: Mapping[str, Kind] = {
    "magnitude": Kind(None, magnitude, None, "zero"),
    "diagonal": Kind(_diagonal, obd, None, "zero"),
    "hessian": Kind(_hessian, obd, None, "zero"),
    "woodfisher": Kind(_woodfisher, obs, woodtaylor, "joint"),
    "mfac": Kind(_mfac, obs, woodtaylor, "joint"),
    "kfac": Kind(_kfac, obs, woodtaylor, "joint"),
    "kfac-bound": Kind(partial(_kfac, elements=at_most), obs, woodtaylor, "joint"),
}
LABELS: Mapping[str, Labels | None] = {"own": None, "observed": observed, "sampled": sampled}
UPDATES: Mapping[str, Update] = {"zero": zero, "independent": independent, "joint": joint}
SCOPES: Mapping[str, Scope] = {"global": everything, "layers": layers}
UNITS: Mapping[str, Unit] = {
    "single": single,
    "channels": output_channels,
    "rows": output_channels,
    "columns": input_channels,
}
SELECTIONS: Mapping[str, Selection] = {"once": once, "exhaustive": exhaustive}
STEPPED: Mapping[str, Callable[[int], Selection]] = {"stepwise": stepwise, "swaps": swaps, "thresholded": thresholded}
"""Selections that are told a number: `stepwise:16`."""
LOSSES: Mapping[str, Likelihood] = {"cross_entropy": cross_entropy, "squared_error": squared_error}
ENGINES: Mapping[str, Engine] = {"vmapped": vmapped, "looped": looped}


@dataclass(frozen=True)
class Trainer:
    """An optimizer's name at the door, its usual learning rate, and the usual numbers of further options of its own."""

    lr: float
    make: Callable[..., torch.optim.Optimizer]
    own: Mapping[str, float] = field(default_factory=dict)


def _sgd(weights: Iterable[Tensor], lr: float, momentum: float, decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, lr, momentum=momentum, weight_decay=decay)


def _adam(weights: Iterable[Tensor], lr: float, momentum: float, decay: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(weights, lr, (momentum, 0.999), weight_decay=decay)


def _adamw(weights: Iterable[Tensor], lr: float, momentum: float, decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr, (momentum, 0.999), weight_decay=decay)


def _mfac_of(
    weights: Iterable[Tensor], lr: float, momentum: float, decay: float, window: int = 128, damping: float = 1e-2
) -> torch.optim.Optimizer:
    return MFAC(weights, lr, momentum=momentum, weight_decay=decay, window=window, damping=damping)


OPTIMIZERS: Mapping[str, Trainer] = {
    "sgd": Trainer(1e-2, _sgd),
    "adam": Trainer(1e-3, _adam),
    "adamw": Trainer(1e-3, _adamw),
    "mfac": Trainer(3e-3, _mfac_of, {"window": 128, "damping": 1e-2}),
}


def pick(table: Mapping[str, T], name: str, what: str) -> T:
    """The object of that name, or an error that lists the names there are."""
    if name not in table:
        near = get_close_matches(name, table, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose {', '.join(table)}."
        raise WoodburyError(f"There is no {what} {name!r}: {hint}")
    return table[name]


def dampings(text: str) -> tuple[float, ...]:
    """`auto`, a number, or several with commas between."""
    if text == "auto":
        return AUTO
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(0 < value < float("inf") for value in values):
        raise WoodburyError(f"--damping is {text!r}: give a positive number, several with commas between, or auto.")
    return values


def unit(word: str) -> Unit:
    """`single`, `channels`, `rows`, `columns`, or tiles as `block:4`, `block:4x1`."""
    name, colon, size = word.partition(":")
    if name != "block":
        return pick(UNITS, word, "unit")
    sides = size.split("x")
    if not (colon and all(side.isdigit() and int(side) for side in sides)):
        raise WoodburyError(f"--unit is {word!r}: give the size of a block, such as block:4 or block:4x1.")
    return block(*map(int, sides))


def selection(word: str) -> Selection:
    """`once`, `exhaustive`, or with a number `stepwise:16`, `swaps:20`, `thresholded:20`."""
    name, colon, number = word.partition(":")
    if not colon and name not in STEPPED:
        return pick(SELECTIONS | STEPPED, name, "selection")  # type: ignore[return-value,operator]
    if not number.isdigit():
        raise WoodburyError(f"--selection is {word!r}: give a number of steps, such as stepwise:16.")
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
            raise WoodburyError("There is no target: give --sparsity, such as --sparsity 0.9, or --pattern.")
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
        pruner = replace(pruner, unit=self.unit, scope=self.scope, selection=self.selection, ceiling=self.ceiling)
        if self.pattern:
            n, m = self.pattern
            _, pruner = n_of_m(n, m, pruner)
        if flops and self.flops:
            pruner = replace(pruner, cost=flops)
        if flops and self.flops_power is not None:
            pruner = replace(pruner, per=raised(flops, self.flops_power))
        return pruner


def by_words(words: Mapping[str, Any]) -> Rules:
    """The rules by the words of the command line. Raises WoodburyError for unknown ones and for those that do not go together."""
    runs = pattern(words["pattern"]) if words["pattern"] else None
    if runs:
        pattern_sparsity(words["pattern"])
        for name, usual in (("scope", "global"), ("selection", "once"), ("unit", "single")):
            if words[name] != usual:
                raise WoodburyError(f"--pattern settles the {name}: leave --{name} {words[name]} out.")
    if not 0 < words["ceiling"] <= 1:
        raise WoodburyError(f"--ceiling is {words['ceiling']}: the share of a tensor that may go lies in (0, 1].")
    return Rules(
        unit=unit(words["unit"]),
        scope=pick(SCOPES, words["scope"], "scope"),
        selection=selection(words["selection"]),
        pattern=runs,
        flops=words["flops"],
        flops_power=words["flops_power"],
        ceiling=words["ceiling"],
    )


@dataclass(frozen=True)
class Plan:
    """A method as asked for, seen to be possible before any work; `method` gives it its numbers.

    words: the options of the rules as they were given.
    """

    name: str
    kind: Kind
    update: str
    rules: Rules
    first_order: bool
    rounds: int
    dampings: tuple[float, ...]
    words: Mapping[str, Any]

    def method(self, sampling: Sampling, flops: Flops | None = None) -> Method:
        """The method that estimates its Fisher so; the first damping is the one to begin with. flops: of the model."""
        pruner = Pruner(
            fisher=self.kind.estimate(sampling, self.dampings[0]) if self.kind.estimate else None,
            saliency=self.kind.first_order if self.first_order and self.kind.first_order else self.kind.saliency,
            update=UPDATES[self.update],
            first_order=self.first_order,
        )
        settings = {"recipe": self.name, "update": self.update, "first_order": self.first_order, **self.words}
        return Method(self.rules.applied(pruner, flops), self.rounds, self.dampings, settings)


def plan(name: str, update: str | None, *, first_order: bool, rounds: int, damping: str, **words: Any) -> Plan:
    """The plan for `NAME` or `NAME/UPDATE`, such as `mfac/independent`; `update` is for names that bring none.

    words: the options that `rules` reads. Raises WoodburyError for unknown names and for what the method cannot do.
    """
    name, _, own = name.partition("/")
    kind = pick(METHODS, name, "method")
    chosen = own or update or kind.update
    pick(UPDATES, chosen, "update")
    if kind.estimate is None and chosen != "zero":
        raise WoodburyError(f"{name} has no Fisher for the update {chosen!r}: leave the update out.")
    if kind.first_order is None and first_order:
        raise WoodburyError(f"{name} has no first-order form: leave --first-order out, or take mfac or woodfisher.")
    asked = by_words(words)
    if asked.pattern and kind.estimate and asked.ceiling < 1:
        raise WoodburyError("--pattern leaves nothing to a ceiling: leave --ceiling out.")
    candidates = dampings(damping)
    return Plan(name, kind, chosen, asked, first_order, rounds, candidates if kind.estimate else (), words)
