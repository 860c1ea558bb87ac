"""The gradient of a batch, of which each rank takes a part."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from woodbury.linalg.ranks import Ranks
from woodbury.model.batches import samples_in, slice_samples
from woodbury.model.calling import run_model
from woodbury.model.likelihood import Likelihood
from woodbury.model.objective import check_dependence


def shared_backward(
    model: nn.Module, inputs: Any, target: Any, likelihood: Likelihood, step: int
) -> float:
    """Leave the gradient of a batch's mean loss in the parameters of all ranks.

    As in DistributedDataParallel, BatchNorm's statistics are of a rank's own part, and its running
    ones those of rank 0.

    Args:
        model: In train mode, with the same weights on all ranks.
        inputs: Of the whole batch, the same on all ranks.
        target: Its labels.
        likelihood: The loss, a mean over samples.
        step: The number of the step, by which the ranks draw random numbers such as dropout's.

    Returns:
        The mean loss of the batch.
    """
    ranks = Ranks.current()
    if ranks.size == 1:
        loss = likelihood.checked_loss(run_model(model, inputs), target)
        check_dependence(loss, "weights to train")
        loss.backward()
        return float(loss.detach())
    samples = samples_in(inputs)
    first = samples * ranks.rank // ranks.size
    last = samples * (ranks.rank + 1) // ranks.size
    total = torch.zeros(1, dtype=torch.float64)
    torch.manual_seed(step * ranks.size + ranks.rank)
    if last > first:
        own = slice_samples((inputs, target), first, last)
        loss = likelihood.checked_loss(run_model(model, own[0]), own[1])
        share = (last - first) / samples
        (share * loss).backward()
        total += share * float(loss.detach())
    with torch.no_grad():
        _sum_gradients(model, ranks)
        _take_buffers_of_first(model, ranks)
    return float(ranks.sum(total))


def _sum_gradients(model: nn.Module, ranks: Ranks) -> None:
    """Make each gradient that of all ranks, in one sum for each dtype."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    used = ranks.sum(torch.tensor([parameter.grad is not None for parameter in trained]).int())
    trained = [parameter for parameter, count in zip(trained, used, strict=True) if count]
    for dtype in dict.fromkeys(parameter.dtype for parameter in trained):
        same = [parameter for parameter in trained if parameter.dtype == dtype]
        gradients = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for parameter in same
        ]
        summed = ranks.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = summed.split([parameter.numel() for parameter in same])
        for parameter, part in zip(same, parts, strict=True):
            parameter.grad = part.view_as(parameter).clone()


def _take_buffers_of_first(model: nn.Module, ranks: Ranks) -> None:
    """Make each buffer that of rank 0."""
    buffers: list[Tensor] = list(model.buffers())
    for dtype in dict.fromkeys(buffer.dtype for buffer in buffers):
        same = [buffer for buffer in buffers if buffer.dtype == dtype]
        taken = ranks.broadcast(torch.cat([buffer.flatten() for buffer in same]))
        for buffer, part in zip(same, taken.split([b.numel() for b in same]), strict=True):
            buffer.copy_(part.view_as(buffer))
