"""Layout: where the weights that an optimizer moves lie in one vector."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from woodbury.errors import WoodburyError, WrongType, user_code
from woodbury.fisher.checks import check_damping
from woodbury.model.parameters import is_dtensor, local
from woodbury.optim.partitions import Partition


@dataclass(frozen=True, eq=False)
class ParameterSlice:
    """The weights of one parameter that move, and where they lie in the vector of all that move.

    Attributes:
        parameter: A parameter of the optimizer; under FSDP2 a DTensor.
        param_group: The index of its parameter group.
        indices: (k,) int64, which entries of `local`, flattened, move; None = all.
        span: Where those k weights lie in the vector (d,).
    """

    parameter: Tensor
    param_group: int
    indices: Tensor | None
    span: slice

    @property
    def local(self) -> Tensor:
        """What this rank holds of the parameter: all of it, unless it is a DTensor."""
        return local(self.parameter)

    def gather(self, tensor: Tensor) -> Tensor:
        """The entries of a tensor that belong to weights that move.

        Args:
            tensor: Of the parameter's shape, such as the parameter itself or its gradient.

        Returns:
            (k,).
        """
        flat = local(tensor).reshape(-1)
        return flat if self.indices is None else flat[self.indices.to(flat.device)]

    def scatter(self, values: Tensor) -> Tensor:
        """Values of the weights that move, back in the parameter's shape; the inverse of `gather`.

        Args:
            values: (k,).

        Returns:
            A tensor of the shape of `local`, 0 where nothing moves.
        """
        if self.indices is not None:
            zeros = values.new_zeros(self.local.numel())
            values = zeros.index_copy_(0, self.indices.to(values.device), values)
        return values.view(self.local.shape)


@dataclass(frozen=True, eq=False)
class Layout:
    """The parameters of all groups one after the other, as one vector of the d weights that move.

    Attributes:
        slices: One for each parameter, in the order of the groups.
        param_groups: Those of the optimizer, for their `maximize` and `damping`.
    """

    slices: tuple[ParameterSlice, ...]
    param_groups: Sequence[Mapping[str, Any]]

    @classmethod
    def of(
        cls, param_groups: Sequence[Mapping[str, Any]], indices: Mapping[Tensor, Tensor]
    ) -> Layout:
        """The layout of an optimizer's parameters.

        Args:
            param_groups: torch's parameter groups.
            indices: Parameter -> which of its weights move, for the parameters that have a mask.

        Returns:
            The layout, which holds references to both.
        """
        slices, start = [], 0
        for number, group in enumerate(param_groups):
            for parameter in group["params"]:
                moving = indices.get(parameter)
                end = start + (local(parameter).numel() if moving is None else len(moving))
                slices.append(ParameterSlice(parameter, number, moving, slice(start, end)))
                start = end
        return cls(tuple(slices), param_groups)

    @property
    def d(self) -> int:
        """How many weights move."""
        return self.slices[-1].span.stop

    @property
    def shapes(self) -> list[list[list[int]]]:
        """The shape of each parameter, in one list per parameter group."""
        return [[list(p.shape) for p in group["params"]] for group in self.param_groups]

    @property
    def mask_checksums(self) -> list[int]:
        """One number for each parameter that changes with its mask: 0 where there is none."""
        return [
            0 if part.indices is None else 1 + zlib.crc32(part.indices.cpu().numpy().tobytes())
            for part in self.slices
        ]

    def window_spans(self, partition: Partition) -> list[slice]:
        """The windows that a partition cuts the vector into.

        Args:
            partition: Such as `whole` or `blocks(size)`.

        Returns:
            One slice of the vector for each window; empty ones are among them.

        Raises:
            WoodburyError: If the windows do not tile the vector.
        """
        counts: list[list[int]] = [[] for _ in self.param_groups]
        for part in self.slices:
            counts[part.param_group].append(part.span.stop - part.span.start)
        with user_code("The partition cannot be taken of these parameters."):
            sizes = [int(size) for size in partition(counts)]
        if sum(sizes) != self.d or min(sizes, default=0) < 0:
            raise WoodburyError(
                f"The partition's windows have {sum(sizes)} weights of {self.d}: "
                "they must tile the vector."
            )
        ends = list(accumulate(sizes))
        return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]

    def dampings(self, spans: Sequence[slice]) -> list[float]:
        """The damping of each window.

        Args:
            spans: One slice of the vector for each window.

        Returns:
            The one damping of the parameter groups that each window holds weights of.

        Raises:
            WoodburyError: If groups of different damping share a window.
        """
        dampings = []
        for span in spans:
            groups = {
                part.param_group
                for part in self.slices
                if part.span.start < span.stop and part.span.stop > span.start
            }
            # An empty window, which ranks may have, belongs to no group: any damping serves.
            values = {float(self.param_groups[group]["damping"]) for group in groups or {0}}
            if len(values) > 1:
                raise WoodburyError(
                    f"Groups of damping {sorted(values)} share a window: "
                    "use one damping, or partition=per_group."
                )
            dampings.append(check_damping(values.pop()))
        return dampings

    def gradient(self, like: Tensor) -> Tensor:
        """The parameters' gradients as one vector.

        Args:
            like: A tensor of the dtype and on the device that the vector is to have.

        Returns:
            (d,), 0 where a parameter has no gradient, the sign changed where a group maximizes.

        Raises:
            WoodburyError: If a gradient is sparse or complex.
        """
        vector = like.new_empty(self.d)
        for part in self.slices:
            gradient = part.parameter.grad
            if gradient is None:
                vector[part.span].zero_()
                continue
            if gradient.layout != torch.strided or gradient.is_complex():
                raise WoodburyError(
                    f"The gradient of a parameter of shape {tuple(part.parameter.shape)} is sparse "
                    "or complex: give real, dense ones (nn.Embedding(sparse=False))."
                )
            vector[part.span].copy_(part.gather(gradient))
            self._turn_sign(vector[part.span], part)
        return vector

    def matrix(self, rows: Sequence[Tensor], residuals: Tensor, like: Tensor) -> Tensor:
        """Rows given by parameter as one matrix.

        Args:
            rows: (k, *shape) for each parameter in turn.
            residuals: (k,), here for its length.
            like: A tensor of the dtype and on the device that the matrix is to have.

        Returns:
            (k, d), the sign changed where a group maximizes.

        Raises:
            WoodburyError: If a shape is another.
        """
        if not isinstance(rows, Sequence) or not all(isinstance(row, Tensor) for row in rows):
            raise WrongType("rows has something that is no tensor: give one for each parameter.")
        if residuals.is_complex() or any(row.is_complex() for row in rows):
            raise WrongType("rows or residuals are complex: give real numbers.")
        expected = [(residuals.numel(), *part.local.shape) for part in self.slices]
        shapes = [tuple(row.shape) for row in rows]
        if residuals.ndim != 1 or shapes != expected:
            raise WoodburyError(
                f"step got rows of the shapes {shapes} and residuals of shape "
                f"{tuple(residuals.shape)}, for parameters of the shapes "
                f"{[shape[1:] for shape in expected]}: "
                "give (k, *shape) for each parameter in turn, and k residuals."
            )
        k = len(residuals)
        matrix = like.new_empty(k, self.d)
        for part, row in zip(self.slices, rows, strict=True):
            flat = row.detach().reshape(k, part.local.numel())
            if part.indices is not None:
                flat = flat[:, part.indices.to(flat.device)]
            matrix[:, part.span].copy_(flat)
            self._turn_sign(matrix[:, part.span], part)
        return matrix

    def is_sharded(self, process_group: dist.ProcessGroup | None) -> bool:
        """Whether the parameters are shards, so that each rank has a vector of its own.

        Args:
            process_group: The ranks that share the windows; None for one process alone.

        Returns:
            True if all parameters are sharded DTensors, False if none is a DTensor.

        Raises:
            WoodburyError: If some are and some not, if a DTensor is not sharded, or if DTensors
                come without their process group.
        """
        dtensors: list[Any] = [part.parameter for part in self.slices if is_dtensor(part.parameter)]
        if not dtensors:
            return False
        sharded = all(
            any(placement.is_shard() for placement in parameter.placements)
            for parameter in dtensors
        )
        if len(dtensors) < len(self.slices) or process_group is None or not sharded:
            raise WoodburyError(
                "Some parameters are DTensors: shard all of them (fully_shard), "
                "and give the ranks as group=…."
            )
        return True

    def _turn_sign(self, values: Tensor, part: ParameterSlice) -> None:
        if self.param_groups[part.param_group]["maximize"]:
            values.neg_()
