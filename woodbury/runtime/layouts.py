"""Layouts: a sparse matrix as the kernels read it, and images as planes that rows are cut from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from woodbury.runtime import buffers

PLACES = 1 << 16
"""Places in a block of the inner dimension are 16-bit numbers."""

ROWS_AT_ONCE = 64
"""Rows of a result that are finished while they are in the cache; among them, those with as many
non-zeros follow each other, so that the CPU foresees the end of each."""


@dataclass(frozen=True)
class Tiling:
    """How a product is cut.

    Attributes:
        vectors: Registers of columns in a panel.
        block: Rows of the input in a block, which stays in the nearest cache; 0 for all.
    """

    vectors: int
    block: int


@dataclass(frozen=True, eq=False)
class Packed:
    """A sparse matrix, block by block of its inner dimension and in each row by row.

    Attributes:
        values: (nnz,) float32, the non-zeros.
        places: (nnz,) uint16, their columns in the block, times the vectors of the tiling.
        starts: (blocks·outer + 1,) int32, where each row of each block begins.
        order: (blocks·outer,) int32, the rows of each block in that order.
        begin: (outer,) float32, what is added to the product.
        used: (inner,) int64, the columns of the matrix that are not left out; None for all.
        inner: How many columns are packed.
        outer: Its rows.
        block: Columns in a block.
        vectors: Of the tiling.
        jobs: What `products` has prepared for sizes of inputs.
    """

    values: np.ndarray
    places: np.ndarray
    starts: np.ndarray
    order: np.ndarray
    begin: np.ndarray
    used: Tensor | None
    inner: int
    outer: int
    block: int
    vectors: int
    jobs: dict[Any, Any] = field(default_factory=dict, repr=False)


def pack(matrix: Tensor, begin: Tensor, tiling: Tiling, *, skip_unused: bool = False) -> Packed:
    """Pack a matrix.

    Args:
        matrix: (outer, inner) float32, most of it zero.
        begin: (outer,) float32, what is added to the product.
        tiling: How the product is cut.
        skip_unused: Whether to leave out columns without any non-zero.

    Returns:
        The non-zeros.

    Example:
        >>> packed = pack(torch.tensor([[0.0, 2.0], [3.0, 0.0]]), torch.zeros(2), Tiling(4, 0))
        >>> packed.values, packed.places, packed.starts
        (array([2., 3.], dtype=float32), array([4, 0], dtype=uint16), array([0, 1, 2], dtype=int32))
    """
    used = (matrix != 0).any(0).nonzero()[:, 0] if skip_unused else None
    if used is not None:
        matrix = matrix[:, used]
    outer, inner = matrix.shape
    largest = PLACES // tiling.vectors
    block = min(tiling.block or inner, inner, largest) or 1
    group = torch.arange(outer) // ROWS_AT_ONCE
    values, places, counts, orders = [], [], [], []
    for part in matrix.split(block, 1):
        count = (part != 0).sum(1)
        order = (group * (block + 1) + count).argsort(stable=True)
        part = part[order]
        kept = part != 0
        values.append(part[kept])
        places.append(kept.nonzero()[:, 1] * tiling.vectors)
        counts.append(count[order])
        orders.append(order)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), *counts]).cumsum(0)
    return Packed(
        _array(torch.cat(values) if values else torch.zeros(0), np.float32),
        _array(torch.cat(places) if places else torch.zeros(0), np.uint16),
        _array(starts, np.int32),
        _array(torch.cat(orders) if orders else torch.arange(outer), np.int32),
        _array(begin, np.float32),
        used,
        inner,
        outer,
        block,
        tiling.vectors,
    )


def _array(tensor: Tensor, kind: type) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().numpy().astype(kind))


class Grid(NamedTuple):
    """How the planes of a convolution's input lie, for one size of image.

    The columns of the product are the places of the grid: a line of the output, then places that
    are computed and dropped, then the next line.

    Attributes:
        size: Height and width of the input.
        output: Height and width of the output.
        line: Places of the grid for each line of the output.
        plane: Floats of a plane.
        phases: The (row, column) phases of a strided kernel that have planes; one for no stride.
        shared: Zeros at the left of each line, which are the right padding of the line before it
            too; None where the padding is the layer's own.
        sources: (c·kh·kw,) int64, where the plane of each weight of an output channel begins.
    """

    size: tuple[int, int]
    output: tuple[int, int]
    line: int
    plane: int
    phases: tuple[tuple[int, int], ...]
    shared: int | None
    sources: Tensor

    @property
    def columns(self) -> int:
        """Places of the grid, to the last pixel of the output."""
        return (self.output[0] - 1) * self.line + self.output[1]


def grid_of(layer: nn.Conv2d, size: tuple[int, int]) -> Grid | None:
    """The grid of a convolution for one size of image.

    Args:
        layer: The convolution, whose kernel reads all channels: of a grouped one, its weight as
            one matrix with blocks on its diagonal.
        size: Height and width of its input.

    Returns:
        The grid, or None where the image is smaller than the kernel.
    """
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    (rows, columns), (down, across) = layer.kernel_size, layer.dilation
    high, wide = size[0] + top + bottom, size[1] + left + right
    output = (
        (high - down * (rows - 1) - 1) // layer.stride[0] + 1,
        (wide - across * (columns - 1) - 1) // layer.stride[1] + 1,
    )
    if min(output) < 1 or min(size) < 1:
        return None
    y = torch.arange(rows)[:, None] * down
    x = torch.arange(columns)[None] * across
    channels = torch.arange(layer.in_channels)[:, None, None]
    shared = max(left, right)
    is_plain = layer.stride == (1, 1) and layer.padding_mode == "zeros"
    if is_plain and output[1] <= size[1] + shared:
        line = size[1] + shared
        plane = line * (high + 1) if shared or top or bottom else line * high
        sources = channels * plane + y * line + x + shared - left
        return Grid(size, output, line, plane, ((0, 0),), shared, sources.flatten())
    (vertical, horizontal) = layer.stride
    phases = sorted({(int(a) % vertical, int(b) % horizontal) for a in y for b in x[0]})
    line, lines = -(-wide // horizontal), -(-high // vertical)
    number = torch.zeros(vertical, horizontal, dtype=torch.int64)
    for n, phase in enumerate(phases):
        number[phase] = n
    plane = line * lines
    which = channels * len(phases) + number[y % vertical, x % horizontal]
    sources = which * plane + (y // vertical) * line + x // horizontal
    return Grid(size, output, line, plane, tuple(phases), None, sources.flatten())


def planes(layer: nn.Conv2d, grid: Grid, images: Tensor) -> Tensor:
    """The padded planes of images, by phases of the stride.

    Args:
        layer: The convolution.
        grid: Its grid for this size of image.
        images: (b, c, h, w).

    Returns:
        (b, …) contiguous; where nothing is padded or strided, the images themselves.
    """
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    if grid.shared is not None:
        if grid.shared or top or bottom:
            images = _padded(images, (grid.shared, 0, top, bottom + 1))
        return images.contiguous()
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    if any((left, right, top, bottom)):
        sides = left, right, top, bottom
        images = _padded(images, sides) if mode == "constant" else pad(images, sides, mode=mode)
    (vertical, horizontal), line = layer.stride, grid.line
    lines = grid.plane // line
    beyond = (0, line * horizontal - images.shape[-1], 0, lines * vertical - images.shape[-2])
    if any(beyond):
        images = _padded(images, beyond)
    each = [images[:, :, a::vertical, b::horizontal] for a, b in grid.phases]
    return each[0].contiguous() if len(each) == 1 else torch.stack(each, 2)


def _padded(images: Tensor, sides: tuple[int, int, int, int]) -> Tensor:
    """Images with zeros at their left, right, top and bottom."""
    left, right, top, bottom = sides
    *outer, high, wide = images.shape
    result = buffers.empty(*outer, top + high + bottom, left + wide + right).zero_()
    result[..., top : top + high, left : left + wide] = images
    return result


def full_matrix(layer: nn.Conv2d) -> Tensor:
    """The weight of a convolution as one matrix (o, c·kh·kw), the groups along its diagonal."""
    weight = layer.weight.detach()
    if layer.groups == 1:
        return weight.flatten(1)
    return torch.block_diag(*(part.flatten(1) for part in weight.chunk(layer.groups)))
