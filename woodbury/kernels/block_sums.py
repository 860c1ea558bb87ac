"""Sums of blocks: Σ g gᵀ of a few weights at a time, added to packed lower triangles."""

from __future__ import annotations

# Numba's decorators and LLVM's builders say nothing of types, and need not be installed.
# pyright: reportCallIssue=false, reportPrivateImportUsage=false, reportMissingImports=false
from collections.abc import Sequence
from typing import Any

import numba
import torch
from llvmlite import ir
from numba import carray, int64, types, void
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from woodbury.kernels.compiling import OPTIONS, compiled
from woodbury.kernels.tiles import MANY_REGISTERS, accumulated
from woodbury.kernels.vectors import (
    FLOAT,
    LONG,
    WIDTH,
    WORD,
    ZERO,
    as_floats,
    as_longs,
    bytes_of,
    emitted,
    load,
    multiply_add,
    pointer_to,
    splat,
    store,
)

ROWS = 4
"""Rows of a block in a tile; a divisor of every register's floats."""

VECTORS = 4 if MANY_REGISTERS else 2
"""Registers of columns in a tile, at most."""


def emit_products(
    builder: ir.IRBuilder, rows: int, vectors: int, width: int, arguments: Sequence[Any]
) -> None:
    """Emit some rows and columns of Σ g gᵀ, added to a packed lower triangle.

    Args:
        builder: Where.
        rows: Rows of the tile.
        vectors: Registers of columns.
        width: Floats in a register.
        arguments: left, right, stride, count, target, row, inside, ahead: `count` vectors g,
            `stride` bytes apart, have what the rows are multiplied by at `left` and the columns at
            `right`; row number `row` of the triangle has these columns at `target`, and `inside` of
            the last register's lie in the triangle; in each further row one more. The same tile of
            the next triangle, `ahead` bytes further on, is fetched to the cache.
    """
    left, right, stride, count, target, row, inside, ahead = arguments
    vector = ir.VectorType(FLOAT, width)
    # Row r is r rows of the triangle further on, each one longer than that before it.
    lengths = [builder.mul(row, bytes_of(r, 1)) for r in range(rows)]
    begins = [
        builder.add(target, builder.add(length, ir.Constant(LONG, 2 * r * (r + 1))))
        for r, length in enumerate(lengths)
    ]
    for begin in begins:
        for v in range(vectors):
            _prefetch(builder, builder.add(builder.add(begin, ahead), bytes_of(v, width)))

    def step(index: Any, totals: list[Any]) -> list[Any]:
        there = builder.mul(index, stride)
        factors = [load(builder, right, vector, there, bytes_of(v, width)) for v in range(vectors)]
        results = []
        for r in range(rows):
            value = splat(builder, load(builder, left, FLOAT, there, bytes_of(r, 1)), width)
            for v, factor in enumerate(factors):
                results.append(multiply_add(builder, value, factor, totals[r * vectors + v]))
        return results

    totals = accumulated(builder, vector, rows * vectors, count, step)
    numbers = ir.Constant(ir.VectorType(LONG, width), list(range(width)))
    stores = []
    for r, begin in enumerate(begins):
        sums = totals[r * vectors : (r + 1) * vectors]
        for v, total in enumerate(sums[:-1]):
            old = load(builder, begin, vector, bytes_of(v, width))
            stores.append((builder.fadd(old, total), begin, bytes_of(v, width), None))
        last = builder.add(inside, ir.Constant(LONG, r))
        mask = builder.icmp_signed("<", numbers, _longs(builder, last, width))
        place = pointer_to(builder, begin, vector, bytes_of(vectors - 1, width))
        old = _load_masked(builder, place, mask)
        stores.append((builder.fadd(old, sums[-1]), place, None, mask))
    # All are read before one is written: a row would wait for what ends in the same line.
    for value, place, offset, mask in stores:
        if mask is None:
            store(builder, value, place, offset)
        else:
            _store_masked(builder, value, place, mask)


@intrinsic
def scaled_copy(typingcontext, source, target, count, factor):
    """Copy `count` floats times a factor; the target has room for a whole number of vectors."""
    signature = types.void(types.int64, types.int64, types.int64, types.float32)

    def generate(context, builder, signature, arguments):
        source, target, count, factor = arguments
        vector = ir.VectorType(FLOAT, WIDTH)
        factors = splat(builder, factor, WIDTH)
        whole = builder.and_(count, ir.Constant(LONG, -WIDTH))
        step = ir.Constant(LONG, WIDTH)
        with cgutils.for_range_slice(builder, ZERO, whole, step, LONG) as (n, _):
            place = builder.shl(n, ir.Constant(LONG, 2))
            value = load(builder, source, vector, place)
            store(builder, builder.fmul(value, factors), target, place)
        numbers = ir.Constant(ir.VectorType(LONG, WIDTH), list(range(WIDTH)))
        left = builder.sub(count, whole)
        with builder.if_then(builder.icmp_signed(">", left, ZERO)):
            mask = builder.icmp_signed("<", numbers, _longs(builder, left, WIDTH))
            place = builder.shl(whole, ir.Constant(LONG, 2))
            value = _load_masked(builder, pointer_to(builder, source, vector, place), mask)
            store(builder, builder.fmul(value, factors), target, place)
        return context.get_dummy_value()

    return signature, generate


def _prefetch(builder: ir.IRBuilder, address: Any) -> None:
    """Fetch a line to the cache; an address that is none does no harm."""
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, WORD, WORD, WORD])
    fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    read, often, data = (ir.Constant(WORD, hint) for hint in (0, 3, 1))
    builder.call(fetch, [builder.inttoptr(address, byte), read, often, data])


def _longs(builder: ir.IRBuilder, value: Any, width: int) -> Any:
    """A vector whose elements are all one whole number."""
    vector = ir.VectorType(LONG, width)
    lane = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(WORD, 0))
    zeros = ir.Constant(ir.VectorType(WORD, width), [0] * width)
    return builder.shuffle_vector(lane, ir.Constant(vector, ir.Undefined), zeros)


def _load_masked(builder: ir.IRBuilder, place: Any, mask: Any) -> Any:
    """Some elements of a vector in memory, and zeros; the others are not read."""
    vector = place.type.pointee
    kind = ir.FunctionType(vector, [place.type, WORD, mask.type, vector])
    name = f"llvm.masked.load.v{vector.count}f32.p0v{vector.count}f32"
    read = cgutils.get_or_insert_function(builder.module, kind, name)
    zeros = ir.Constant(vector, [0.0] * vector.count)
    return builder.call(read, [place, ir.Constant(WORD, 4), mask, zeros])


def _store_masked(builder: ir.IRBuilder, value: Any, place: Any, mask: Any) -> None:
    """Store some elements of a vector; the others in memory are not written."""
    vector = value.type
    kind = ir.FunctionType(ir.VoidType(), [vector, place.type, WORD, mask.type])
    name = f"llvm.masked.store.v{vector.count}f32.p0v{vector.count}f32"
    write = cgutils.get_or_insert_function(builder.module, kind, name)
    builder.call(write, [value, place, ir.Constant(WORD, 4), mask])


def _tile(rows: int, vectors: int) -> Any:
    """The intrinsic of a tile."""
    return emitted(8)(
        lambda builder, *arguments: emit_products(builder, rows, vectors, WIDTH, arguments)
    )


_row_1, _row_2, _row_3, _row_4 = (_tile(1, min(v, VECTORS)) for v in (1, 2, 3, 4))
_rows_1, _rows_2, _rows_3, _rows_4 = (_tile(ROWS, min(v, VECTORS)) for v in (1, 2, 3, 4))


@numba.njit(**OPTIONS)
def _multiply(rows, vectors, arguments):
    """Call the tile for some rows, 1 or `ROWS`, and vectors, at most `VECTORS`."""
    if rows == 1:
        if vectors == 1:
            _row_1(arguments)
        elif vectors == 2:
            _row_2(arguments)
        elif vectors == 3:
            _row_3(arguments)
        else:
            _row_4(arguments)
    elif vectors == 1:
        _rows_1(arguments)
    elif vectors == 2:
        _rows_2(arguments)
    elif vectors == 3:
        _rows_3(arguments)
    else:
        _rows_4(arguments)


@compiled(void(*[int64] * 9))
def _add_products(addresses, scales, count, first, length, blocks, target, places, buffer):
    """Add Σ g gᵀ to blocks that follow each other; `places` are those of a packed triangle."""
    begins = carray(as_longs(addresses), count)
    factors = carray(as_floats(scales), count)
    width = (length + WIDTH - 1) // WIDTH * WIDTH
    stride = 4 * width
    for block in range(blocks):
        for number in range(count):
            source = begins[number] + 4 * (first + block * length)
            scaled_copy(source, buffer + number * stride, length, factors[number])
        triangle = target + 4 * block * places
        row = 0
        while row < length:
            rows = ROWS if row + ROWS <= length else 1
            vectors = row // WIDTH + 1
            for begin in range(0, vectors, VECTORS):
                some = min(VECTORS, vectors - begin)
                column = begin * WIDTH
                left, right = buffer + 4 * row, buffer + 4 * column
                there = triangle + 2 * row * (row + 1) + 4 * column
                inside = row + 1 - column - (some - 1) * WIDTH
                arguments = (left, right, stride, count, there, row, inside, 4 * places)
                _multiply(rows, some, arguments)
            row += rows


def add_products(
    rows: Sequence[Tensor], first: int, length: int, triangles: Tensor, scale: Tensor | None = None
) -> None:
    """Add Σ g gᵀ of some rows' columns to blocks that follow each other, in place.

    Each sum is read and written once, whatever the number of rows.

    Args:
        rows: Chunks (c, d) float32, the elements of a row side by side.
        first: The first column of the first block.
        length: Columns of each block.
        triangles: (b, p) float32, contiguous: the lower triangles row by row, of which rows beyond
            `length` are left alone.
        scale: (m,) float32, what all the rows are multiplied by; None for 1.

    Example:
        >>> import pytest; _ = pytest.importorskip("numba")
        >>> triangles = torch.zeros(1, 3)
        >>> add_products([torch.tensor([[1.0, 2.0]])], 0, 2, triangles)
        >>> triangles
        tensor([[1., 2., 4.]])
    """
    begins = [
        chunk.data_ptr() + 4 * number * chunk.stride(0)
        for chunk in rows
        for number in range(len(chunk))
    ]
    count = len(begins)
    addresses = torch.tensor(begins)
    scales = torch.ones(count) if scale is None else scale.contiguous()
    buffer = torch.empty(count * (length + WIDTH))
    _add_products(
        addresses.data_ptr(),
        scales.data_ptr(),
        count,
        first,
        length,
        len(triangles),
        triangles.data_ptr(),
        triangles.shape[1],
        buffer.data_ptr(),
    )
