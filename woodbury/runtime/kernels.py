"""The compiled kernels: a sparse matrix times the columns of an input, panel by panel.

All arrays are addresses, so that a call costs microseconds; `products` passes them.
A panel holds some columns of the input, one row of it after another, as many as fit the registers.
"""

from __future__ import annotations

# Numba's decorators and LLVM's builders say nothing of types, and need not be installed.
# pyright: reportCallIssue=false, reportPrivateImportUsage=false, reportMissingImports=false
import numba
import numpy as np
from numba import carray, int64, void

from woodbury.kernels.compiling import OPTIONS, callback, compiled
from woodbury.kernels.vectors import WIDTH, as_longs
from woodbury.runtime.codegen import next_number, row_products
from woodbury.runtime.layouts import ROWS_AT_ONCE
from woodbury.runtime.panels import gelu, pack_planes, transpose, unpack_planes

VECTORS = (1, 2, 3, 4, 6, 7, 8)
"""Registers of columns that there are kernels for."""
RELU, RELU6, GELU = 1, 2, 3
"""The numbers of the activations."""

_rows_1, _rows_2, _rows_3, _rows_4, _rows_6, _rows_7, _rows_8 = map(row_products, VECTORS)


@numba.njit(**OPTIONS)
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


@numba.njit(**OPTIONS)
def _vectors_for(columns):
    """The fewest registers with a kernel that hold some columns."""
    needed = (columns + WIDTH - 1) // WIDTH
    for vectors in VECTORS:
        if vectors >= needed:
            return vectors
    return VECTORS[-1]


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
                        transpose(
                            source + 4 * (begin_column * inner + low_row),
                            4 * inner,
                            count,
                            high_row - low_row,
                            panel,
                            stride,
                        )
                    else:
                        place = source + 4 * (image * source_image + begin_column)
                        pack_planes(place, sources, low_row, high_row, count, panel, stride)
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
                gelu(result, rows * most)
            if sources == 0:
                place = target + 4 * (begin_column * outer + top)
                transpose(result, stride, rows, count, place, 4 * outer)
            else:
                place = target + 4 * (image * target_image + top * (target_image // outer))
                unpack_planes(
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


JOB = 4
"""Numbers of a job before the arguments of `multiply`."""
ARGUMENTS = 24
SOURCE, TARGET, SCRATCH = JOB, JOB + 1, JOB + 8
"""Where a job has the addresses of a call's own."""


@callback(void(int64))
def take_parts(job):
    """Do parts of a product until none is left: what each thread of a team calls.

    Args:
        job: Of the next part, and of the next thread; how many parts there are; the bytes of
            scratch of a thread; the arguments of `multiply`, whose scratch is of all threads;
            and first_unit, last_unit, first_row, last_row of each part. All are 64-bit.
    """
    parts = carray(as_longs(job), JOB)[2]
    numbers = carray(as_longs(job), JOB + ARGUMENTS + 4 * parts)
    a = numbers[JOB : JOB + ARGUMENTS]
    scratch = a[8] + next_number(job + 8) * numbers[3]
    part = next_number(job)
    while part < parts:
        r = numbers[JOB + ARGUMENTS + 4 * part :]
        multiply(
            a[0],
            a[1],
            a[2],
            a[3],
            a[4],
            a[5],
            a[6],
            a[7],
            scratch,
            a[9],
            a[10],
            a[11],
            a[12],
            a[13],
            a[14],
            a[15],
            a[16],
            a[17],
            a[18],
            r[0],
            r[1],
            r[2],
            r[3],
            a[23],
        )
        part = next_number(job)


take_parts_here = take_parts.ctypes
"""The same for the calling thread alone, without Python's lock."""
