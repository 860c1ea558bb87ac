"""The one place where strings become objects: every name that the command line knows, and what it stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeVar

from woodbury.comparison import Method
from woodbury.errors import WoodburyError
from woodbury.fisher.estimate import Estimate, diagonal, kfac, mfac, woodfisher
from woodbury.gradients import Progress
from woodbury.objective import Likelihood, cross_entropy, squared_error
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.saliency import Saliency, magnitude, obd, obs, woodtaylor
from woodbury.pruning.select import Scope, everything, layers
from woodbury.pruning.update import Update, independent, joint, zero

T = TypeVar("T")
AUTO = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""The dampings that `--damping auto` tries: which is best differs by network and sparsity by many powers of ten."""


@dataclass(frozen=True)
class Sampling:
    """What a Fisher is estimated from."""

    count: int
    batch: int
    block: int | None
    seed: int
    progress: Progress | None


@dataclass(frozen=True)
class Kind:
    """A method's name at the door: its Fisher, its saliencies without and with the gradient, its usual update."""

    estimate: Callable[[Sampling, float], Estimate] | None
    saliency: Saliency
    first_order: Saliency | None
    update: str


def _diagonal(s: Sampling, damping: float) -> Estimate:
    return diagonal(s.count, damping, batch=s.batch, seed=s.seed, progress=s.progress)


def _woodfisher(s: Sampling, damping: float) -> Estimate:
    return woodfisher(s.count, s.block or 2000, damping, batch=s.batch, seed=s.seed, progress=s.progress)


def _mfac(s: Sampling, damping: float) -> Estimate:
    return mfac(s.count, damping, block=s.block, batch=s.batch, seed=s.seed, progress=s.progress)


def _kfac(s: Sampling, damping: float) -> Estimate:
    if s.batch > 1:
        raise WoodburyError(f"kfac takes single samples, not averages of {s.batch}: leave --batch out.")
    return kfac(s.count, damping, seed=s.seed, progress=s.progress)


METHODS: Mapping[str, Kind] = {
    "magnitude": Kind(None, magnitude, None, "zero"),
    "diagonal": Kind(_diagonal, obd, None, "zero"),
    "woodfisher": Kind(_woodfisher, obs, woodtaylor, "joint"),
    "mfac": Kind(_mfac, obs, woodtaylor, "joint"),
    "kfac": Kind(_kfac, obs, woodtaylor, "joint"),
}
UPDATES: Mapping[str, Update] = {"zero": zero, "independent": independent, "joint": joint}
SCOPES: Mapping[str, Scope] = {"global": everything, "layers": layers}
LOSSES: Mapping[str, Likelihood] = {"cross_entropy": cross_entropy, "squared_error": squared_error}


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


@dataclass(frozen=True)
class Plan:
    """A method as asked for, seen to be possible before any work; `method` gives it its numbers."""

    name: str
    kind: Kind
    update: str
    scope: str
    first_order: bool
    rounds: int
    dampings: tuple[float, ...]

    def method(self, sampling: Sampling) -> Method:
        """The method that estimates its Fisher so; the first damping is the one to begin with."""
        pruner = Pruner(
            fisher=self.kind.estimate(sampling, self.dampings[0]) if self.kind.estimate else None,
            saliency=self.kind.first_order if self.first_order and self.kind.first_order else self.kind.saliency,
            update=UPDATES[self.update],
            scope=SCOPES[self.scope],
            first_order=self.first_order,
        )
        settings = {"recipe": self.name, "update": self.update, "scope": self.scope, "first_order": self.first_order}
        return Method(pruner, self.rounds, self.dampings, settings)


def plan(name: str, update: str | None, *, scope: str, first_order: bool, rounds: int, damping: str) -> Plan:
    """The plan for `NAME` or `NAME/UPDATE`, such as `mfac/independent`; `update` is for names that bring none.

    Raises WoodburyError for unknown names and for what the method cannot do.
    """
    name, _, own = name.partition("/")
    kind = pick(METHODS, name, "method")
    chosen = own or update or kind.update
    pick(UPDATES, chosen, "update")
    pick(SCOPES, scope, "scope")
    if kind.estimate is None and chosen != "zero":
        raise WoodburyError(f"{name} has no Fisher for the update {chosen!r}: leave the update out.")
    if kind.first_order is None and first_order:
        raise WoodburyError(f"{name} has no first-order form: leave --first-order out, or take mfac or woodfisher.")
    candidates = dampings(damping)
    return Plan(name, kind, chosen, scope, first_order, rounds, candidates if kind.estimate else ())
