"""Tiles of Cholesky factors of many small matrices at once, one in each lane of the vectors.

A matrix of n rows, n a multiple of `TILE`, is packed in tiles of rows: tile I holds `TILE` rows of
(I + 1)·`TILE` elements each, up to the end of its diagonal tile. An element is a vector of doubles,
the same element of `LANES` matrices. Of a factor the diagonal is held as its reciprocal.
"""

from __future__ import annotations

# Numba's decorators and LLVM's builders say nothing of types, and need not be installed.
# pyright: reportCallIssue=false, reportPrivateImportUsage=false, reportMissingImports=false
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from woodbury.kernels.tiles import MANY_REGISTERS
from woodbury.kernels.vectors import DOUBLE, LONG, WIDTH, ZERO, emitted, looped, pointer_to

LANES = WIDTH // 2
"""Matrices that are worked on at once: doubles in a vector register."""

TILE = 4 if MANY_REGISTERS else 3
"""Rows and columns of a tile, whose elements stay in registers."""

VECTOR = ir.VectorType(DOUBLE, LANES)
ELEMENT = 8 * LANES
"""Bytes of an element."""


def place(number: int) -> Any:
    """The bytes of some elements, as a constant."""
    return ir.Constant(LONG, ELEMENT * number)


def read(builder: ir.IRBuilder, address: Any, *offsets: Any) -> Any:
    """Load an element."""
    return builder.load(pointer_to(builder, address, VECTOR, *offsets), align=8)


def write(builder: ir.IRBuilder, value: Any, address: Any, *offsets: Any) -> None:
    """Store an element."""
    builder.store(value, pointer_to(builder, address, VECTOR, *offsets), align=8)


def times(builder: ir.IRBuilder, a: Any, b: Any) -> Any:
    """A·b, which an addition may take into one instruction."""
    return builder.fmul(a, b, flags=("contract",))


def less(builder: ir.IRBuilder, total: Any, a: Any, b: Any) -> Any:
    """Total − a·b."""
    return builder.fsub(total, times(builder, a, b), flags=("contract",))


def more(builder: ir.IRBuilder, total: Any, a: Any, b: Any) -> Any:
    """Total + a·b."""
    return builder.fadd(total, times(builder, a, b), flags=("contract",))


def rows_of(builder: ir.IRBuilder, begin: Any, stride: Any) -> list[Any]:
    """Where the rows of a tile begin."""
    steps = [builder.mul(stride, ir.Constant(LONG, t)) for t in range(TILE)]
    return [builder.add(begin, step) for step in steps]


def over_elements(
    builder: ir.IRBuilder,
    count: Any,
    values: list[Any],
    step: Callable[[Any, list[Any]], list[Any]],
) -> list[Any]:
    """Emit a loop over elements that keeps values in registers.

    Args:
        builder: Where.
        count: Turns of the loop.
        values: What they are before it.
        step: (bytes of the elements before this turn's, values) -> the values after the turn.

    Returns:
        The values after the loop.
    """

    def turn(index: Any, values: list[Any]) -> list[Any]:
        return step(builder.mul(index, place(1)), values)

    return looped(builder, values, (ZERO, count), turn)[1]


def _square_root(builder: ir.IRBuilder, value: Any) -> Any:
    kind = ir.FunctionType(VECTOR, [VECTOR])
    name = f"llvm.sqrt.v{LANES}f64"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [value])


def _constant(number: float) -> Any:
    return ir.Constant(VECTOR, [number] * LANES)


@emitted(4)
def factor_diagonal(
    builder: ir.IRBuilder, begin: Any, stride: Any, before: Any, least: Any
) -> None:
    """Factor the diagonal tile of rows, whose columns before it are those of the factor already.

    `least` has two elements: the share of the diagonal that a pivot has at least, and one that is
    set to 1 in the lanes where a pivot has less.
    """
    rows = rows_of(builder, begin, stride)
    tile = builder.mul(before, place(1))
    pairs = [(t, u) for t in range(TILE) for u in range(t + 1)]

    def step(offset: Any, totals: list[Any]) -> list[Any]:
        x = [read(builder, row, offset) for row in rows]
        return [
            less(builder, total, x[t], x[u]) for total, (t, u) in zip(totals, pairs, strict=True)
        ]

    whole = [read(builder, rows[t], tile, place(u)) for t, u in pairs]
    totals = dict(zip(pairs, over_elements(builder, before, whole, step), strict=True))
    share, failed = read(builder, least), read(builder, least, place(1))
    for u in range(TILE):
        pivot = totals[u, u]
        old = read(builder, rows[u], tile, place(u))
        enough = builder.fcmp_ordered(">=", pivot, times(builder, share, old))
        failed = builder.select(enough, failed, _constant(1))
        reciprocal = builder.fdiv(_constant(1), _square_root(builder, pivot))
        write(builder, reciprocal, rows[u], tile, place(u))
        for t in range(u + 1, TILE):
            totals[t, u] = builder.fmul(totals[t, u], reciprocal)
            write(builder, totals[t, u], rows[t], tile, place(u))
            for v in range(u + 1, t + 1):
                totals[t, v] = less(builder, totals[t, v], totals[t, u], totals[v, u])
    write(builder, failed, least, place(1))


@emitted(5)
def factor_below(
    builder: ir.IRBuilder, begin: Any, stride: Any, upper: Any, upper_stride: Any, before: Any
) -> None:
    """Factor one more tile of rows at `begin`, below the diagonal tile of the rows at `upper`."""
    rows = rows_of(builder, begin, stride)
    others = rows_of(builder, upper, upper_stride)
    tile = builder.mul(before, place(1))
    pairs = [(t, u) for t in range(TILE) for u in range(TILE)]

    def step(offset: Any, totals: list[Any]) -> list[Any]:
        x = [read(builder, row, offset) for row in rows]
        y = [read(builder, row, offset) for row in others]
        return [
            less(builder, total, x[t], y[u]) for total, (t, u) in zip(totals, pairs, strict=True)
        ]

    whole = [read(builder, rows[t], tile, place(u)) for t, u in pairs]
    totals = dict(zip(pairs, over_elements(builder, before, whole, step), strict=True))
    for u in range(TILE):
        reciprocal = read(builder, others[u], tile, place(u))
        below = [read(builder, others[v], tile, place(u)) for v in range(u + 1, TILE)]
        for t in range(TILE):
            totals[t, u] = builder.fmul(totals[t, u], reciprocal)
            write(builder, totals[t, u], rows[t], tile, place(u))
            for v, factor in zip(range(u + 1, TILE), below, strict=True):
                totals[t, v] = less(builder, totals[t, v], totals[t, u], factor)


@emitted(6)
def inverse_rows(
    builder: ir.IRBuilder, begin: Any, stride: Any, first: Any, count: Any, panel: Any, sums: Any
) -> None:
    """One more tile of rows of `TILE` columns of the inverse factor, and their squares to the sums.

    The columns begin with number `first`, and `count` rows of them lie at `panel` already; with
    none, this is their diagonal tile.
    """
    rows = rows_of(builder, begin, stride)
    start = builder.mul(first, place(1))
    pairs = [(t, u) for t in range(TILE) for u in range(TILE)]

    def step(offset: Any, totals: list[Any]) -> list[Any]:
        x = [read(builder, row, start, offset) for row in rows]
        above = builder.mul(offset, ir.Constant(LONG, TILE))
        y = [read(builder, panel, above, place(u)) for u in range(TILE)]
        return [
            less(builder, total, x[t], y[u]) for total, (t, u) in zip(totals, pairs, strict=True)
        ]

    unit = builder.select(builder.icmp_signed("==", count, ZERO), _constant(1), _constant(0))
    whole = [unit if t == u else _constant(0) for t, u in pairs]
    totals = dict(zip(pairs, over_elements(builder, count, whole, step), strict=True))
    tile = builder.mul(builder.add(first, count), place(1))
    target = builder.mul(count, place(TILE))
    squares = [read(builder, sums, place(u)) for u in range(TILE)]
    for t in range(TILE):
        for v in range(t):
            factor = read(builder, rows[t], tile, place(v))
            for u in range(TILE):
                totals[t, u] = less(builder, totals[t, u], factor, totals[v, u])
        reciprocal = read(builder, rows[t], tile, place(t))
        for u in range(TILE):
            totals[t, u] = builder.fmul(totals[t, u], reciprocal)
            write(builder, totals[t, u], panel, target, place(t * TILE + u))
            squares[u] = more(builder, squares[u], totals[t, u], totals[t, u])
    for u in range(TILE):
        write(builder, squares[u], sums, place(u))


@emitted(4)
def solve_forward(builder: ir.IRBuilder, begin: Any, stride: Any, before: Any, vector: Any) -> None:
    """One more tile of rows of L⁻¹v, in place of v."""
    rows = rows_of(builder, begin, stride)
    tile = builder.mul(before, place(1))

    def step(offset: Any, totals: list[Any]) -> list[Any]:
        known = read(builder, vector, offset)
        return [
            less(builder, total, read(builder, row, offset), known)
            for total, row in zip(totals, rows, strict=True)
        ]

    whole = [read(builder, vector, tile, place(t)) for t in range(TILE)]
    totals = over_elements(builder, before, whole, step)
    for t in range(TILE):
        for v in range(t):
            totals[t] = less(builder, totals[t], read(builder, rows[t], tile, place(v)), totals[v])
        totals[t] = builder.fmul(totals[t], read(builder, rows[t], tile, place(t)))
        write(builder, totals[t], vector, tile, place(t))


@emitted(4)
def solve_backward(
    builder: ir.IRBuilder, begin: Any, stride: Any, before: Any, vector: Any
) -> None:
    """A tile of rows of L⁻ᵀv, the last first, in place of v; and what they add to the others."""
    rows = rows_of(builder, begin, stride)
    tile = builder.mul(before, place(1))
    x = [read(builder, vector, tile, place(t)) for t in range(TILE)]
    for t in reversed(range(TILE)):
        for v in range(t + 1, TILE):
            x[t] = less(builder, x[t], read(builder, rows[v], tile, place(t)), x[v])
        x[t] = builder.fmul(x[t], read(builder, rows[t], tile, place(t)))
        write(builder, x[t], vector, tile, place(t))

    def step(offset: Any, _: list[Any]) -> list[Any]:
        total = read(builder, vector, offset)
        for row, known in zip(rows, x, strict=True):
            total = less(builder, total, read(builder, row, offset), known)
        write(builder, total, vector, offset)
        return []

    over_elements(builder, before, [], step)


@emitted(5)
def multiply_rows(
    builder: ir.IRBuilder, begin: Any, stride: Any, before: Any, vector: Any, result: Any
) -> None:
    """What a tile of rows of a symmetric matrix, and the same columns, add to its product."""
    rows = rows_of(builder, begin, stride)
    tile = builder.mul(before, place(1))
    x = [read(builder, vector, tile, place(t)) for t in range(TILE)]

    def step(offset: Any, totals: list[Any]) -> list[Any]:
        other, total = read(builder, vector, offset), read(builder, result, offset)
        elements = [read(builder, row, offset) for row in rows]
        for element, one in zip(elements, x, strict=True):
            total = more(builder, total, element, one)
        write(builder, total, result, offset)
        return [
            more(builder, one, element, other)
            for one, element in zip(totals, elements, strict=True)
        ]

    totals = over_elements(builder, before, [_constant(0)] * TILE, step)
    for t in range(TILE):
        for u in range(t + 1):
            element = read(builder, rows[t], tile, place(u))
            totals[t] = more(builder, totals[t], element, x[u])
            if u < t:
                totals[u] = more(builder, totals[u], element, x[t])
    for t in range(TILE):
        write(builder, totals[t], result, tile, place(t))
