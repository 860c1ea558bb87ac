"""The paper names: recipes that turn an Objective into a Fisher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.estimation.ggn import gauss_newton_rows
from woodbury.estimation.gradients import (
    Engine,
    Labels,
    gradient_chunks,
    gradient_rows,
    observed,
    sampled,
)
from woodbury.estimation.hessian import second_derivatives
from woodbury.estimation.kfac_factors import factors
from woodbury.fisher.base import Fisher
from woodbury.fisher.block_diagonal import BlockDiagonal
from woodbury.fisher.blocks_of_rows import dense_blocks, is_primal, summed_blocks
from woodbury.fisher.checks import check_damping
from woodbury.fisher.diagonal import Diagonal
from woodbury.fisher.kronecker.operator import Kronecker
from woodbury.fisher.kronecker.restricted import Elements, exact
from woodbury.fisher.lowrank import LowRank
from woodbury.model.objective import Objective
from woodbury.monitor import Progress

Estimate = Callable[[Objective], Fisher]


def diagonal_fisher(
    count: int = 1000,
    damping: float = 1e-5,
    *,
    batch: int = 1,
    labels: Labels = observed,
    seed: int = 0,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """The diagonal of the Fisher, as Optimal Brain Damage takes it (LeCun et al. 1989)  (eq. 3).

    count rows of `batch` samples each, streamed and never stored; see `mfac` for the other arguments.
    """
    check_damping(damping)

    def estimate(objective: Objective) -> Diagonal:
        squares = torch.zeros_like(objective.weights, dtype=torch.float64)
        options = {
            "batch": batch,
            "labels": labels,
            "generator": _generator(objective, seed),
            "engine": engine,
        }
        for chunk in _told(gradient_chunks(objective, count, **options), count, progress):
            squares += (
                chunk.to(torch.promote_types(chunk.dtype, torch.float32)).square().sum(0)
            )  # halves underflow
        return Diagonal(
            (squares / count).to(torch.promote_types(objective.weights.dtype, torch.float32)),
            damping,
        )

    return estimate


def hessian_diagonal(
    count: int = 1000,
    damping: float = 1e-5,
    *,
    labels: Labels = observed,
    seed: int = 0,
    progress: Progress | None = None,
) -> Estimate:
    """The exact diagonal of the Hessian of the mean loss over `count` samples, negative entries as 0  (eq. 35).

    What Optimal Brain Damage approximates (LeCun et al. 1989): it assumes a minimum, where no entry is negative; away from
    one, a weight of negative curvature costs its damping alone, as one without any. One Hessian-vector product per weight: see
    `second_derivatives`.
    """
    check_damping(damping)

    def estimate(objective: Objective) -> Diagonal:
        generator = _generator(objective, seed)
        exact = second_derivatives(
            objective, count, labels=labels, generator=generator, progress=progress
        )
        return Diagonal(
            exact.clamp(min=0).to(torch.promote_types(objective.weights.dtype, torch.float32)),
            damping,
        )

    return estimate


def woodfisher(
    count: int = 1000,
    block: int = 2000,
    damping: float = 1e-5,
    *,
    batch: int = 1,
    labels: Labels = observed,
    seed: int = 0,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """The empirical Fisher in dense blocks of `block` weights (WoodFisher, Singh & Alistarh 2020)  (eq. 11).

    Blocks lie inside one tensor. The same matrix as `mfac` with that block, computed in whichever form is cheaper.
    """
    return mfac(
        count,
        damping,
        block=block,
        batch=batch,
        labels=labels,
        seed=seed,
        engine=engine,
        progress=progress,
    )


def mfac(
    count: int = 1000,
    damping: float = 1e-5,
    *,
    block: int | None = None,
    batch: int = 1,
    labels: Labels = observed,
    seed: int = 0,
    engine: Engine | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """The empirical Fisher of `count` gradients, matrix-free (M-FAC, Frantar, Kurtic & Alistarh 2021)  (eq. 2, 6).

    block: weights per block, None for the whole matrix. batch: samples that a row averages. labels: `observed`, or
    `sampled` for the true Fisher, drawn with `seed`. engine: pin one for runs that agree bit for bit. Needs count × d
    floats, or block × d in float64 where that is no more. Raises WoodburyError on too little data.
    """
    check_damping(damping)
    if block is not None and block < 1:
        raise WoodburyError(
            f"A block of {block} weights is empty: give a size of at least 1, or None for the whole."
        )

    def estimate(objective: Objective) -> Fisher:
        options = {
            "batch": batch,
            "labels": labels,
            "generator": _generator(objective, seed),
            "engine": engine,
        }
        sizes = None if block is None else objective.space.block_sizes(block)
        if (
            sizes and is_primal(count, sizes) and 2 * max(sizes) <= count
        ):  # the sums are smaller than the rows
            return summed_blocks(
                _told(gradient_chunks(objective, count, **options), count, progress), sizes, damping
            )
        matrix = gradient_rows(objective, count, progress=progress, **options)
        return LowRank(matrix, damping) if sizes is None else dense_blocks(matrix, sizes, damping)

    return estimate


def kfac(
    count: int = 1000,
    damping: float = 1e-5,
    *,
    labels: Labels = sampled,
    seed: int = 0,
    damped: Callable[[Tensor, Tensor, float], Kronecker] = Kronecker,
    elements: Elements = exact,
    progress: Progress | None = None,
) -> Estimate:
    """K-FAC: one Kronecker product for each tensor of the space, from `count` samples  (eq. 27).

    damped: how the damping enters: `Kronecker` adds exactly damping·I, `pi_corrected` damps both factors as the paper
    does, with another meaning of the number. elements: inverse elements once weights are gone: `exactly`, at O(n³) for
    n weights of a tensor that stay or went, or `upper_bound`, their upper bound, for stages on tensors beyond a few thousand.
    Raises WoodburyError for layers other than Linear and ungrouped Conv2d.
    """
    check_damping(damping)

    def estimate(objective: Objective) -> BlockDiagonal:
        space = objective.space
        pairs = factors(
            objective,
            count,
            labels=labels,
            generator=_generator(objective, seed),
            progress=progress,
        )
        keep = space.keep.to(objective.weights.device)
        kept = [(name, keep[part]) for name, part in space.slices.items() if keep[part].any()]
        parts = (
            (replace(damped(*pairs[name], damping), elements=elements), own) for name, own in kept
        )
        return BlockDiagonal(tuple(part.restrict(own) for part, own in parts))

    return estimate


def gauss_newton(recipe: Estimate, mc_samples: int = 2, *, seed: int = 0) -> Estimate:
    """A recipe from Gauss–Newton rows in place of gradients by labels: `mc_samples` rows to a sample, no labels needed  (eq. 29).

    recipe: `mfac`, `woodfisher` or `diagonal`, whose `count` counts rows: gauss_newton(mfac(2000), 2) reads 1,000 samples.
    """
    return lambda objective: recipe(gauss_newton_rows(objective, mc_samples, seed))


def _told(chunks: Iterable[Tensor], count: int, progress: Progress | None) -> Iterator[Tensor]:
    """The chunks of rows, and after each the progress."""
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        if progress:
            progress("gradients", done, count)


def _generator(objective: Objective, seed: int) -> torch.Generator:
    return torch.Generator(objective.weights.device).manual_seed(seed)
