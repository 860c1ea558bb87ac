"""The layers that K-FAC by rows has factors of, and the matrices of inputs that these share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.linalg.precision import at_least_float32
from woodbury.model.layers import patches

TRANSPOSED_LINEAR = ("transformers.pytorch_utils", "Conv1D")
"""A Linear whose weight is stored (inputs, outputs); transformers is not imported for it."""

LEAST_SIZE = 256
"""Columns of a block at least, however few rows share it."""

ELEMENTS_PER_WEIGHT = 4
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
            if is_transposed(module):
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
    return type(module) in (nn.Linear, nn.Conv2d, nn.Embedding) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether a module is a Linear whose weight is stored (inputs, outputs)."""
    return (type(module).__module__, type(module).__name__) == TRANSPOSED_LINEAR


def sampled_inputs(
    module: Any, given: Tensor, positions: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """What the rows of a layer's weight are multiplied by, at some positions.

    Args:
        module: A Linear, Conv2d or Conv1D.
        given: Its input.
        positions: Of each sample, at most.
        generator: Draws the positions, on the CPU.

    Returns:
        Chunks (n, g·i), float32 at least.
    """
    if isinstance(module, nn.Conv2d):
        height, width = _output_size(module, given)
        drawn = torch.randperm(height * width, generator=generator)[:positions]
        for chunk in patches(module, given, drawn.to(given.device)):
            yield chunk.flatten(0, 1)
        return
    flat = given.reshape(-1, given.shape[-1])
    wanted = positions * (len(given) if given.ndim > 1 else 1)
    if wanted < len(flat):
        flat = flat[torch.randperm(len(flat), generator=generator)[:wanted].to(flat.device)]
    yield at_least_float32(flat)


def by_output(module: nn.Module, gradient: Tensor) -> Tensor:
    """A gradient by a layer's output as (n, o)."""
    if isinstance(module, nn.Conv2d):
        return at_least_float32(gradient).transpose(0, -3).flatten(1).T
    return at_least_float32(gradient).reshape(-1, gradient.shape[-1])


Watcher = Callable[[Tensor], None]
"""Called with the gradient by a layer's output."""


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
