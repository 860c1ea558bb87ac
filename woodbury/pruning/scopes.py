"""Scopes: which weights compete with which, globally, by layer or in groups of m."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from woodbury.argument_types import check_fields, checks_types
from woodbury.errors import WoodburyError
from woodbury.model.space import ParameterSpace

Scope = Callable[[ParameterSpace], Tensor]
"""space -> the pool of each of the n weights, (n,) int64 from 0.

The weights of one pool compete, and each pool has its own budget.
"""


@checks_types
def global_(space: ParameterSpace) -> Tensor:
    """Global pruning: all weights compete, under one threshold.

    Args:
        space: The weights to prune.

    Returns:
        (n,) int64 zeros, stored once: one pool.

    Example:
        >>> import torch, woodbury
        >>> global_(woodbury.ParameterSpace.from_model(torch.nn.Linear(2, 1)))
        tensor([0, 0, 0])
    """
    return torch.zeros(1, dtype=torch.int64).expand(space.n)


@checks_types
def layerwise(space: ParameterSpace) -> Tensor:
    """Layer-wise pruning: each tensor is a pool, so that all reach the same sparsity.

    Args:
        space: The weights to prune.

    Returns:
        (n,) int64, the index of each weight's tensor.

    Example:
        >>> import torch, woodbury
        >>> layerwise(woodbury.ParameterSpace.from_model(torch.nn.Linear(2, 1)))
        tensor([0, 0, 1])
    """
    return space.tensor_index()


@dataclass(frozen=True)
class consecutive:
    """Pools of consecutive weights along one dimension, as in n:m sparsity.

    Args:
        size: Weights m in a pool.
        dim: Dimension along which they lie. 1 is the inputs of a matrix or a kernel, which is
            divided position by position. A mapping gives one for each of several name patterns,
            such as `{"*.c_fc.weight": 0}` where a layer holds its matrix transposed, 1 for the
            others.

    Raises:
        WoodburyError: When it is called, where the pools do not divide the dimension.

    Example:
        >>> import torch, woodbury
        >>> space = woodbury.ParameterSpace.from_model(torch.nn.Linear(4, 2, bias=False))
        >>> consecutive(2)(space)
        tensor([0, 0, 1, 1, 2, 2, 3, 3])
    """

    size: int
    dim: int | Mapping[str, int] = 1

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, space: ParameterSpace) -> Tensor:
        """The pool of each of the n weights, (n,) int64."""
        pools = []
        start = 0
        for name, shape in space.shapes.items():
            dim = self._dimension(name, shape)
            count = shape.numel() // self.size
            pools_shape = [*shape]
            pools_shape[dim] //= self.size
            # One number for each pool, repeated along the dimension for each weight in it.
            numbered = torch.arange(start, start + count).view(pools_shape)
            pools.append(numbered.repeat_interleave(self.size, dim).flatten())
            start += count
        return torch.cat(pools)

    def _dimension(self, name: str, shape: torch.Size) -> int:
        """The dimension along which one tensor is divided."""
        if isinstance(self.dim, int):
            dim = self.dim
        else:
            matching = (dim for pattern, dim in self.dim.items() if fnmatchcase(name, pattern))
            dim = next(matching, 1)
        if not -len(shape) <= dim < len(shape):
            raise WoodburyError(
                f"{name!r} has shape {tuple(shape)} and no dimension {dim} for groups: exclude it."
            )
        if self.size < 1 or shape[dim] % self.size:
            raise WoodburyError(
                f"Groups of {self.size} do not divide the {shape[dim]} weights along dimension "
                f"{dim} of {name!r}, which has shape {tuple(shape)}: exclude it."
            )
        return dim
