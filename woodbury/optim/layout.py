"""How an optimizer's parameters become one vector, what of it moves, and which windows cut it: nothing of the algebra."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.checks import check_damping
from woodbury.model.parameters import local

Partition = Callable[[Sequence[Sequence[int]]], Sequence[int]]
"""(weights of each parameter of each group) -> lengths of the runs, in order, each of which gets a window of its own."""


def whole(sizes: Sequence[Sequence[int]]) -> Sequence[int]:
    """One window over all weights."""
    return [sum(map(sum, sizes))]


def per_group(sizes: Sequence[Sequence[int]]) -> Sequence[int]:
    """One window for each parameter group."""
    return [sum(group) for group in sizes]


def per_parameter(sizes: Sequence[Sequence[int]]) -> Sequence[int]:
    """One window for each parameter."""
    return [size for group in sizes for size in group]


def blocks(size: int) -> Partition:
    """Windows over `size` weights each, the last one over what is left: M-FAC in blocks."""
    if size < 1:
        raise WoodburyError(f"A block of {size} weights is empty: give a size of at least 1.")
    return partial(_runs, size)


def _runs(size: int, sizes: Sequence[Sequence[int]]) -> Sequence[int]:
    (d,) = whole(sizes)
    return [min(size, d - start) for start in range(0, d, size)]


@dataclass(frozen=True, eq=False)
class ParameterSlice:
    """The weights of one parameter that move, and their place in the vector; index: (k,) int64 among its own, None = all."""

    parameter: Tensor
    group: int
    index: Tensor | None
    place: slice

    @property
    def own(self) -> Tensor:
        """What this rank holds of the parameter: all but for a DTensor."""
        return local(self.parameter)

    def read(self, tensor: Tensor) -> Tensor:
        """The parameter's shape -> (k,)."""
        flat = local(tensor).reshape(-1)
        return flat if self.index is None else flat[self.index.to(flat.device)]

    def spread(self, values: Tensor) -> Tensor:
        """(k,) -> the parameter's shape, 0 where nothing moves."""
        if self.index is not None:
            values = values.new_zeros(self.own.numel()).index_copy_(
                0, self.index.to(values.device), values
            )
        return values.view(self.own.shape)


def slices_of(
    groups: Sequence[Mapping[str, Any]], indices: Mapping[Tensor, Tensor]
) -> list[ParameterSlice]:
    """The parameters of all groups, one after the other."""
    made, start = [], 0
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            index = indices.get(parameter)
            end = start + (local(parameter).numel() if index is None else len(index))
            made.append(ParameterSlice(parameter, number, index, slice(start, end)))
            start = end
    return made


def sizes_of(parts: Sequence[ParameterSlice], groups: int) -> list[list[int]]:
    """How many weights of each parameter of each group move."""
    return [
        [p.place.stop - p.place.start for p in parts if p.group == number]
        for number in range(groups)
    ]


def runs_of(partition: Partition, sizes: Sequence[Sequence[int]]) -> list[slice]:
    """The partition's runs as slices of the vector. Raises WoodburyError unless they tile it."""
    lengths = [int(length) for length in partition(sizes)]
    (d,) = whole(sizes)
    if sum(lengths) != d or min(lengths, default=0) < 0:
        raise WoodburyError(
            f"The partition's runs hold {sum(lengths)} weights of {d}: they must tile the vector."
        )
    ends = list(accumulate(lengths))
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def gradient_of(
    parts: Sequence[ParameterSlice], groups: Sequence[Mapping[str, Any]], like: Tensor
) -> Tensor:
    """The gradients as one vector (d,), 0 where there is none, the sign turned where a group maximizes."""
    vector = like.new_empty(parts[-1].place.stop)
    for piece in parts:
        gradient = piece.parameter.grad
        if gradient is None:
            vector[piece.place].zero_()
            continue
        if gradient.layout != torch.strided or gradient.is_complex():
            raise WoodburyError(
                f"The gradient of a parameter of shape {tuple(piece.parameter.shape)} is sparse or complex: "
                "give real, dense ones (nn.Embedding(sparse=False))."
            )
        part = vector[piece.place].copy_(piece.read(gradient))
        if groups[piece.group]["maximize"]:
            part.neg_()
    return vector


def rows_of(
    parts: Sequence[ParameterSlice],
    groups: Sequence[Mapping[str, Any]],
    rows: Sequence[Tensor],
    residuals: Tensor,
    like: Tensor,
) -> Tensor:
    """Rows given as (k, *shape) for each parameter as one matrix (k, d), the sign turned where a group maximizes."""
    wanted = [(residuals.numel(), *piece.own.shape) for piece in parts]
    found = [tuple(row.shape) for row in rows]
    if residuals.ndim != 1 or found != wanted:
        raise WoodburyError(
            f"Rows of the shapes {found} met residuals of shape {tuple(residuals.shape)} and parameters of the shapes "
            f"{[shape[1:] for shape in wanted]}: give (k, *shape) for each parameter in turn, and k residuals."
        )
    matrix = like.new_empty(len(residuals), parts[-1].place.stop)
    for piece, given in zip(parts, rows, strict=True):
        flat = given.detach().reshape(len(residuals), piece.own.numel())
        part = matrix[:, piece.place].copy_(
            flat if piece.index is None else flat[:, piece.index.to(flat.device)]
        )
        if groups[piece.group]["maximize"]:
            part.neg_()
    return matrix


def check_sharding(parts: Sequence[ParameterSlice], group: Any) -> bool:
    """Whether the parameters are shards (DTensors). Raises WoodburyError unless all are or none, and with their group."""
    kinds = {piece.own is not piece.parameter for piece in parts}
    if kinds == {False}:
        return False
    shards = [p.parameter.placements for p in parts if p.own is not p.parameter]  # type: ignore[attr-defined]
    if (
        len(kinds) > 1
        or group is None
        or not all(any(each.is_shard() for each in where) for where in shards)
    ):
        raise WoodburyError(
            "Some parameters are DTensors: shard all of them (fully_shard), and give the ranks as group=…."
        )
    return True


def check_group(group: Mapping[str, Any]) -> None:
    """Raise WoodburyError unless a group's parameters are real and its numbers in range."""
    for parameter in group["params"]:
        if not parameter.is_floating_point():
            raise WoodburyError(
                f"A parameter has dtype {str(parameter.dtype)[6:]}: only real floating-point ones can move."
            )
    for name in ("lr", "weight_decay"):
        if not (math.isfinite(float(group[name])) and float(group[name]) >= 0):
            raise WoodburyError(
                f"{name} is {float(group[name])}: it must be at least 0 and finite."
            )
    if not 0 <= group["momentum"] < 1:
        raise WoodburyError(f"momentum is {group['momentum']}: it must lie in [0, 1).")
    check_damping(group["damping"])


def indices_of(masks: Mapping[Any, Tensor], group: Mapping[str, Any]) -> dict[Tensor, Tensor]:
    """Parameter -> the flat indices of what moves, for those parameters of a group that have a mask."""
    if any(isinstance(key, str) for key in masks) and "param_names" not in group:
        raise WoodburyError(
            "keep goes by names: give the optimizer model.named_parameters(), or masks by parameter."
        )
    made = {}
    for position, parameter in enumerate(group["params"]):
        name = group["param_names"][position] if "param_names" in group else None
        mask = masks.get(parameter, masks.get(name))
        if mask is None:
            continue
        if (
            mask.dtype != torch.bool
            or mask.shape != parameter.shape
            or local(parameter) is not parameter
        ):
            raise WoodburyError(
                f"keep for a parameter of shape {tuple(parameter.shape)} is {str(mask.dtype)[6:]} of shape "
                f"{tuple(mask.shape)}: give a bool mask of the same shape, True = stays, and no DTensor parameter."
            )
        made[parameter] = mask.reshape(-1).nonzero()[:, 0].to(parameter.device)
    return made


def digest(parts: Sequence[ParameterSlice]) -> list[int]:
    """One number per parameter that changes with its mask: 0 for none."""
    return [
        0 if p.index is None else 1 + zlib.crc32(p.index.cpu().numpy().tobytes()) for p in parts
    ]
