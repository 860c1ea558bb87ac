"""The layers that K-FAC by rows has factors of, and the matrices of inputs that these share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from woodbury.linalg.precision import at_least_float32
from woodbury.model.channels import is_transposed_linear
from woodbury.model.layers import patches

LEAST_SIZE = 1024
"""Columns of a block at least, however few rows share it."""

ELEMENTS_PER_WEIGHT = 16
"""Of the inputs' second moments, for each weight of a tensor, at most."""


@dataclass(frozen=True)
class RowLayout:
    """How a tensor is a matrix of rows that share their inputs' second moments.

    Attributes:
        rows: o, outputs.
        columns: i, the inputs of each.
        groups: g, equal groups of consecutive rows, each with inputs of its own.
        transposed: Whether the tensor is stored (i, o).

    Example:
        >>> RowLayout.of(nn.Conv2d(8, 16, 3, groups=4), torch.empty(16, 2, 3, 3))
        RowLayout(rows=16, columns=18, groups=4, transposed=False)
        >>> RowLayout.of(nn.LayerNorm(5), torch.empty(5))
        RowLayout(rows=5, columns=1, groups=1, transposed=False)
    """

    rows: int
    columns: int
    groups: int = 1
    transposed: bool = False

    @classmethod
    def of(cls, module: nn.Module, tensor: Tensor) -> RowLayout:
        """That of a parameter of a module; of unknown ones, with two rows at least if possible."""
        if has_factors(module):
            if is_transposed_linear(module):
                return cls(tensor.shape[1], tensor.shape[0], transposed=True)
            groups = module.groups if isinstance(module, nn.Conv2d) else 1
            return cls(len(tensor), tensor[0].numel(), groups)
        rows = 1
        for size in tensor.shape:
            rows *= size
            if rows > 1:
                break
        return cls(rows, tensor.numel() // rows)

    def block_count(self, max_columns: int) -> int:
        """The blocks that the columns are cut into.

        Args:
            max_columns: Of a block at most; fewer where few rows share it, so that the inputs'
                second moments are not many times the weights.

        Returns:
            At least 1.
        """
        of_rows = ELEMENTS_PER_WEIGHT * self.rows // self.groups
        return math.ceil(self.columns / min(max_columns, max(LEAST_SIZE, of_rows)))

    def block_size(self, max_columns: int) -> int:
        """The columns of each block; the last may be padded."""
        return math.ceil(self.columns / self.block_count(max_columns))

    def elements(self, max_columns: int) -> int:
        """Elements of the inputs' second moments."""
        size = self.block_size(max_columns)
        return self.groups * self.block_count(max_columns) * size**2

    def empty(self, max_columns: int, like: Tensor) -> Tensor:
        """(g·b, s, s) zeros for the sums of the inputs' second moments."""
        size = self.block_size(max_columns)
        return like.new_zeros(self.groups * self.block_count(max_columns), size, size)

    @property
    def shape(self) -> tuple[int, int]:
        """That of the tensor as a matrix, in the order in which it is stored."""
        return (self.columns, self.rows) if self.transposed else (self.rows, self.columns)

    def by_group(self, stored: Tensor) -> Tensor:
        """One element for each weight, in the order in which these are stored, as (g, r, i)."""
        matrix = stored.reshape(self.shape)
        return (matrix.T if self.transposed else matrix).reshape(self.groups, -1, self.columns)

    def as_stored(self, rows: Tensor) -> Tensor:
        """The same (g, r, i) as a vector, in the order in which weights are stored."""
        matrix = rows.reshape(self.rows, self.columns)
        return (matrix.T if self.transposed else matrix).flatten()

    def add_cross(self, sums: Tensor, inputs: Tensor, outputs: Tensor) -> None:
        """Add products of outputs (n, o) with inputs (n, g·i) to the sums (o, i)."""
        by_group = inputs.view(len(inputs), self.groups, self.columns).permute(1, 0, 2)
        goals = outputs.view(len(outputs), self.groups, -1).permute(1, 2, 0)
        sums += (goals @ by_group).reshape(self.rows, self.columns)

    def add(self, sums: Tensor, inputs: Tensor) -> None:
        """Add inputs (n, g·i) to the sums (g·b, s, s)."""
        size = sums.shape[-1]
        by_group = inputs.view(len(inputs), self.groups, self.columns)
        padding = len(sums) // self.groups * size - self.columns
        if padding:
            by_group = nn.functional.pad(by_group, (0, padding))
        by_block = by_group.reshape(len(inputs), len(sums), size).transpose(0, 1)
        sums.baddbmm_(by_block.mT, by_block)


def has_factors(module: nn.Module) -> bool:
    """Whether a module's weight is multiplied by inputs that a hook can see, and by nothing else.

    Args:
        module: Any module; a subclass of a known one may compute something else.

    Returns:
        True for Linear, Conv2d, Embedding, and the Conv1D of transformers.
    """
    return type(module) in (nn.Linear, nn.Conv2d, nn.Embedding) or is_transposed_linear(module)


def draw_positions(
    module: nn.Module, given: Tensor, positions: int, generator: torch.Generator
) -> Tensor:
    """Some positions of a layer's output.

    Args:
        module: A Linear, Conv2d or Conv1D.
        given: Its input.
        positions: Of each sample, at most.
        generator: On the CPU.

    Returns:
        Indices, for `inputs_at` and `outputs_at`: of the pixels of a convolution's output, the
        same for all samples; of the rows of all samples elsewhere.
    """
    if isinstance(module, nn.Conv2d):
        height, width = _output_size(module, given)
        count, wanted = height * width, positions
    else:
        count = given.numel() // given.shape[-1]
        wanted = positions * (len(given) if given.ndim > 1 else 1)
    if wanted >= count:
        return torch.arange(count, device=given.device)
    return torch.randperm(count, generator=generator)[:wanted].to(given.device)


def inputs_at(module: nn.Module, given: Tensor, drawn: Tensor) -> Iterator[Tensor]:
    """What the rows of a layer's weight are multiplied by, at some positions.

    Args:
        module: A Linear, Conv2d or Conv1D.
        given: Its input.
        drawn: What `draw_positions` gave.

    Returns:
        Chunks (n, g·i), float32 at least.
    """
    if isinstance(module, nn.Conv2d):
        for chunk in patches(module, given, drawn):
            yield chunk.flatten(0, 1)
        return
    yield at_least_float32(given.reshape(-1, given.shape[-1])[drawn])


def outputs_at(module: nn.Module, output: Tensor, drawn: Tensor) -> Tensor:
    """A layer's outputs at some positions, in the order of `inputs_at`: (n, o)."""
    if isinstance(module, nn.Conv2d):
        pixels = output.flatten(-2).transpose(-2, -1)[..., drawn, :]
        return at_least_float32(pixels.reshape(-1, pixels.shape[-1]))
    return at_least_float32(output.reshape(-1, output.shape[-1])[drawn])


def by_output(module: nn.Module, gradient: Tensor) -> Tensor:
    """A gradient by a layer's output as (n, o)."""
    if isinstance(module, nn.Conv2d):
        return at_least_float32(gradient).transpose(0, -3).flatten(1).T
    return at_least_float32(gradient).reshape(-1, gradient.shape[-1])


def _output_size(module: nn.Conv2d, given: Tensor) -> tuple[int, int]:
    """The height and width of a convolution's output."""
    left, right, top, bottom = module._reversed_padding_repeated_twice
    sizes = given.shape[-2] + top + bottom, given.shape[-1] + left + right
    height, width = (
        (size - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, dilation in zip(
            sizes, module.kernel_size, module.stride, module.dilation, strict=True
        )
    )
    return height, width
