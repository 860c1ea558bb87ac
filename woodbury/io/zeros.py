"""Zeros without a sign."""

from __future__ import annotations

import torch
from torch import Tensor


def with_plain_zeros(tensor: Tensor) -> Tensor:
    """A tensor whose zeros are all +0.0.

    A negative weight times a mask is −0.0, whose bits `save_sparse` keeps as those of any value.

    Args:
        tensor: Any tensor.

    Returns:
        An equal tensor; the same one where its dtype has no −0.0, or no sum.

    Example:
        >>> with_plain_zeros(torch.tensor([-1.0, 2.0]) * torch.tensor([0.0, 1.0]))
        tensor([0., 2.])
    """
    is_usual = tensor.is_floating_point() and torch.finfo(tensor.dtype).bits >= 16
    return tensor + 0.0 if is_usual else tensor
