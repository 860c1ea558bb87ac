"""Selection = unit × scope × budget: what competes with what, and which of it falls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.model.space import ParameterSpace

Scope = Callable[[ParameterSpace], Tensor]
"""space -> labels (n,) int64 from 0: weights of the same label compete, and each label has its own budget."""


def global_(space: ParameterSpace) -> Tensor:
    """All weights compete: one global threshold."""
    return torch.zeros(space.n, dtype=torch.int64)


def layerwise(space: ParameterSpace) -> Tensor:
    """Each tensor on its own: the same sparsity everywhere."""
    return space.tensor_index()


def consecutive(size: int, dim: int | Mapping[str, int] = 1) -> Scope:
    """Each run of `size` weights along a dimension competes within itself: the scope of n:m sparsity.

    dim: by default 1, the inputs of a matrix or a kernel, which is run by run at each position; or one for each of several
    patterns of names, such as {"*.c_fc.weight": 0} where a layer holds its matrix transposed, 1 for the others. Raises
    WoodburyError where the runs do not fit.
    """

    def scope(space: ParameterSpace) -> Tensor:
        parts, count = [], 0
        for name, shape in space.shapes.items():
            along = (
                dim
                if isinstance(dim, int)
                else next((at for p, at in dim.items() if fnmatchcase(name, p)), 1)
            )
            if not -len(shape) <= along < len(shape):
                raise WoodburyError(
                    f"{name!r} has shape {tuple(shape)} and no dimension {along} for runs: exclude it."
                )
            if size < 1 or shape[along] % size:
                raise WoodburyError(
                    f"Runs of {size} do not divide the {shape[along]} weights along dimension {along} of {name!r}, "
                    f"which has shape {tuple(shape)}: exclude it."
                )
            shorter = [*shape]
            shorter[along] //= size
            labels = (
                torch.arange(shape.numel() // size).view(shorter).repeat_interleave(size, along)
            )
            parts.append(labels.flatten() + count)
            count += shape.numel() // size
        return torch.cat(parts)

    return scope
