"""A layer that can be differentiated once only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Once(torch.autograd.Function):
    """A square without a second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradient


class SquareOnce(nn.Module):
    """x², of which autograd knows the first derivative alone."""

    def forward(self, x: Tensor) -> Tensor:
        return _Once.apply(x)  # type: ignore[return-value]
