"""The paper names: recipes that turn an Objective into a Fisher."""

from __future__ import annotations

from collections.abc import Callable

import torch

from woodbury.fisher.blocks import dense_blocks
from woodbury.fisher.explicit import Diagonal
from woodbury.fisher.lowrank import LowRank
from woodbury.fisher.operator import Fisher, check_damping
from woodbury.gradients import Labels, Progress, gradients, observed, rows
from woodbury.objective import Objective

Estimate = Callable[[Objective], Fisher]


def diagonal(
    count: int = 1000,
    damping: float = 1e-5,
    *,
    batch: int = 1,
    labels: Labels = observed,
    seed: int = 0,
    progress: Progress | None = None,
) -> Estimate:
    """The diagonal of the Fisher, as Optimal Brain Damage takes it (LeCun et al. 1989)  (eq. 3).

    count rows of `batch` samples each, streamed and never stored; see `mfac` for the other arguments.
    """
    check_damping(damping)

    def estimate(objective: Objective) -> Diagonal:
        squares, done = torch.zeros_like(objective.weights, dtype=torch.float64), 0
        for chunk in gradients(objective, count, batch=batch, labels=labels, generator=_generator(seed)):
            squares += chunk.square().sum(0)
            done += len(chunk)
            if progress:
                progress("gradients", done, count)
        return Diagonal((squares / count).to(objective.weights.dtype), damping)

    return estimate


def woodfisher(
    count: int = 1000,
    block: int = 2000,
    damping: float = 1e-5,
    *,
    batch: int = 1,
    labels: Labels = observed,
    seed: int = 0,
    progress: Progress | None = None,
) -> Estimate:
    """The empirical Fisher in dense blocks of `block` weights (WoodFisher, Singh & Alistarh 2020)  (eq. 11).

    Blocks lie inside one tensor. The same matrix as `mfac` with that block, computed in whichever form is cheaper.
    """
    return mfac(count, damping, block=block, batch=batch, labels=labels, seed=seed, progress=progress)


def mfac(
    count: int = 1000,
    damping: float = 1e-5,
    *,
    block: int | None = None,
    batch: int = 1,
    labels: Labels = observed,
    seed: int = 0,
    progress: Progress | None = None,
) -> Estimate:
    """The empirical Fisher of `count` gradients, matrix-free (M-FAC, Frantar, Kurtic & Alistarh 2021)  (eq. 2, 6).

    block: weights per block, None for the whole matrix. batch: samples that a row averages. labels: `observed`, or
    `sampled` for the true Fisher, drawn with `seed`. Needs count × d floats. Raises WoodburyError on too little data.
    """
    check_damping(damping)

    def estimate(objective: Objective) -> Fisher:
        matrix = rows(objective, count, batch=batch, labels=labels, generator=_generator(seed), progress=progress)
        if block is None:
            return LowRank(matrix, damping)
        return dense_blocks(matrix, objective.space.runs(block), damping)

    return estimate


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
