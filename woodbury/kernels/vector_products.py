"""Products of float32 rows with one vector: four rows at a time, at the memory's own speed."""

from __future__ import annotations

# Numba's decorators and LLVM's builders say nothing of types, and need not be installed.
# pyright: reportCallIssue=false, reportPrivateImportUsage=false, reportMissingImports=false
from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import carray, int64, void
from numba.core import cgutils
from torch import Tensor

from woodbury.kernels.compiling import compiled
from woodbury.kernels.tiles import accumulated, element_sum
from woodbury.kernels.vectors import (
    FLOAT,
    LONG,
    ONE,
    WIDTH,
    ZERO,
    as_floats,
    bytes_of,
    emitted,
    load,
    multiply_add,
    pointer_to,
    splat,
    store,
)

ROWS = 4
"""Rows that are read side by side: one stream alone leaves a third of the memory's rate."""

VECTORS = 2
"""Registers of each row that are read at once."""

STEP = VECTORS * WIDTH
"""Columns of one turn."""

COLUMNS_AT_ONCE = 1 << 14
"""Columns of a product: the vector's part lies in a cache, and the rows' stretches are long."""


def emit_dots(builder: ir.IRBuilder, rows: int, width: int, arguments: Sequence[Any]) -> None:
    """Emit the sums of a few rows times a vector, which are added to `out`."""
    first, stride, vector, turns, out = arguments
    kind = ir.VectorType(FLOAT, width)
    begins = _begins(builder, first, stride, rows)

    def step(index: Any, totals: list[Any]) -> list[Any]:
        here = builder.mul(index, bytes_of(VECTORS, width))
        places = [bytes_of(v, width) for v in range(VECTORS)]
        factors = [load(builder, vector, kind, here, place) for place in places]
        results = []
        for r, begin in enumerate(begins):
            for v, place in enumerate(places):
                value = load(builder, begin, kind, here, place)
                results.append(multiply_add(builder, value, factors[v], totals[r * VECTORS + v]))
        return results

    totals = accumulated(builder, kind, rows * VECTORS, turns, step)
    for r in range(rows):
        total = totals[r * VECTORS]
        for more in totals[r * VECTORS + 1 : (r + 1) * VECTORS]:
            total = builder.fadd(total, more)
        place = pointer_to(builder, out, FLOAT, bytes_of(r, 1))
        builder.store(builder.fadd(builder.load(place), element_sum(builder, total, width)), place)


def emit_combination(
    builder: ir.IRBuilder, rows: int, width: int, arguments: Sequence[Any]
) -> None:
    """Emit a few rows times a number each, which are added to the row at `out`."""
    first, stride, numbers, turns, out = arguments
    kind = ir.VectorType(FLOAT, width)
    begins = _begins(builder, first, stride, rows)
    factors = [
        splat(builder, load(builder, numbers, FLOAT, bytes_of(r, 1)), width) for r in range(rows)
    ]
    with cgutils.for_range_slice(builder, ZERO, turns, ONE, LONG) as (index, _):
        here = builder.mul(index, bytes_of(VECTORS, width))
        for place in [bytes_of(v, width) for v in range(VECTORS)]:
            total = load(builder, out, kind, here, place)
            for begin, factor in zip(begins, factors, strict=True):
                total = multiply_add(
                    builder, load(builder, begin, kind, here, place), factor, total
                )
            store(builder, total, out, here, place)


def _begins(builder: ir.IRBuilder, first: Any, stride: Any, rows: int) -> list[Any]:
    """Where some rows begin."""
    steps = [builder.mul(stride, ir.Constant(LONG, r)) for r in range(rows)]
    return [builder.add(first, step) for step in steps]


@emitted(5)
def _dots(builder, *arguments):
    emit_dots(builder, ROWS, WIDTH, arguments)


@emitted(5)
def _dot(builder, *arguments):
    emit_dots(builder, 1, WIDTH, arguments)


@emitted(5)
def _combination(builder, *arguments):
    emit_combination(builder, ROWS, WIDTH, arguments)


@emitted(5)
def _multiple(builder, *arguments):
    emit_combination(builder, 1, WIDTH, arguments)


@compiled(void(*[int64] * 6))
def _times(first, stride, rows, columns, vector, out):
    """The products of rows with a vector."""
    turns = columns // STEP
    together = rows // ROWS * ROWS
    sums, factors = carray(as_floats(out), rows), carray(as_floats(vector), columns)
    for row in range(rows):
        sums[row] = 0
    for row in range(0, together, ROWS):
        _dots((first + row * stride, stride, vector, turns, out + 4 * row))
    for row in range(together, rows):
        _dot((first + row * stride, stride, vector, turns, out + 4 * row))
    for row in range(rows):
        values = carray(as_floats(first + row * stride), columns)
        for column in range(turns * STEP, columns):
            sums[row] += values[column] * factors[column]


@compiled(void(*[int64] * 6))
def _combined(first, stride, rows, columns, numbers, out):
    """The sum of rows, each times a number."""
    turns = columns // STEP
    together = rows // ROWS * ROWS
    sums, factors = carray(as_floats(out), columns), carray(as_floats(numbers), rows)
    for column in range(columns):
        sums[column] = 0
    for row in range(0, together, ROWS):
        _combination((first + row * stride, stride, numbers + 4 * row, turns, out))
    for row in range(together, rows):
        _multiple((first + row * stride, stride, numbers + 4 * row, turns, out))
    for row in range(rows):
        values = carray(as_floats(first + row * stride), columns)
        for column in range(turns * STEP, columns):
            sums[column] += values[column] * factors[row]


def times(rows: Tensor, v: Tensor, out: Tensor) -> None:
    """The product G v of some columns, into `out`.

    Args:
        rows: G (m, c) float32, the elements of a row side by side.
        v: (c,) float32, contiguous.
        out: (m,) float32, contiguous.

    Example:
        >>> import pytest; _ = pytest.importorskip("numba")
        >>> import torch
        >>> out = torch.empty(1)
        >>> times(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0, 4.0]), out)
        >>> out
        tensor([11.])
    """
    _call(_times, rows, v, out)


def combine(rows: Tensor, c: Tensor, out: Tensor) -> None:
    """The product Gᵀ c of some columns, into `out`.

    Args:
        rows: G (m, c) float32, the elements of a row side by side.
        c: (m,) float32, contiguous.
        out: (c,) float32, contiguous.

    Example:
        >>> import pytest; _ = pytest.importorskip("numba")
        >>> import torch
        >>> out = torch.empty(2)
        >>> combine(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0]), out)
        >>> out
        tensor([3., 6.])
    """
    _call(_combined, rows, c, out)


def _call(kernel: Any, rows: Tensor, vector: Tensor, out: Tensor) -> None:
    kernel(rows.data_ptr(), 4 * rows.stride(0), *rows.shape, vector.data_ptr(), out.data_ptr())
