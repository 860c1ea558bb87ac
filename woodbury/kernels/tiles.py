"""Tiles of products in registers: as many accumulators as a CPU has room for."""

from __future__ import annotations

# Numba's decorators and LLVM's builders say nothing of types, and need not be installed.
# pyright: reportCallIssue=false, reportPrivateImportUsage=false, reportMissingImports=false
import platform
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from woodbury.kernels.vectors import (
    DOUBLE,
    FLOAT,
    LONG,
    ONE,
    WIDTH,
    WORD,
    ZERO,
    bytes_of,
    load,
    looped,
    multiply_add,
    pointer_to,
    splat,
    store,
)

MANY_REGISTERS = WIDTH == 16 or platform.machine() in ("arm64", "aarch64")
"""Whether there are 32 vector registers, and not 16."""

SQUARED_ROWS, SQUARED_VECTORS = (6, 4) if MANY_REGISTERS else (6, 2)
"""Rows and vectors of columns of a tile of `emit_squares`."""

DOT_ROWS, DOT_COLUMNS = (4, 6) if MANY_REGISTERS else (4, 3)
"""The rows whose products with each other are a tile of `emit_dots`."""


def emit_squares(
    builder: ir.IRBuilder, rows: int, vectors: int, width: int, arguments: Sequence[Any]
) -> None:
    """Emit the squares of a few rows of a product, added to the sums of their columns.

    Args:
        builder: Where.
        rows: Rows of the left matrix.
        vectors: Registers of columns of the right one.
        width: Floats in a register.
        arguments: Addresses of left, right and sums, with the count of columns third: `left` has
            `count` columns of `rows` floats, `right` as many rows of `vectors`·`width`.
    """
    left, right, count, sums = arguments
    vector = ir.VectorType(FLOAT, width)

    def step(index: Any, totals: list[Any]) -> list[Any]:
        column = builder.add(left, builder.mul(index, bytes_of(1, rows)))
        row = builder.add(right, builder.mul(index, bytes_of(vectors, width)))
        factors = [load(builder, row, vector, bytes_of(v, width)) for v in range(vectors)]
        results = []
        for r in range(rows):
            value = splat(builder, load(builder, column, FLOAT, bytes_of(r, 1)), width)
            for v, factor in enumerate(factors):
                results.append(multiply_add(builder, value, factor, totals[r * vectors + v]))
        return results

    totals = accumulated(builder, vector, rows * vectors, count, step)
    for v in range(vectors):
        total = load(builder, sums, vector, bytes_of(v, width))
        for one in totals[v::vectors]:
            total = multiply_add(builder, one, one, total)
        store(builder, total, sums, bytes_of(v, width))


def emit_dots(
    builder: ir.IRBuilder, rows: int, columns: int, width: int, arguments: Sequence[Any]
) -> None:
    """Emit the products of a few rows with a few others, added to a matrix of doubles.

    Args:
        builder: Where.
        rows: The number of the first.
        columns: The number of the others.
        width: Floats in a register.
        arguments: Addresses of the first and of the others, the bytes from row to row, the vectors
            of a row, the address of the matrix, and the bytes from row to row there.
    """
    first, others, stride, count, out, out_stride = arguments
    vector = ir.VectorType(FLOAT, width)

    def begins(address: Any, step: Any, number: int) -> list[Any]:
        steps = [builder.mul(step, ir.Constant(LONG, n)) for n in range(number)]
        return [builder.add(address, one) for one in steps]

    lefts, rights = begins(first, stride, rows), begins(others, stride, columns)

    def step(index: Any, totals: list[Any]) -> list[Any]:
        here = builder.mul(index, bytes_of(1, width))
        factors = [load(builder, right, vector, here) for right in rights]
        results = []
        for r, left in enumerate(lefts):
            value = load(builder, left, vector, here)
            for c, factor in enumerate(factors):
                results.append(multiply_add(builder, value, factor, totals[r * columns + c]))
        return results

    totals = accumulated(builder, vector, rows * columns, count, step)
    for r, row in enumerate(begins(out, out_stride, rows)):
        for c in range(columns):
            place = pointer_to(builder, row, DOUBLE, ir.Constant(LONG, 8 * c))
            added = builder.fpext(element_sum(builder, totals[r * columns + c], width), DOUBLE)
            builder.store(builder.fadd(builder.load(place), added), place)


def accumulated(
    builder: ir.IRBuilder,
    vector: ir.VectorType,
    number: int,
    count: Any,
    step: Callable[[Any, list[Any]], list[Any]],
) -> list[Any]:
    """Emit a loop that keeps its sums in registers.

    Args:
        builder: Where.
        vector: The type of a sum.
        number: How many sums, which begin with zero.
        count: Turns of the loop.
        step: (turn, sums) -> the sums after it.

    Returns:
        The sums after the loop.
    """
    zeros = [ir.Constant(vector, [0.0] * vector.count)] * number
    return looped(builder, zeros, (ZERO, count), step)[1]


def element_sum(builder: ir.IRBuilder, vector: Any, width: int) -> Any:
    """The sum of the elements of a vector, by halves."""
    while width > 1:
        width //= 2
        orders = [
            ir.Constant(ir.VectorType(WORD, width), list(range(start, start + width)))
            for start in (0, width)
        ]
        low, high = (builder.shuffle_vector(vector, vector, order) for order in orders)
        vector = builder.fadd(low, high)
    return builder.extract_element(vector, ir.Constant(WORD, 0))


def emit_copies(builder: ir.IRBuilder, vectors: int, width: int, arguments: Sequence[Any]) -> None:
    """Emit copies of rows of `vectors`·`width` floats, one after the other.

    Args:
        builder: Where.
        vectors: Registers of a row.
        width: Floats in a register.
        arguments: The address of the first row, the bytes from row to row, the address of the
            copies, and the number of rows.
    """
    source, stride, target, count = arguments
    vector = ir.VectorType(FLOAT, width)
    with cgutils.for_range_slice(builder, ZERO, count, ONE, LONG) as (number, _):
        begin = builder.add(source, builder.mul(number, stride))
        end = builder.add(target, builder.mul(number, bytes_of(vectors, width)))
        places = [bytes_of(v, width) for v in range(vectors)]
        for place, value in [(p, load(builder, begin, vector, p)) for p in places]:
            store(builder, value, end, place)
