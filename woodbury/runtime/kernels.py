"""The compiled kernels: a sparse matrix times the columns of an input, panel by panel.

All arrays are addresses, so that a call costs microseconds; `products` passes them.
A panel holds some columns of the input, one row of it after another, as many as fit the registers.
"""

from __future__ import annotations

# Numba's decorators and LLVM's builders say nothing of types, and need not be installed.
# pyright: reportCallIssue=false, reportPrivateImportUsage=false, reportMissingImports=false
import warnings
from typing import Any

import numba
import numpy as np
from numba import carray, int64, void
from numba.core.errors import NumbaWarning

from woodbury.runtime.codegen import TILE, WIDTH, as_floats, row_products, transpose_tile
from woodbury.runtime.layouts import ROWS_AT_ONCE

VECTORS = (1, 2, 3, 4, 6, 7, 8)
"""Registers of columns that there are kernels for."""
RELU, RELU6, GELU = 1, 2, 3
"""The numbers of the activations."""

_rows_1, _rows_2, _rows_3, _rows_4, _rows_6, _rows_7, _rows_8 = map(row_products, VECTORS)
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def compiled(*signature: Any) -> Any:
    """A decorator: compile now, or load from the disk what an earlier process compiled.

    Where no folder for compiled code can be written, each process compiles its own.
    """

    def decorate(function: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NumbaWarning)
            try:
                return numba.njit(*signature, cache=True, **_OPTIONS)(function)
            except (RuntimeError, OSError):  # no folder, or one that cannot be written
                return numba.njit(*signature, **_OPTIONS)(function)

    return decorate


@numba.njit(**_OPTIONS)
def _multiply(vectors, *arguments):
    """Call the kernel for a number of registers of columns."""
    if vectors == 8:
        _rows_8(*arguments)
    elif vectors == 7:
        _rows_7(*arguments)
    elif vectors == 6:
        _rows_6(*arguments)
    elif vectors == 4:
        _rows_4(*arguments)
    elif vectors == 3:
        _rows_3(*arguments)
    elif vectors == 2:
        _rows_2(*arguments)
    else:
        _rows_1(*arguments)


@numba.njit(**_OPTIONS)
def _vectors_for(columns):
    """The fewest registers with a kernel that hold some columns."""
    needed = (columns + WIDTH - 1) // WIDTH
    for vectors in VECTORS:
        if vectors >= needed:
            return vectors
    return VECTORS[-1]


@numba.njit(**_OPTIONS)
def _gelu(out, count):
    """x·Φ(x) in place; erf is a ratio of polynomials, right to float32's last digits."""
    numbers = carray(as_floats(out), count)
    for i in range(count):
        x = numbers[i]
        y = x * np.float32(0.70710678)
        y = min(max(y, np.float32(-3.925)), np.float32(3.925))
        t = y * y
        p = np.float32(2.046034e-06)
        p = p * t + np.float32(2.84843059e-04)
        p = p * t + np.float32(3.77252395e-03)
        p = p * t + np.float32(5.27692214e-02)
        p = p * t + np.float32(1.90593138e-01)
        p = p * t + np.float32(1.12837911e00)
        q = np.float32(3.80478195e-05)
        q = q * t + np.float32(1.16385157e-03)
        q = q * t + np.float32(1.49831465e-02)
        q = q * t + np.float32(1.14182472e-01)
        q = q * t + np.float32(5.02241492e-01)
        q = q * t + np.float32(1.0)
        half = np.float32(0.5) * x
        numbers[i] = half + half * (y * p / q)


@numba.njit(**_OPTIONS)
def _copy(source, target, count):
    """Copy floats from one address to another."""
    a, b = carray(as_floats(source), count), carray(as_floats(target), count)
    for i in range(count):
        b[i] = a[i]


@numba.njit(**_OPTIONS)
def _transpose(source, source_stride, rows, columns, target, target_stride):
    """Copy rows × columns floats transposed; rows lie `stride` bytes apart."""
    whole_rows, whole_columns = rows - rows % TILE, columns - columns % TILE
    for i in range(0, whole_rows, TILE):
        for j in range(0, whole_columns, TILE):
            transpose_tile(
                source + i * source_stride + 4 * j,
                source_stride,
                target + j * target_stride + 4 * i,
                target_stride,
            )
    a = carray(as_floats(source), (rows, source_stride // 4))
    b = carray(as_floats(target), (columns, target_stride // 4))
    for i in range(rows):
        for j in range(whole_columns if i < whole_rows else 0, columns):
            b[j, i] = a[i, j]


@numba.njit(**_OPTIONS)
def _pack_planes(source, sources, first, last, columns, panel, stride):
    """Rows of a panel from planes: `columns` floats from `sources[row]` on."""
    offsets = carray(as_floats(sources), last).view(np.int32)
    for row in range(first, last):
        _copy(source + 4 * int64(offsets[row]), panel + (row - first) * stride, columns)


@numba.njit(**_OPTIONS)
def _unpack_planes(out, stride, rows, begin, columns, target, plane, width, grid):
    """Rows of a result into planes: of each `grid` columns the first `width` are pixels."""
    position, end = begin, begin + columns
    while position < end:
        line, x = position // grid, position % grid
        if x < width:
            count = min(width - x, end - position)
            place = target + 4 * (line * width + x)
            for row in range(rows):
                _copy(out + row * stride + 4 * (position - begin), place + 4 * row * plane, count)
        position += grid - x


@compiled(void(*[int64] * 24))
def multiply(
    source,
    target,
    values,
    places,
    starts,
    order,
    begin,
    sources,
    scratch,
    inner,
    outer,
    block,
    vectors,
    images,
    columns,
    source_image,
    target_image,
    width,
    grid,
    first_unit,
    last_unit,
    first_row,
    last_row,
    activation,
):
    """The product of a sparse matrix with a range of panels, for a range of its rows.

    Args:
        source: The input: tokens (columns, inner) where `sources` is 0, else planes.
        target: The output: tokens (columns, outer), or planes of `outer` channels.
        values: The non-zeros, block by block of the inner dimension, in each row by row.
        places: Of each, the row of the panel times `vectors`, 16 bits.
        starts: (blocks·outer + 1) where each row of each block begins, 32 bits.
        order: (blocks·outer) the rows in the order in which each block has them, 32 bits.
        begin: (outer,) what the sums begin with.
        sources: For planes, (inner,) where each row of the panel begins in an image, 32 bits.
        scratch: Room for a panel of a block and the result of all rows.
        inner: Rows of the input.
        outer: Rows of the matrix.
        block: Rows of the input in a block.
        vectors: Registers of columns in a panel.
        images: How many images, or 1.
        columns: Of an image.
        source_image: Floats of an input image.
        target_image: Floats of an output image.
        width: Pixels in each line of the output.
        grid: Columns for each line of the output.
        first_unit: The first of images · panels.
        last_unit: The one after the last.
        first_row: The first row of the matrix.
        last_row: The one after the last.
        activation: `RELU`, `RELU6`, `GELU`, or 0.
    """
    most = vectors * WIDTH
    stride = 4 * most
    panels = (columns + most - 1) // most
    panel, result = scratch, scratch + min(block, inner) * stride
    blocks = max(1, (inner + block - 1) // block)
    low = np.float32(0) if activation in (RELU, RELU6) else np.float32(-np.inf)
    high = np.float32(6) if activation == RELU6 else np.float32(np.inf)
    step = ROWS_AT_ONCE if blocks == 1 else last_row - first_row
    for unit in range(first_unit, last_unit):
        image, begin_column = unit // panels, (unit % panels) * most
        count = min(most, columns - begin_column)
        used = min(vectors, _vectors_for(count))
        for top in range(first_row, last_row, step):
            bottom = min(top + step, last_row)
            for b in range(blocks):
                low_row, high_row = b * block, min((b + 1) * block, inner)
                if b > 0 or blocks > 1 or top == first_row:
                    if sources == 0:
                        _transpose(
                            source + 4 * (begin_column * inner + low_row),
                            4 * inner,
                            count,
                            high_row - low_row,
                            panel,
                            stride,
                        )
                    else:
                        place = source + 4 * (image * source_image + begin_column)
                        _pack_planes(place, sources, low_row, high_row, count, panel, stride)
                _multiply(
                    used,
                    values,
                    places,
                    starts + 4 * b * outer,
                    order + 4 * b * outer,
                    begin,
                    panel,
                    result - top * stride,
                    top,
                    bottom,
                    stride,
                    b,
                    low if b == blocks - 1 else np.float32(-np.inf),
                    high if b == blocks - 1 else np.float32(np.inf),
                )
            rows = bottom - top
            if activation == GELU:
                _gelu(result, rows * most)
            if sources == 0:
                place = target + 4 * (begin_column * outer + top)
                _transpose(result, stride, rows, count, place, 4 * outer)
            else:
                place = target + 4 * (image * target_image + top * (target_image // outer))
                _unpack_planes(
                    result,
                    stride,
                    rows,
                    begin_column,
                    count,
                    place,
                    target_image // outer,
                    width,
                    grid,
                )
