"""Units: the weights that fall together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.model.space import ParameterSpace

Unit = Callable[[ParameterSpace], Sequence[Tensor] | None]
"""space -> the units of each size, (g, s) int64 over the d weights left; None for single weights."""


def single(space: ParameterSpace) -> None:
    """Every weight on its own."""


@dataclass(frozen=True, init=False)
class block:
    """Tiles of neighbouring weights.

    `block(4)` takes 4 weights in a row as they lie in memory, `block(4, 1)` 4 outputs × 1 input of a
    matrix. Dimensions that are not named are 1 long, so that `block(1, 4)` tiles a kernel position by
    position. Of a tile that has lost weights already, the remaining ones compete.

    Args:
        shape: Weights of a tile along each dimension.

    Raises:
        WoodburyError: When it is called, for a tensor that the tiles do not cover.

    Example:
        >>> import torch, woodbury
        >>> space = woodbury.ParameterSpace.from_model(torch.nn.Linear(8, 2, bias=False))
        >>> [group.shape for group in woodbury.units.block(4)(space)]
        [torch.Size([4, 4])]
    """

    shape: tuple[int, ...]

    def __init__(self, *shape: int) -> None:
        object.__setattr__(self, "shape", shape)

    def __call__(self, space: ParameterSpace) -> list[Tensor]:
        """The tiles by size, each (g, s) int64 indices into the d weights of the space."""
        tiles = [_tiles(name, numbers, self.shape) for name, numbers in _numbered(space).items()]
        return _left(space, tiles)


def output_channels(space: ParameterSpace) -> list[Tensor]:
    """All that leads to one output: the rows of a matrix, the filters of a kernel (dimension 0)."""
    return _left(space, [numbers.flatten(1) for numbers in _numbered(space, 1).values()])


def input_channels(space: ParameterSpace) -> list[Tensor]:
    """All that comes from one input: the columns of a matrix, the input channels of a kernel (dimension 1)."""
    return _left(
        space, [numbers.transpose(0, 1).flatten(1) for numbers in _numbered(space, 2).values()]
    )


@dataclass(frozen=True, init=False)
class custom:
    """Units of your own, each the parts of tensors that are pruned together.

    A channel with all that reads it: `{"conv1.weight": 3, "conv2.weight": (slice(None), 3)}`. Weights
    in no unit are kept.

    Args:
        members: For each unit, name -> any index of that tensor.

    Raises:
        WoodburyError: When it is called, for names and indices that do not exist, and for units that
            overlap or are empty.

    Example:
        >>> import torch, woodbury
        >>> space = woodbury.ParameterSpace.from_model(torch.nn.Linear(3, 2, bias=False))
        >>> woodbury.units.custom([{"weight": 0}, {"weight": 1}])(space)
        [tensor([[0, 1, 2],
                [3, 4, 5]])]
    """

    members: tuple[Mapping[str, Any], ...]

    def __init__(self, members: Iterable[Mapping[str, Any]]) -> None:
        object.__setattr__(self, "members", tuple(members))

    def __call__(self, space: ParameterSpace) -> list[Tensor]:
        """The units by size, each (g, s) int64 indices into the d weights of the space."""
        numbers = _numbered(space)
        units = [_members(numbers, index, parts) for index, parts in enumerate(self.members)]
        _check_disjoint(units, space)
        sizes = sorted({len(unit) for unit in units})
        by_size = [torch.stack([unit for unit in units if len(unit) == size]) for size in sizes]
        return _left(space, by_size)


def _numbered(space: ParameterSpace, dimensions: int = 0) -> dict[str, Tensor]:
    """name -> the numbers of its weights among all n, in its shape."""
    for name, shape in space.shapes.items():
        if len(shape) < dimensions:
            raise WoodburyError(
                f"{name!r} has shape {tuple(shape)}, too few dimensions for this unit: exclude it."
            )
    numbers = torch.arange(space.n)
    return {name: numbers[part].view(space.shapes[name]) for name, part in space.slices.items()}


def _tiles(name: str, numbers: Tensor, tile: Sequence[int]) -> Tensor:
    """(g, s): the numbers of one tensor in tiles."""
    shape = list(numbers.shape)
    if len(tile) == 1:  # a run in memory may go on in the next row
        numbers, shape = numbers.flatten(), [numbers.numel()]
    sides = [*tile, *[1] * (len(shape) - len(tile))]
    if (
        not tile
        or len(sides) > len(shape)
        or any(s < 1 or length % s for s, length in zip(sides, shape, strict=True))
    ):
        given = " × ".join(map(str, tile))
        raise WoodburyError(
            f"Blocks of {given} do not tile {name!r} of {numbers.numel()} weights in the shape {tuple(shape)}: exclude it."
        )
    split = numbers.view(
        [part for s, length in zip(sides, shape, strict=True) for part in (length // s, s)]
    )
    axes = range(0, 2 * len(sides), 2)
    return split.permute(*axes, *(axis + 1 for axis in axes)).reshape(-1, torch.Size(sides).numel())


def _members(numbers: Mapping[str, Tensor], index: int, parts: Mapping[str, Any]) -> Tensor:
    found = []
    for name, where in parts.items():
        if name not in numbers:
            raise WoodburyError(
                f"Unit {index} names {name!r}, which is not in the space: {', '.join(list(numbers)[:8])}."
            )
        try:
            found.append(numbers[name][where].flatten())
        except (IndexError, TypeError, ValueError) as error:
            shape = tuple(numbers[name].shape)
            raise WoodburyError(
                f"Unit {index} names {where} of {name!r}, which has shape {shape}: give an index of it."
            ) from error
    if not sum(map(len, found)):
        raise WoodburyError(f"Unit {index} holds no weight: leave it out.")
    return torch.cat(found)


def _check_disjoint(members: Sequence[Tensor], space: ParameterSpace) -> None:
    if not members:
        raise WoodburyError("There is no unit: give at least one group of weights.")
    every = torch.cat(list(members))
    if len(every.unique()) == len(every):
        return
    owner = torch.repeat_interleave(
        torch.arange(len(members)), torch.tensor([len(own) for own in members])
    )
    order = every.argsort(stable=True)
    twice = int((every[order].diff() == 0).nonzero()[0])
    first, second = owner[order[twice]], owner[order[twice + 1]]
    name = next(
        name for name, part in space.slices.items() if part.start <= every[order[twice]] < part.stop
    )
    raise WoodburyError(
        f"Units {int(first)} and {int(second)} share a weight of {name!r}: it can fall only once."
    )


def _left(space: ParameterSpace, units: Sequence[Tensor]) -> list[Tensor]:
    """Units of numbers among all n as units over the d weights left, by size: what is gone is gone, the rest competes."""
    keep = space.keep.cpu()
    place = keep.cumsum(0) - 1
    by_size: dict[int, list[Tensor]] = {}
    for some in units:
        stays = keep[some]
        sizes = stays.sum(1)
        for size in sizes.unique().tolist():
            own = sizes == size
            by_size.setdefault(size, []).append(
                place[some[own][stays[own]]].view(-1, size) if size else some[:0]
            )
    by_size.pop(0, None)
    if not by_size:
        raise WoodburyError("No unit has a weight left: there is nothing that could fall.")
    return [torch.cat(parts) for _, parts in sorted(by_size.items())]
