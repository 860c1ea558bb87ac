"""Reconstruction and Fisher of a layer in one quadratic, for rivals that minimise both."""

from __future__ import annotations

import torch
from torch import Tensor

from woodbury.estimation.gradients import gradient_chunks
from woodbury.model.objective import Objective


def fisher_blocks(objective: Objective) -> dict[str, Tensor]:
    """The empirical Fisher's block of each output of each layer, (o, i, i), of all samples."""
    shapes = objective.space.shapes
    sums = {
        name: torch.zeros(shape[0], shape[1:].numel(), shape[1:].numel())
        for name, shape in shapes.items()
    }
    count = 0
    for chunk in gradient_chunks(objective, sum(len(target) for _, target in objective.batches)):
        parts = chunk.split([shape.numel() for shape in shapes.values()], dim=1)
        for total, part in zip(sums.values(), parts, strict=True):
            rows = part.view(len(part), *total.shape[:2]).transpose(0, 1)
            total.baddbmm_(rows.mT, rows)
        count += len(chunk)
    return {name: total.div_(count) for name, total in sums.items()}


def scale_to(fisher: Tensor, moments: Tensor) -> float:
    """What brings second moments of inputs to the mean of the Fisher's diagonal."""
    return float(fisher.diagonal(dim1=1, dim2=2).mean()) / float(moments.diagonal().mean())


def weighted(
    moments: Tensor, cross: Tensor, fisher: Tensor, weight: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """The matrices (o, i, i) and the goal (o, i) of outputs and loss together  (eq. 94)."""
    of_outputs = share * scale_to(fisher, moments)
    matrices = torch.add((1 - share) * fisher, moments.to(fisher), alpha=of_outputs)
    stay = (fisher @ weight.to(fisher)[:, :, None])[:, :, 0]
    return matrices, of_outputs * cross.to(fisher) + (1 - share) * stay
