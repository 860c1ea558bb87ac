"""Linear and convolutional layers as sums of products over positions: the only file that knows layer types."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """At least float32: sums of products of halves would lose their digits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
