"""Sums over the ranks that share one operator; the identity when there is no group."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def all_sum(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """`tensor` summed over the ranks of `group`, the same on each of them; `tensor` itself without a group."""
    if group is None:
        return tensor
    summed = tensor.clone()
    dist.all_reduce(summed, group=group)
    return summed
