"""Draft of the K-FAC recipe, to be moved into estimate.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from woodbury.factors import factors
from woodbury.fisher.blocks import BlockDiagonal
from woodbury.fisher.kronecker import Kronecker
from woodbury.fisher.operator import Fisher, check_damping
from woodbury.gradients import Labels, Progress, sampled
from woodbury.objective import Objective


def kfac(
    count: int = 1000,
    damping: float = 1e-5,
    *,
    labels: Labels = sampled,
    seed: int = 0,
    damp: Callable[[Tensor, Tensor, float], Kronecker] = Kronecker,
    progress: Progress | None = None,
) -> Callable[[Objective], Fisher]:
    """K-FAC: one Kronecker product for each tensor of the space, from `count` samples  (eq. 22).

    damp: how the damping enters: `Kronecker` adds exactly damping·I, `pi_corrected` damps both factors as the paper
    does, with another meaning of the number. Raises WoodburyError for layers other than Linear and ungrouped Conv2d.
    """
    check_damping(damping)

    def estimate(objective: Objective) -> BlockDiagonal:
        space = objective.space
        generator = torch.Generator(objective.weights.device).manual_seed(seed)
        pairs = factors(objective, count, labels=labels, generator=generator, progress=progress)
        keep = space.keep.to(objective.weights.device)
        kept = [(name, keep[part]) for name, part in space.slices.items() if keep[part].any()]
        return BlockDiagonal(tuple(damp(*pairs[name], damping).restrict(own) for name, own in kept))

    return estimate
