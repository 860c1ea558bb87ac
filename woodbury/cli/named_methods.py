"""The pruning methods by their names: what each is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from woodbury.cli.names import MethodName, UpdateName
from woodbury.errors import WoodburyError
from woodbury.estimation.engines import Engine
from woodbury.estimation.labels import Labels, observed, sampled
from woodbury.estimation.recipes import (
    Estimate,
    diagonal_fisher,
    gauss_newton,
    hessian_diagonal,
    kfac,
    mfac,
    woodfisher,
)
from woodbury.fisher.base import Fisher
from woodbury.fisher.kronecker import Elements, exact, upper_bound
from woodbury.model.objective import Objective
from woodbury.pruning.saliencies import Saliency, magnitude, obd, obs, woodtaylor
from woodbury.pruning.step_choice import block_size

WOODFISHER_BLOCK = 2000
"""Weights per block that woodfisher usually has."""


@dataclass(frozen=True)
class Sampling:
    """What a Fisher is estimated from.

    Attributes:
        count: Gradients; for Gauss–Newton rows, inputs.
        batch: Samples that one gradient averages.
        mc_samples: GGN samples per input.
        block: Weights per block, None for each method's own.
        seed: Of what is drawn.
        labels: None for each method's own.
        engine: `hooked`, `vmapped` or `looped`; None for the fastest.
    """

    count: int
    batch: int
    mc_samples: int
    block: int | None
    seed: int
    labels: Labels | None = None
    engine: Engine | None = None

    def check_single(self, method: MethodName) -> None:
        """Raise WoodburyError if a gradient averages samples, which `method` cannot take."""
        if self.batch > 1:
            raise WoodburyError(
                f"{method} takes single samples, not averages of {self.batch}: leave --batch out, "
                "or take --method mfac."
            )


@dataclass(frozen=True)
class gauss_newton_that_fits:
    """Gauss–Newton rows in blocks of a size that suits the number of weights.

    Attributes:
        count: Rows in all.
        mc_samples: GGN samples per input.
        damping: Added to the diagonal.
        block: Weights per block; None for the best known size, which the model decides.
        seed: Of the random directions.
        engine: `hooked`, `vmapped` or `looped`; None for the fastest.
    """

    count: int
    mc_samples: int
    damping: float
    block: int | None = None
    seed: int = 0
    engine: Engine | None = None

    def __call__(self, objective: Objective) -> Fisher:
        """Estimate the Fisher at the objective's weights."""
        block = self.block or block_size(objective.space.d)
        rows = mfac(self.count, self.damping, block=block, engine=self.engine)
        return gauss_newton(rows, self.mc_samples, seed=self.seed)(objective)


def _diagonal_fisher(sampling: Sampling, damping: float) -> Estimate:
    return diagonal_fisher(
        sampling.count,
        damping,
        batch=sampling.batch,
        labels=sampling.labels or observed,
        seed=sampling.seed,
        engine=sampling.engine,
    )


def _hessian_diagonal(sampling: Sampling, damping: float) -> Estimate:
    sampling.check_single("hessian-diagonal")
    labels = sampling.labels or observed
    return hessian_diagonal(sampling.count, damping, labels=labels, seed=sampling.seed)


def _woodfisher(sampling: Sampling, damping: float) -> Estimate:
    return woodfisher(
        sampling.count,
        sampling.block or WOODFISHER_BLOCK,
        damping,
        batch=sampling.batch,
        labels=sampling.labels or observed,
        seed=sampling.seed,
        engine=sampling.engine,
    )


def _mfac(sampling: Sampling, damping: float) -> Estimate:
    return mfac(
        sampling.count,
        damping,
        block=sampling.block,
        batch=sampling.batch,
        labels=sampling.labels or observed,
        seed=sampling.seed,
        engine=sampling.engine,
    )


def _gauss_newton(sampling: Sampling, damping: float) -> Estimate:
    sampling.check_single("gauss-newton")
    return gauss_newton_that_fits(
        sampling.mc_samples * sampling.count,
        sampling.mc_samples,
        damping,
        block=sampling.block,
        seed=sampling.seed,
        engine=sampling.engine,
    )


def _kfac(sampling: Sampling, damping: float, elements: Elements = exact) -> Estimate:
    sampling.check_single("kfac")
    labels = sampling.labels or sampled
    return kfac(sampling.count, damping, labels=labels, seed=sampling.seed, elements=elements)


class NamedMethod(NamedTuple):
    """What a method's name stands for.

    Attributes:
        fisher: (sampling, damping) -> the recipe of its Fisher; None for a method without one.
        saliency: Its saliency.
        first_order_saliency: The one that heeds the gradient too, None where there is none.
        update: Its usual update.
    """

    fisher: Callable[[Sampling, float], Estimate] | None
    saliency: Saliency
    first_order_saliency: Saliency | None
    update: UpdateName


METHODS: Mapping[MethodName, NamedMethod] = {
    "gauss-newton": NamedMethod(_gauss_newton, obs, woodtaylor, "joint"),
    "magnitude": NamedMethod(None, magnitude, None, "zero"),
    "diagonal-fisher": NamedMethod(_diagonal_fisher, obd, None, "zero"),
    "hessian-diagonal": NamedMethod(_hessian_diagonal, obd, None, "zero"),
    "woodfisher": NamedMethod(_woodfisher, obs, woodtaylor, "joint"),
    "mfac": NamedMethod(_mfac, obs, woodtaylor, "joint"),
    "kfac": NamedMethod(_kfac, obs, woodtaylor, "joint"),
    "kfac-upper-bound": NamedMethod(partial(_kfac, elements=upper_bound), obs, woodtaylor, "joint"),
}
