"""Units: the granularity of pruning, i.e. which weights are removed together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, WrongType, check_whole_number
from woodbury.model.space import ParameterSpace

Unit = Callable[[ParameterSpace], Sequence[Tensor] | None]
"""space -> its units by size, each (g, s) int64 indices into the d kept weights.

None stands for single weights.
"""

NAMES_IN_ERROR = 8
"""Parameter names that an error lists at most."""


@checks_types
def single(space: ParameterSpace) -> None:
    """Unstructured pruning: every weight is a unit.

    Args:
        space: The weights to prune.

    Returns:
        None, which stands for single weights and needs no list of them.

    Example:
        >>> import woodbury
        >>> woodbury.Pruner().unit is woodbury.units.single
        True
    """


@dataclass(frozen=True, init=False, repr=False)
class block:
    """Tiles of neighbouring weights.

    `block(4)` takes 4 weights in a row as they lie in memory, `block(4, 1)` 4 outputs × 1 input of
    a matrix. Dimensions that are not named are 1 long, so that `block(1, 4)` tiles a kernel
    position by position. Of a tile that has lost weights already, the remaining ones compete.

    Args:
        *shape: Weights of a tile along each dimension.

    Raises:
        WoodburyError: When it is called, for a tensor that the tiles do not cover.

    Example:
        >>> import torch, woodbury
        >>> space = woodbury.ParameterSpace.from_model(torch.nn.Linear(8, 2, bias=False))
        >>> [groups.shape for groups in block(4)(space)]
        [torch.Size([4, 4])]
        >>> block(4, 1)
        block(4, 1)
    """

    shape: tuple[int, ...]

    def __init__(self, *shape: int) -> None:
        """Take the shape of a tile."""
        for side in shape:
            check_whole_number(side, "A side of a block", "the number of weights along a dimension")
        object.__setattr__(self, "shape", shape)

    def __repr__(self) -> str:
        return f"block({', '.join(map(str, self.shape))})"

    def __call__(self, space: ParameterSpace) -> list[Tensor]:
        """The tiles by size, each (g, s) int64 indices into the d kept weights of the space."""
        tiles = [_tiles(name, indices, self.shape) for name, indices in _indices(space).items()]
        return _kept_parts(space, tiles)


@checks_types
def output_channels(space: ParameterSpace) -> list[Tensor]:
    """Output channels: all weights that lead to one output of a layer.

    They are the rows of a matrix and the filters of a convolution, and lie along the other
    dimension where a layer is stored transposed: transposed convolutions, embeddings, the Conv1D of
    transformers.

    Args:
        space: The weights to prune.

    Returns:
        The units by size, each (g, s) int64 indices into the d kept weights.

    Raises:
        WoodburyError: If the channels of a tensor are not known, or no unit has a kept weight.

    Example:
        >>> import torch, woodbury
        >>> output_channels(woodbury.ParameterSpace.from_model(torch.nn.Linear(3, 2, bias=False)))
        [tensor([[0, 1, 2],
                [3, 4, 5]])]
    """
    return _kept_parts(space, list(_channels(space, of_outputs=True, min_ndim=1)))


@checks_types
def input_channels(space: ParameterSpace) -> list[Tensor]:
    """Input channels: all weights that read one input of a layer.

    They are the columns of a matrix, what a kernel reads of one channel, and of a grouped
    convolution what the channel's own group reads of it.

    Args:
        space: The weights to prune.

    Returns:
        The units by size, each (g, s) int64 indices into the d kept weights.

    Raises:
        WoodburyError: If a tensor has fewer than two dimensions, its channels are not known, or no
            unit has a kept weight.

    Example:
        >>> import torch, woodbury
        >>> input_channels(woodbury.ParameterSpace.from_model(torch.nn.Linear(3, 2, bias=False)))
        [tensor([[0, 3],
                [1, 4],
                [2, 5]])]
    """
    return _kept_parts(space, list(_channels(space, of_outputs=False, min_ndim=2)))


@dataclass(frozen=True, init=False)
class custom:
    """Units of your own, each made of parts of tensors that are pruned together.

    A channel with all that reads it: `{"conv1.weight": 3, "conv2.weight": (slice(None), 3)}`.
    Weights in no unit are kept.

    Args:
        members: For each unit, name -> any index of that tensor.

    Raises:
        WoodburyError: When it is called, for names and indices that do not exist, and for units
            that overlap or are empty.

    Example:
        >>> import torch, woodbury
        >>> space = woodbury.ParameterSpace.from_model(torch.nn.Linear(3, 2, bias=False))
        >>> custom([{"weight": 0}, {"weight": 1}])(space)
        [tensor([[0, 1, 2],
                [3, 4, 5]])]
    """

    members: tuple[Mapping[str, Any], ...]

    def __init__(self, members: Iterable[Mapping[str, Any]]) -> None:
        """Take the members of the units."""
        is_stream = isinstance(members, Iterable) and not isinstance(members, Tensor)
        units = tuple(members) if is_stream else (members,)
        if not all(isinstance(unit, Mapping) for unit in units):
            raise WrongType(
                "members has a unit that is no dict: give {name: index of its weights} for each."
            )
        object.__setattr__(self, "members", units)

    def __call__(self, space: ParameterSpace) -> list[Tensor]:
        """The units by size, each (g, s) int64 indices into the d kept weights of the space."""
        indices = _indices(space)
        units = [_unit(indices, number, parts) for number, parts in enumerate(self.members)]
        _check_disjoint(units, space)
        sizes = sorted({len(unit) for unit in units})
        by_size = [torch.stack([unit for unit in units if len(unit) == size]) for size in sizes]
        return _kept_parts(space, by_size)


def _indices(space: ParameterSpace, min_ndim: int = 0) -> dict[str, Tensor]:
    """By name, the indices of the weights of each tensor among all n, in its shape."""
    for name, shape in space.shapes.items():
        if len(shape) < min_ndim:
            raise WoodburyError(
                f"{name!r} has shape {tuple(shape)}, too few dimensions for this unit: exclude it."
            )
    indices = torch.arange(space.n)
    return {name: indices[part].view(space.shapes[name]) for name, part in space.slices.items()}


def _channels(space: ParameterSpace, *, of_outputs: bool, min_ndim: int) -> Iterator[Tensor]:
    """The indices of each tensor by channel: (g, s)."""
    for name, indices in _indices(space, min_ndim).items():
        channels = space.channels_of(name)
        if not channels.known:
            raise WoodburyError(
                f"The channels of {name!r} are not known, as it belongs to {channels.of}: leave "
                f"it out with exclude={name!r}, or give units.custom."
            )
        if (channels.outputs if of_outputs else channels.inputs) == 0:
            yield indices.flatten(1)
            continue
        by_group = indices.unflatten(0, (channels.groups, -1))  # (groups, their rows, channels, …)
        yield by_group.transpose(1, 2).flatten(2).flatten(0, 1)


def _tiles(name: str, indices: Tensor, tile: Sequence[int]) -> Tensor:
    """The indices of one tensor in tiles: (g, s)."""
    shape = tuple(indices.shape)
    if len(tile) == 1:
        indices = indices.flatten()  # weights in a row in memory may go on in the next row
    sides = [*tile, *[1] * (indices.ndim - len(tile))]
    if not tile or not _divide(sides, indices.shape):
        given = " × ".join(map(str, tile))
        raise WoodburyError(
            f"Blocks of {given} do not tile {name!r} of {indices.numel()} weights in the shape "
            f"{shape}: exclude it."
        )
    # 1. Each dimension becomes two: the tile's place along it, and the place within the tile.
    split = [
        part for s, length in zip(sides, indices.shape, strict=True) for part in (length // s, s)
    ]
    # 2. The places of tiles come first, those within a tile after them.
    places = range(0, 2 * len(sides), 2)
    within = range(1, 2 * len(sides), 2)
    return indices.view(split).permute(*places, *within).reshape(-1, torch.Size(sides).numel())


def _divide(sides: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether each side divides the length of its dimension, and every dimension has one."""
    if len(sides) != len(shape):
        return False
    return all(side >= 1 and length % side == 0 for side, length in zip(sides, shape, strict=True))


def _unit(indices: Mapping[str, Tensor], number: int, parts: Mapping[str, Any]) -> Tensor:
    """The indices (s,) of one custom unit among all n weights."""
    members = []
    for name, where in parts.items():
        if name not in indices:
            known = ", ".join(list(indices)[:NAMES_IN_ERROR])
            raise WoodburyError(
                f"Unit {number} names {name!r}, which is not in the space: {known}."
            )
        try:
            members.append(indices[name][where].flatten())
        except (IndexError, TypeError, ValueError, RuntimeError) as error:
            shape = tuple(indices[name].shape)
            raise WoodburyError(
                f"Unit {number} names {where} of {name!r}, which has shape {shape}: "
                "give an index of it."
            ) from error
    if not sum(map(len, members)):
        raise WoodburyError(f"Unit {number} holds no weight: leave it out.")
    return torch.cat(members)


def _check_disjoint(units: Sequence[Tensor], space: ParameterSpace) -> None:
    """An error if two units, or one unit twice, hold the same weight."""
    if not units:
        raise WoodburyError("There is no unit: give at least one group of weights.")
    members = torch.cat(list(units))
    if len(members.unique()) == len(members):
        return
    sizes = torch.tensor([len(unit) for unit in units])
    owner = torch.repeat_interleave(torch.arange(len(units)), sizes)
    order = members.argsort(stable=True)
    repeated = int((members[order].diff() == 0).nonzero()[0])
    first = int(owner[order[repeated]])
    second = int(owner[order[repeated + 1]])
    weight = int(members[order[repeated]])
    raise WoodburyError(
        f"Units {first} and {second} share a weight of {space.name_at(weight)!r}: "
        "it can be removed only once."
    )


def _kept_parts(space: ParameterSpace, units: Sequence[Tensor]) -> list[Tensor]:
    """Units over all n weights as units over the d kept ones, by size.

    Of a unit that has lost weights already, the kept ones are a smaller unit.

    Args:
        space: The weights that are kept.
        units: Each (g, s) int64 indices among all n.

    Returns:
        Each (g, s) int64 indices in [0, d), one tensor for each size.
    """
    keep = space.keep.cpu()
    index_among_kept = keep.cumsum(0) - 1
    by_size: dict[int, list[Tensor]] = {}
    for groups in units:
        kept = keep[groups]
        sizes = kept.sum(1)
        for size in sizes.unique().tolist():
            if size:
                same = sizes == size
                # A mask reads row by row, and each of these rows has `size` kept weights.
                members = groups[same][kept[same]].view(-1, size)
                by_size.setdefault(size, []).append(index_among_kept[members])
    if not by_size:
        raise WoodburyError("No unit has a weight left: there is nothing to remove.")
    return [torch.cat(parts) for _, parts in sorted(by_size.items())]
