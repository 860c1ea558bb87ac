"""Selection = unit × scope × budget: what competes with what, and which of it falls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class consecutive:
    """Groups of consecutive weights along one dimension, as in n:m sparsity.

    Args:
        size: Weights m in a group.
        dim: Dimension along which they lie. 1 is the inputs of a matrix or a kernel, which is grouped
            position by position. A mapping gives one for each of several name patterns, such as
            `{"*.c_fc.weight": 0}` where a layer holds its matrix transposed, 1 for the others.

    Raises:
        WoodburyError: When it is called, where the groups do not divide the dimension.

    Example:
        >>> import torch, woodbury
        >>> space = woodbury.ParameterSpace.from_model(torch.nn.Linear(4, 2, bias=False))
        >>> woodbury.scopes.consecutive(2)(space)
        tensor([0, 0, 1, 1, 2, 2, 3, 3])
    """

    size: int
    dim: int | Mapping[str, int] = 1

    def __call__(self, space: ParameterSpace) -> Tensor:
        """The index of the group that each of the n weights belongs to, (n,) int64."""
        parts = []
        groups = 0
        for name, shape in space.shapes.items():
            along = self._dimension(name, shape)
            shorter = [*shape]
            shorter[along] //= self.size
            count = shape.numel() // self.size
            group = torch.arange(count).view(shorter).repeat_interleave(self.size, along)
            parts.append(group.flatten() + groups)
            groups += count
        return torch.cat(parts)

    def _dimension(self, name: str, shape: torch.Size) -> int:
        if isinstance(self.dim, int):
            along = self.dim
        else:
            matching = (at for pattern, at in self.dim.items() if fnmatchcase(name, pattern))
            along = next(matching, 1)
        if not -len(shape) <= along < len(shape):
            raise WoodburyError(
                f"{name!r} has shape {tuple(shape)} and no dimension {along} for groups: exclude it."
            )
        if self.size < 1 or shape[along] % self.size:
            raise WoodburyError(
                f"Groups of {self.size} do not divide the {shape[along]} weights along dimension "
                f"{along} of {name!r}, which has shape {tuple(shape)}: exclude it."
            )
        return along
