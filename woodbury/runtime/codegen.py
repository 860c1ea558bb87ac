"""Numba intrinsics that emit LLVM vector code: products of sparse rows, and transposes."""

from __future__ import annotations

# Numba's decorators and LLVM's builders say nothing of types, and need not be installed.
# pyright: reportCallIssue=false, reportPrivateImportUsage=false, reportMissingImports=false
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from woodbury.kernels.vectors import (
    FLOAT,
    HALF,
    LONG,
    WIDTH,
    WORD,
    bytes_of,
    load,
    looped,
    multiply_add,
    splat,
    store,
)

TILE = 8
"""Rows and columns of a tile that is transposed in registers."""

ACCUMULATORS_IN_FLIGHT = 8
"""A multiply-add takes four cycles and two begin in each, on the CPUs of the last ten years."""


def row_products(vectors: int, width: int = WIDTH) -> Callable[..., Any]:
    """An intrinsic: products of sparse rows with a panel of `vectors`·`width` columns.

    Args:
        vectors: Accumulators, each one register of columns.
        width: Floats in a register.

    Returns:
        f(values, places, starts, order, begin, panel, out, first, last, stride, go_on, low, high).
        All are addresses and int64 but the last two. For n in first … last - 1, row r = `order[n]`
        has the non-zeros `values[starts[n]] …` in the panel's rows at `places` · 4·`width` bytes;
        it begins with `begin[r]`, or goes on from `out` where `go_on`; the result, at least `low`
        and at most `high`, is stored at `out + r·stride` bytes.
    """

    @intrinsic
    def products(
        typingcontext,
        values,
        places,
        starts,
        order,
        begin,
        panel,
        out,
        first,
        last,
        stride,
        go_on,
        low,
        high,
    ):
        signature = types.void(*[types.int64] * 11, types.float32, types.float32)

        def generate(context, builder, signature, arguments):
            emit_rows(builder, vectors, width, arguments)
            return context.get_dummy_value()

        return signature, generate

    return products


def emit_rows(builder: ir.IRBuilder, vectors: int, width: int, arguments: Any) -> None:
    """Emit the loop over rows of `row_products`."""
    values, places, starts, order, begin, panel, out, first, last, stride, go_on, *bounds = (
        arguments
    )
    vector = ir.VectorType(FLOAT, width)
    four = ir.Constant(LONG, 4)
    low, high = (splat(builder, bound, width) for bound in bounds)
    goes_on = builder.icmp_signed("!=", go_on, ir.Constant(LONG, 0))
    with cgutils.for_range_slice(builder, first, last, ir.Constant(LONG, 1), LONG) as (number, _):
        place = builder.mul(number, four)
        row = builder.sext(load(builder, order, WORD, place), LONG)
        start = builder.sext(load(builder, starts, WORD, place), LONG)
        end = builder.sext(load(builder, starts, WORD, place, four), LONG)
        target = builder.add(out, builder.mul(row, stride))
        slots = [cgutils.alloca_once(builder, vector) for _ in range(vectors)]
        with builder.if_else(goes_on) as (then, otherwise):
            with then:
                for u, slot in enumerate(slots):
                    builder.store(load(builder, target, vector, bytes_of(u, width)), slot)
            with otherwise:
                value = splat(builder, load(builder, begin, FLOAT, builder.mul(row, four)), width)
                for slot in slots:
                    builder.store(value, slot)
        sums = [builder.load(slot) for slot in slots]
        sums = emit_row(builder, width, sums, (values, places, panel), start, end)
        for u, total in enumerate(sums):
            # A NaN is neither below nor above a bound, so that it stays.
            below = builder.fcmp_ordered("<", total, low)
            total = builder.select(below, low, total)
            above = builder.fcmp_ordered(">", total, high)
            store(builder, builder.select(above, high, total), target, bytes_of(u, width))


def emit_row(
    builder: ir.IRBuilder, width: int, sums: list[Any], arrays: Any, start: Any, end: Any
) -> list[Any]:
    """Emit one row: chains of its non-zeros side by side, then what is left, then their sums."""
    chains = max(1, ACCUMULATORS_IN_FLIGHT // len(sums))
    zero = ir.Constant(sums[0].type, [0.0] * width)
    if chains == 1:
        return _loop(builder, width, [sums], arrays, start, end)[1][0]
    sets = [sums] + [[zero] * len(sums) for _ in range(chains - 1)]
    length = builder.sub(end, start)
    whole = builder.and_(length, ir.Constant(LONG, -chains))
    reached, sets = _loop(builder, width, sets, arrays, start, builder.add(start, whole))
    while len(sets) > 1:
        half = len(sets) // 2
        sets = [
            [builder.fadd(a, b) for a, b in zip(sets[i], sets[i + half], strict=True)]
            for i in range(half)
        ]
    return _loop(builder, width, sets, arrays, reached, end)[1][0]


def _loop(
    builder: ir.IRBuilder, width: int, sets: list[list[Any]], arrays: Any, start: Any, end: Any
) -> tuple[Any, list[list[Any]]]:
    """Emit a loop from start to end, in which each step takes one non-zero per set of sums."""
    values, places, panel = arrays
    size = len(sets[0])

    def step(index: Any, totals: list[Any]) -> list[Any]:
        results = []
        for n in range(len(sets)):
            here = builder.add(index, ir.Constant(LONG, n))
            weight = load(builder, values, FLOAT, builder.shl(here, ir.Constant(LONG, 2)))
            place = load(builder, places, HALF, builder.shl(here, ir.Constant(LONG, 1)))
            source = builder.mul(builder.zext(place, LONG), ir.Constant(LONG, 4 * width))
            factor = splat(builder, weight, width)
            for u, total in enumerate(totals[n * size : (n + 1) * size]):
                inputs = load(builder, panel, total.type, source, bytes_of(u, width))
                results.append(multiply_add(builder, factor, inputs, total))
        return results

    flat = [value for each in sets for value in each]
    index, totals = looped(builder, flat, (start, end), step, by=len(sets))
    return index, [totals[n : n + size] for n in range(0, len(totals), size)]


@intrinsic
def transpose_tile(typingcontext, source, source_stride, target, target_stride):
    """Copy a tile of 8 × 8 floats transposed; rows are `stride` bytes apart."""
    signature = types.void(*[types.int64] * 4)

    def generate(context, builder, signature, arguments):
        source, source_stride, target, target_stride = arguments
        vector = ir.VectorType(FLOAT, TILE)
        rows = []
        for n in range(TILE):
            step = builder.mul(source_stride, ir.Constant(LONG, n))
            rows.append(load(builder, source, vector, step))
        for n, row in enumerate(transposed(builder, rows)):
            store(builder, row, target, builder.mul(target_stride, ir.Constant(LONG, n)))
        return context.get_dummy_value()

    return signature, generate


def transposed(builder: ir.IRBuilder, rows: list[Any]) -> list[Any]:
    """The transpose of 8 vectors of 8: pairs, pairs of pairs, then halves are interleaved."""

    def shuffle(a: Any, b: Any, order: list[int]) -> Any:
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(WORD, TILE), order))

    low, high = [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]
    pairs = [shuffle(rows[n], rows[n + 1], order) for n in (0, 2, 4, 6) for order in (low, high)]
    low, high = [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]
    fours = [
        shuffle(pairs[n + part], pairs[n + part + 2], order)
        for n in (0, 4)
        for part in (0, 1)
        for order in (low, high)
    ]
    low, high = [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]
    return [shuffle(fours[n], fours[n + 4], order) for order in (low, high) for n in range(4)]


@intrinsic
def next_number(typingcontext, address):
    """The number at an address, which is one more for whoever asks next, in whatever thread."""
    signature = types.int64(types.int64)

    def generate(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[0], LONG.as_pointer())
        return builder.atomic_rmw("add", place, ir.Constant(LONG, 1), "monotonic")

    return signature, generate
