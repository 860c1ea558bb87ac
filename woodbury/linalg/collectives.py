"""Sums over the ranks that share one operator; the identity when there is no group."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


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
    summed = tensor.clone()
    dist.all_reduce(summed, group=group)
    return summed
