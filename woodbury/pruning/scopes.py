"""Scopes: which weights compete with which, globally, by layer or in groups of m."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from woodbury.argument_types import check_fields, checks_types, is_of
from woodbury.errors import WoodburyError, WrongType, check_whole_number
from woodbury.model.space import ParameterSpace, matches

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

    A pool of a kernel has `size` neighbouring input channels at one position of the kernel. In
    memory these are neighbours once the channels are last: `weight.permute(0, 2, 3, 1).flatten(1)`
    is the matrix that sparse tensor cores read.

    Args:
        size: Weights m in a pool.
        dim: Dimension along which they lie; None for the inputs of each layer, wherever it has
            them. A mapping gives one for each of several name patterns, and the inputs for the
            others.

    Raises:
        WoodburyError: When it is called, where the pools do not divide the dimension, or the inputs
            of a tensor are not known. `woodbury.prune` and `Gradual` leave such tensors out.

    Example:
        >>> import torch, woodbury
        >>> space = woodbury.ParameterSpace.from_model(torch.nn.Linear(4, 2, bias=False))
        >>> consecutive(2)(space)
        tensor([0, 0, 1, 1, 2, 2, 3, 3])
    """

    size: int
    dim: int | Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, space: ParameterSpace) -> Tensor:
        """The pool of each of the n weights, (n,) int64."""
        pools = []
        start = 0
        for name, shape in space.shapes.items():
            if obstacle := self.obstacle(space, name):
                raise WoodburyError(
                    f"{obstacle}: leave it out with exclude={name!r}, or give another dimension, "
                    f"such as dim={{{name!r}: {space.channels_of(name).outputs}}}."
                )
            dim = self._dimension(space, name)
            count = shape.numel() // self.size
            pools_shape = [*shape]
            pools_shape[dim] //= self.size
            # One number for each pool, repeated along the dimension for each weight in it.
            numbered = torch.arange(start, start + count).view(pools_shape)
            pools.append(numbered.repeat_interleave(self.size, dim).flatten())
            start += count
        return torch.cat(pools)

    def obstacle(self, space: ParameterSpace, name: str) -> str | None:
        """Why a tensor cannot be divided into pools.

        Args:
            space: The weights to prune.
            name: Of a tensor of the space.

        Returns:
            A clause that names the tensor; None where it can be divided.

        Raises:
            WoodburyError: If `size` or `dim` fits no such tensor, or the space has none.
        """
        check_whole_number(self.size, "size", "the number of weights in a pool")
        if not isinstance(name, str) or name not in space.shapes:
            raise WoodburyError(f"The space has no tensor {name!r}: give one of its names.")
        given = self._given_dimension(name)
        channels = space.channels_of(name)
        if given is None and (not channels.known or channels.is_lookup):
            return (
                f"{name!r} belongs to {channels.of}, and which of its dimensions are multiplied "
                "is not known"
            )
        shape = space.shapes[name]
        dim = self._dimension(space, name)
        # Of a grouped layer that has all inputs along one dimension, no pool lies in two groups.
        apart = channels.groups if dim == channels.inputs == 0 else 1
        if shape[dim] // apart % self.size:
            return (
                f"Groups of {self.size} do not divide the {shape[dim] // apart} weights along "
                f"dimension {dim} of {name!r}, which has shape {tuple(shape)}"
            )
        return None

    def _dimension(self, space: ParameterSpace, name: str) -> int:
        """The dimension along which one tensor is divided."""
        shape = space.shapes[name]
        given = self._given_dimension(name)
        dim = space.channels_of(name).inputs if given is None else given
        if not is_of(dim, int):
            raise WrongType(f"dim is {str(dim)[:60]} for {name!r}: give a whole number.")
        if not -len(shape) <= dim < len(shape):
            raise WoodburyError(
                f"{name!r} has shape {tuple(shape)} and no dimension {dim} for groups: exclude it."
            )
        return dim

    def _given_dimension(self, name: str) -> int | None:
        if self.dim is None or isinstance(self.dim, int):
            return self.dim
        return next((dim for pattern, dim in self.dim.items() if matches(name, pattern)), None)
