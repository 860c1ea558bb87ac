"""Tiles of products in registers: as many accumulators as a CPU has room for."""

from __future__ import annotations

# Numba's decorators and LLVM's builders say nothing of types, and need not be installed.
# pyright: reportCallIssue=false, reportPrivateImportUsage=false, reportMissingImports=false
import platform
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from woodbury.kernels.vectors import (
    FLOAT,
    LONG,
    WIDTH,
    WORD,
    bytes_of,
    load,
    multiply_add,
    pointer_to,
    splat,
    store,
)

DOUBLE = ir.DoubleType()
ZERO, ONE = ir.Constant(LONG, 0), ir.Constant(LONG, 1)

MANY_REGISTERS = WIDTH == 16 or platform.machine() in ("arm64", "aarch64")
"""Whether there are 32 vector registers, and not 16."""

SQUARED_ROWS, SQUARED_VECTORS = (6, 4) if MANY_REGISTERS else (6, 2)
"""Rows and vectors of columns of a tile of `squared_tile`."""

DOT_ROWS, DOT_COLUMNS = (4, 6) if MANY_REGISTERS else (4, 3)
"""The rows whose products with each other are a tile of `dot_tile`."""


def squared_tile(rows: int, vectors: int, width: int = WIDTH) -> Callable[..., Any]:
    """An intrinsic: the squares of a few rows of a product, added to the sums of their columns.

    Args:
        rows: Rows of the left matrix.
        vectors: Registers of columns of the right one.
        width: Floats in a register.

    Returns:
        f(left, right, count, sums), all int64, the first two and the last addresses: `left` has
        `count` columns of `rows` floats, `right` as many rows of `vectors`·`width`.
    """

    @intrinsic
    def squares(typingcontext, left, right, count, sums):
        signature = types.void(*[types.int64] * 4)

        def generate(context, builder, signature, arguments):
            emit_squares(builder, rows, vectors, width, arguments)
            return context.get_dummy_value()

        return signature, generate

    return squares


def emit_squares(
    builder: ir.IRBuilder, rows: int, vectors: int, width: int, arguments: Sequence[Any]
) -> None:
    """Emit the tile of `squared_tile`."""
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


def dot_tile(rows: int, columns: int, width: int = WIDTH) -> Callable[..., Any]:
    """An intrinsic: the products of a few rows with a few others, added to a matrix of doubles.

    Args:
        rows: The number of the first.
        columns: The number of the others.
        width: Floats in a register.

    Returns:
        f(first, others, stride, count, out, out_stride), all int64, addresses but `count`, the
        vectors of a row, and the strides, the bytes from row to row.
    """

    @intrinsic
    def dots(typingcontext, first, others, stride, count, out, out_stride):
        signature = types.void(*[types.int64] * 6)

        def generate(context, builder, signature, arguments):
            emit_dots(builder, rows, columns, width, arguments)
            return context.get_dummy_value()

        return signature, generate

    return dots


def emit_dots(
    builder: ir.IRBuilder, rows: int, columns: int, width: int, arguments: Sequence[Any]
) -> None:
    """Emit the tile of `dot_tile`."""
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
    before = builder.block
    head = builder.append_basic_block("accumulate")
    body = builder.append_basic_block("step")
    after = builder.append_basic_block("accumulated")
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(LONG)
    index.add_incoming(ZERO, before)
    totals = [builder.phi(vector) for _ in range(number)]
    for total in totals:
        total.add_incoming(ir.Constant(vector, [0.0] * vector.count), before)
    builder.cbranch(builder.icmp_signed("<", index, count), body, after)
    builder.position_at_end(body)
    for total, result in zip(totals, step(index, totals), strict=True):
        total.add_incoming(result, builder.block)
    index.add_incoming(builder.add(index, ONE), builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return totals


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


def copied_rows(vectors: int, width: int = WIDTH) -> Callable[..., Any]:
    """An intrinsic: rows of `vectors`·`width` floats, copied one after the other.

    Args:
        vectors: Registers of a row.
        width: Floats in a register.

    Returns:
        f(source, stride, target, count), all int64: `count` rows, `stride` bytes apart.
    """

    @intrinsic
    def copy(typingcontext, source, stride, target, count):
        signature = types.void(*[types.int64] * 4)

        def generate(context, builder, signature, arguments):
            source, stride, target, count = arguments
            vector = ir.VectorType(FLOAT, width)
            with cgutils.for_range_slice(builder, ZERO, count, ONE, LONG) as (number, _):
                begin = builder.add(source, builder.mul(number, stride))
                end = builder.add(target, builder.mul(number, bytes_of(vectors, width)))
                places = [bytes_of(v, width) for v in range(vectors)]
                for place, value in [(p, load(builder, begin, vector, p)) for p in places]:
                    store(builder, value, end, place)
            return context.get_dummy_value()

        return signature, generate

    return copy
