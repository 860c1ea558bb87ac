"""Where strings become objects: the names of methods and of what belongs to them; `rules` has those of what falls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from woodbury.cli.rules import Rules, by_words, pick
from woodbury.errors import WoodburyError
from woodbury.estimation.gradients import Engine, Labels, looped, observed, sampled, vmapped
from woodbury.estimation.recipes import (
    Estimate,
    diagonal_fisher,
    gauss_newton,
    hessian_diagonal,
    kfac,
    mfac,
    woodfisher,
)
from woodbury.evaluation.comparison import Method
from woodbury.fisher.base import Fisher
from woodbury.fisher.checks import check_damping
from woodbury.fisher.kronecker.restricted import Elements, exact, upper_bound
from woodbury.model.flop_count import Flops
from woodbury.model.likelihood import Likelihood, cross_entropy, squared_error
from woodbury.model.objective import Objective
from woodbury.optim.optimizer import MFAC
from woodbury.pruning.autoconfig import describe_refit, fitting_block
from woodbury.pruning.presets import standard
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.refit.least_squares import Refit
from woodbury.pruning.saliencies import Saliency, magnitude, obd, obs, woodtaylor
from woodbury.pruning.updates import Update, independent, joint, zero

AUTO = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""The dampings that `--damping auto` tries: which is best differs by network and sparsity by many powers of ten."""


MC_SAMPLES = standard.mc_samples
"""Gauss–Newton rows to a sample."""


@dataclass(frozen=True)
class Sampling:
    """What a Fisher is estimated from. labels: None for each method's own."""

    count: int
    batch: int
    block: int | None
    seed: int
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
    return own | {"engine": s.engine}


def _diagonal(s: Sampling, damping: float) -> Estimate:
    return diagonal_fisher(s.count, damping, **_observed(s))


def _hessian(s: Sampling, damping: float) -> Estimate:
    _check_single("hessian", s)
    return hessian_diagonal(s.count, damping, labels=s.labels or observed, seed=s.seed)


def _woodfisher(s: Sampling, damping: float) -> Estimate:
    return woodfisher(s.count, s.block or 2000, damping, **_observed(s))


def _mfac(s: Sampling, damping: float) -> Estimate:
    return mfac(s.count, damping, block=s.block, **_observed(s))


def _gauss_newton(s: Sampling, damping: float) -> Estimate:
    _check_single("gauss-newton", s)

    def estimate(objective: Objective) -> Fisher:
        block = s.block or fitting_block(objective.space.d)
        rows = mfac(MC_SAMPLES * s.count, damping, block=block, engine=s.engine)
        return gauss_newton(rows, MC_SAMPLES, seed=s.seed)(objective)

    return estimate


def _kfac(s: Sampling, damping: float, elements: Elements = exact) -> Estimate:
    _check_single("kfac", s)
    labels = s.labels or sampled
    return kfac(s.count, damping, labels=labels, seed=s.seed, elements=elements)


def _check_single(name: str, s: Sampling) -> None:
    if s.batch > 1:
        raise WoodburyError(
            f"{name} takes single samples, not averages of {s.batch}: leave --batch out, or take --method mfac."
        )


METHODS: Mapping[str, Kind] = {
    "gauss-newton": Kind(_gauss_newton, obs, woodtaylor, "joint"),
    "magnitude": Kind(None, magnitude, None, "zero"),
    "diagonal": Kind(_diagonal, obd, None, "zero"),
    "hessian": Kind(_hessian, obd, None, "zero"),
    "woodfisher": Kind(_woodfisher, obs, woodtaylor, "joint"),
    "mfac": Kind(_mfac, obs, woodtaylor, "joint"),
    "kfac": Kind(_kfac, obs, woodtaylor, "joint"),
    "kfac-bound": Kind(partial(_kfac, elements=upper_bound), obs, woodtaylor, "joint"),
}
LABELS: Mapping[str, Labels | None] = {"own": None, "observed": observed, "sampled": sampled}
UPDATES: Mapping[str, Update] = {"zero": zero, "independent": independent, "joint": joint}
LOSSES: Mapping[str, Likelihood] = {"cross_entropy": cross_entropy, "squared_error": squared_error}
ENGINES: Mapping[str, Engine] = {"vmapped": vmapped, "looped": looped}


@dataclass(frozen=True)
class Trainer:
    """An optimizer's name at the door, its usual learning rate, and options of its own with their usual numbers."""

    lr: float
    make: Callable[..., torch.optim.Optimizer]
    own: Mapping[str, float] = field(default_factory=dict)


def _sgd(
    weights: Iterable[Tensor], lr: float, momentum: float, decay: float
) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, lr, momentum=momentum, weight_decay=decay)


def _adam(
    weights: Iterable[Tensor], lr: float, momentum: float, decay: float
) -> torch.optim.Optimizer:
    return torch.optim.Adam(weights, lr, (momentum, 0.999), weight_decay=decay)


def _adamw(
    weights: Iterable[Tensor], lr: float, momentum: float, decay: float
) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr, (momentum, 0.999), weight_decay=decay)


def _mfac_of(
    weights: Iterable[Tensor], lr: float, momentum: float, decay: float, window: int, damping: float
) -> torch.optim.Optimizer:
    return MFAC(weights, lr, momentum=momentum, weight_decay=decay, window=window, damping=damping)


def _sgd_after_kfac(
    weights: Iterable[Tensor], lr: float, momentum: float, decay: float, damping: float
) -> torch.optim.Optimizer:
    check_damping(damping)
    return _sgd(weights, lr, momentum, decay)


OPTIMIZERS: Mapping[str, Trainer] = {
    "sgd": Trainer(1e-2, _sgd),
    "adam": Trainer(1e-3, _adam),
    "adamw": Trainer(1e-3, _adamw),
    "mfac": Trainer(3e-3, _mfac_of, {"window": 128, "damping": 1e-2}),
}

TRAINERS: Mapping[str, Trainer] = {
    **OPTIMIZERS,
    "kfac": Trainer(3e-2, _sgd_after_kfac, {"damping": 3e-2}),
}
"""Those that `train` knows; kfac is sgd with a Preconditioner before it, which has the damping."""


def dampings(text: str) -> tuple[float, ...]:
    """`auto`, a number, or several with commas between."""
    if text == "auto":
        return AUTO
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(0 < value < float("inf") for value in values):
        raise WoodburyError(
            f"--damping is {text!r}: give a positive number, several with commas between, or auto."
        )
    return values


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
    stages: int
    dampings: tuple[float, ...]
    words: Mapping[str, Any]
    refits: int = 0

    def method(
        self, sampling: Sampling, flops: Flops | None = None, refit: Refit | None = None
    ) -> Method:
        """The method that estimates its Fisher so; the first damping is the one to begin with. flops: of the model."""
        pruner = Pruner(
            fisher=self.kind.estimate(sampling, self.dampings[0]) if self.kind.estimate else None,
            saliency=self.kind.first_order
            if self.first_order and self.kind.first_order
            else self.kind.saliency,
            update=UPDATES[self.update],
            first_order=self.first_order,
        )
        settings = {
            "recipe": self.name,
            "update": self.update,
            "first_order": self.first_order,
            **self.words,
        }
        return Method(
            self.rules.applied(pruner, flops),
            self.stages,
            self.dampings,
            settings | {"refits": describe_refit(refit)},
            refit,
        )


def plan(
    name: str,
    update: str | None,
    *,
    first_order: bool,
    stages: int,
    damping: str,
    refit: int = 0,
    **words: Any,
) -> Plan:
    """The plan for `NAME` or `NAME/UPDATE`, such as `mfac/independent`; `update` is for names that bring none.

    words: the options that `rules` reads. Raises WoodburyError for unknown names and for what the method cannot do.
    """
    name, _, own = name.partition("/")
    kind = pick(METHODS, name, "method")
    chosen = own or update or kind.update
    pick(UPDATES, chosen, "update")
    if kind.estimate is None and chosen != "zero":
        raise WoodburyError(
            f"{name} has no Fisher for the update {chosen!r}: leave the update out."
        )
    if kind.first_order is None and first_order:
        raise WoodburyError(
            f"{name} has no first-order form: leave --first-order out, or take mfac or woodfisher."
        )
    asked = by_words(words)
    if asked.pattern and kind.estimate and asked.ceiling < 1:
        raise WoodburyError("--pattern leaves nothing to a ceiling: leave --ceiling out.")
    candidates = dampings(damping)
    return Plan(
        name,
        kind,
        chosen,
        asked,
        first_order,
        stages,
        candidates if kind.estimate else (),
        words,
        refit,
    )
