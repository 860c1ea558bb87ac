"""Gram matrices and triangular products of float32 rows, of which only a triangle is computed."""

from __future__ import annotations

# Numba's decorators say nothing of types, and Numba need not be installed.
# pyright: reportCallIssue=false, reportPrivateImportUsage=false, reportMissingImports=false
import torch
from numba import carray, int64, void
from torch import Tensor

from woodbury.kernels.compiling import compiled
from woodbury.kernels.tiles import (
    DOT_COLUMNS,
    DOT_ROWS,
    SQUARED_ROWS,
    SQUARED_VECTORS,
    emit_copies,
    emit_dots,
    emit_squares,
)
from woodbury.kernels.vectors import WIDTH, as_floats, emitted

PANEL = SQUARED_VECTORS * WIDTH
"""Columns that a triangle is multiplied by at once."""

COLUMNS_AT_ONCE = 1024
"""Columns of the rows whose products are summed in float32, before float64 takes them."""

LINE = 16
"""Floats of a cache line: rows begin that much further apart, so that they do not compete."""

ROWS_AT_ONCE = 96
"""Rows that are multiplied by all before them while a cache holds them."""


@emitted(4)
def _squares(builder, *arguments):
    emit_squares(builder, SQUARED_ROWS, SQUARED_VECTORS, WIDTH, arguments)


@emitted(6)
def _dots(builder, *arguments):
    emit_dots(builder, DOT_ROWS, DOT_COLUMNS, WIDTH, arguments)


@emitted(4)
def _copy_panel(builder, *arguments):
    emit_copies(builder, SQUARED_VECTORS, WIDTH, arguments)


@compiled(void(*[int64] * 7))
def _squared_columns(packed, rows, chunk, stride, columns, panel, out):
    """The column sums of (triangle · chunk)²: packed rows of the triangle, a panel at a time."""
    sums = panel + 4 * PANEL * rows
    values = carray(as_floats(panel), (rows + 1) * PANEL)
    results = carray(as_floats(out), columns)
    for first in range(0, columns, PANEL):
        width = min(PANEL, columns - first)
        if width == PANEL:
            _copy_panel((chunk + 4 * first, stride, panel, rows))
        else:
            for row in range(rows):
                source = carray(as_floats(chunk + row * stride + 4 * first), width)
                for column in range(PANEL):
                    values[row * PANEL + column] = source[column] if column < width else 0
        for column in range(PANEL):
            values[rows * PANEL + column] = 0
        left = packed
        for begin in range(0, rows, SQUARED_ROWS):
            end = min(begin + SQUARED_ROWS, rows)
            _squares((left, panel, end, sums))
            left += 4 * SQUARED_ROWS * end
        for column in range(width):
            results[first + column] = values[rows * PANEL + column]


@compiled(void(*[int64] * 8))
def _add_gram(chunk, stride, rows, known, columns, copies, out, out_rows):
    """Add the lower triangle of chunk · chunkᵀ, but that of the first `known` rows."""
    length = COLUMNS_AT_ONCE + LINE
    values = carray(as_floats(copies), out_rows * length)
    for place in range(rows * length, out_rows * length):
        values[place] = 0
    for first in range(0, columns, COLUMNS_AT_ONCE):
        width = min(COLUMNS_AT_ONCE, columns - first)
        vectors = (width + WIDTH - 1) // WIDTH
        for row in range(rows):
            source = carray(as_floats(chunk + row * stride + 4 * first), width)
            for column in range(width):
                values[row * length + column] = source[column]
            for column in range(width, vectors * WIDTH):
                values[row * length + column] = 0
        for begin in range(known, rows, ROWS_AT_ONCE):
            end = min(begin + ROWS_AT_ONCE, rows)
            for other in range(0, end, DOT_COLUMNS):
                # The first rows of which a product with these others lies below the diagonal.
                skipped = max(0, other - begin) // DOT_ROWS * DOT_ROWS
                for row in range(begin + skipped, end, DOT_ROWS):
                    left, right = copies + 4 * length * row, copies + 4 * length * other
                    target = out + 8 * (row * out_rows + other)
                    _dots((left, right, 4 * length, vectors, target, 8 * out_rows))


class Triangle:
    """A lower triangular matrix, packed for products with chunks of rows.

    Args:
        matrix: (m, m) float32, lower triangular.

    Example:
        >>> import pytest; _ = pytest.importorskip("numba")
        >>> triangle = Triangle(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        >>> triangle.squared_columns(torch.tensor([[1.0], [2.0]]))
        tensor([10.])
    """

    def __init__(self, matrix: Tensor) -> None:
        self._rows = rows = len(matrix)
        packed = []
        for begin in range(0, rows, SQUARED_ROWS):
            end = min(begin + SQUARED_ROWS, rows)
            columns = matrix.new_zeros(end, SQUARED_ROWS)
            columns[:, : end - begin] = matrix[begin:end, :end].mT
            packed.append(columns.flatten())
        self._packed = torch.cat(packed)

    def squared_columns(self, chunk: Tensor) -> Tensor:
        """The column sums of (matrix @ chunk)².

        Args:
            chunk: (m, c) float32.

        Returns:
            (c,) float32.
        """
        chunk = _with_rows_in_place(chunk)
        rows, columns = chunk.shape
        panel, sums = chunk.new_empty((rows + 1) * PANEL), chunk.new_empty(columns)
        _squared_columns(
            self._packed.data_ptr(),
            rows,
            chunk.data_ptr(),
            4 * chunk.stride(0),
            columns,
            panel.data_ptr(),
            sums.data_ptr(),
        )
        return sums


def gram_rows(rows: int) -> int:
    """Rows of the matrix that `add_gram` adds to, for some rows of which it is the Gram matrix."""
    return rows + max(DOT_ROWS, DOT_COLUMNS)


def add_gram(chunk: Tensor, sums: Tensor, known: int = 0) -> None:
    """Add the lower triangle of chunk · chunkᵀ, products in float32, sums of them in float64.

    Args:
        chunk: (m, c) float32.
        sums: (n, n) float64, contiguous, with n = gram_rows(m): the Gram matrix has the first m
            rows and columns; what lies above its diagonal and beyond is of no use.
        known: The first rows, whose products with each other are left out.

    Example:
        >>> import pytest; _ = pytest.importorskip("numba")
        >>> sums = torch.zeros(gram_rows(2), gram_rows(2), dtype=torch.float64)
        >>> add_gram(torch.tensor([[1.0, 2.0], [0.0, 3.0]]), sums)
        >>> sums[:2, :2].tril()
        tensor([[5., 0.],
                [6., 9.]], dtype=torch.float64)
    """
    chunk = _with_rows_in_place(chunk)
    rows, columns = chunk.shape
    copies = chunk.new_empty(len(sums), COLUMNS_AT_ONCE + LINE)
    _add_gram(
        chunk.data_ptr(),
        4 * chunk.stride(0),
        rows,
        known,
        columns,
        copies.data_ptr(),
        sums.data_ptr(),
        len(sums),
    )


def _with_rows_in_place(chunk: Tensor) -> Tensor:
    """The chunk with the elements of a row side by side."""
    return chunk if chunk.stride(1) == 1 else chunk.contiguous()
