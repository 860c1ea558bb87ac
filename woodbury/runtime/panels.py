"""Panels of an input and of a result: copied, transposed, gathered from planes and put back."""

from __future__ import annotations

# Numba's decorators say nothing of types, and Numba need not be installed.
# pyright: reportCallIssue=false, reportPrivateImportUsage=false, reportMissingImports=false
import numba
import numpy as np
from numba import carray, int64

from woodbury.kernels.compiling import OPTIONS
from woodbury.kernels.vectors import as_floats
from woodbury.runtime.codegen import TILE, transpose_tile


@numba.njit(**OPTIONS)
def gelu(out, count):
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


@numba.njit(**OPTIONS)
def copy(source, target, count):
    """Copy floats from one address to another."""
    a, b = carray(as_floats(source), count), carray(as_floats(target), count)
    for i in range(count):
        b[i] = a[i]


@numba.njit(**OPTIONS)
def transpose(source, source_stride, rows, columns, target, target_stride):
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


@numba.njit(**OPTIONS)
def pack_planes(source, sources, first, last, columns, panel, stride):
    """Rows of a panel from planes: `columns` floats from `sources[row]` on."""
    offsets = carray(as_floats(sources), last).view(np.int32)
    for row in range(first, last):
        copy(source + 4 * int64(offsets[row]), panel + (row - first) * stride, columns)


@numba.njit(**OPTIONS)
def unpack_planes(out, stride, rows, begin, columns, target, plane, width, grid):
    """Rows of a result into planes: of each `grid` columns the first `width` are pixels."""
    position, end = begin, begin + columns
    while position < end:
        line, x = position // grid, position % grid
        if x < width:
            count = min(width - x, end - position)
            place = target + 4 * (line * width + x)
            for row in range(rows):
                copy(out + row * stride + 4 * (position - begin), place + 4 * row * plane, count)
        position += grid - x
