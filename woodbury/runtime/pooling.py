"""Max pooling by lines, then by columns: torch's own keeps places of maxima, which takes longer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from woodbury.model.hooks import has_hooks


class SeparableMaxPool2d(nn.MaxPool2d):
    """A MaxPool2d with the same outputs, faster without gradients; `accelerate` makes it."""

    def forward(self, input: Tensor) -> Any:
        """The maxima of the windows."""
        if input.ndim != 4 or not input.is_floating_point() or input.requires_grad:
            return super().forward(input)
        (rows, columns), (down, across) = _pair(self.kernel_size), _pair(self.stride)
        high, wide = _pair(self.padding)
        if input.shape[2] + 2 * high < rows or input.shape[3] + 2 * wide < columns:
            return super().forward(input)  # says that no window has room
        if high or wide:
            input = pad(input, (wide, wide, high, high), value=-torch.inf)
        lines = _largest(input, 2, rows, down)
        return _largest(lines, 3, columns, across).contiguous()


def separated(model: nn.Module) -> list[nn.Module]:
    """Make a model's max pooling separable where that is the same.

    Args:
        model: The model, whose modules change their type.

    Returns:
        Those that have changed it.
    """
    changed: list[Any] = [module for module in model.modules() if _can_be(module)]
    for module in changed:
        module.__class__ = SeparableMaxPool2d
    return changed


def _can_be(module: Any) -> bool:
    return (
        type(module) is nn.MaxPool2d
        and _pair(module.dilation) == (1, 1)
        and not module.ceil_mode
        and not module.return_indices
        and not has_hooks(module)
    )


def _pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _largest(images: Tensor, dim: int, window: int, stride: int) -> Tensor:
    """The maxima of windows along one dimension."""
    count = (images.shape[dim] - window) // stride + 1
    places = [slice(begin, begin + stride * (count - 1) + 1, stride) for begin in range(window)]
    inner = (slice(None),) * dim
    result = images[(*inner, places[0])]
    for place in places[1:]:
        result = torch.maximum(result, images[(*inner, place)])
    return result
