"""Sums over the ranks that share one operator; the identity when there is no group."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.linalg.ranks import Ranks, check_group

__all__ = ["all_sum", "all_sum_in_step", "check_group"]


def all_sum(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The sum of `tensor` over the ranks of a process group.

    Args:
        tensor: Of the same shape and dtype on every rank; it is not changed.
        group: The ranks that take part; None for one process.

    Returns:
        The sum, the same on each rank; without a group `tensor` itself, not a copy.

    Example:
        >>> import torch
        >>> all_sum(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    if group is None:
        return tensor
    ranks = Ranks.current()
    if ranks.group is group and ranks.size > 1:  # it counts what is sent, and sees failures
        return ranks.sum(tensor)
    summed = tensor.clone()
    dist.all_reduce(summed, group=group)
    return summed


def all_sum_in_step(tensor: Tensor, step: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """The same for float64 numbers of one step, which all ranks must be at.

    Args:
        tensor: Of the same shape on every rank; it is not changed.
        step: Which step this is.
        group: The ranks that take part; None for one process.

    Returns:
        The sum, the same on each rank.

    Raises:
        WoodburyError: On every rank, if they are at different steps: their sums would be of
            gradients that do not belong together.

    Example:
        >>> all_sum_in_step(torch.ones(2, dtype=torch.float64), step=3).tolist()
        [1.0, 1.0]
    """
    if group is None:
        return tensor
    marks = tensor.new_tensor([1.0, step, step**2])
    summed = all_sum(torch.cat([tensor.flatten(), marks]), group)
    ranks, first, second = summed[-3:].tolist()
    if first != ranks * step or second != ranks * step**2:  # no spread about our own
        raise WoodburyError(
            f"This rank is at step {step} and another is not: a rank had no gradients where others "
            "had some, so skip a step on all ranks or on none."
        )
    return summed[:-3].view_as(tensor)
