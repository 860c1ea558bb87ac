"""Units: the weights that fall together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.space import ParameterSpace

Unit = Callable[[ParameterSpace], Sequence[Tensor] | None]
"""space -> the units of each size, (g, s) int64 over the d weights left; None for single weights."""


def single(space: ParameterSpace) -> None:
    """Every weight on its own."""


def block(size: int) -> Unit:
    """Runs of `size` consecutive weights of one tensor, such as 4 for SIMD-friendly sparsity."""

    def unit(space: ParameterSpace) -> list[Tensor]:
        for name, shape in space.shapes.items():
            if size < 1 or shape.numel() % size:
                raise WoodburyError(f"Blocks of {size} do not tile {name!r} of {shape.numel()} weights: exclude it.")
        groups = torch.arange(space.n).view(-1, size)
        keep = space.keep.cpu()
        place = keep.cumsum(0) - 1
        return [place[groups[keep[groups].all(1)]]]

    return unit
