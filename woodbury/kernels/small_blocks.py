"""Many small symmetric blocks: inverse diagonals, products, and solves on the kept weights."""

from __future__ import annotations

# Numba's decorators say nothing of types, and Numba need not be installed.
# pyright: reportCallIssue=false, reportPrivateImportUsage=false, reportMissingImports=false
import numba
import torch
from numba import carray, float64, int64
from torch import Tensor

from woodbury.kernels.compiling import OPTIONS, compiled
from woodbury.kernels.lanes import (
    ELEMENT,
    LANES,
    TILE,
    factor_below,
    factor_diagonal,
    inverse_rows,
    multiply_rows,
    solve_backward,
    solve_forward,
)
from woodbury.kernels.vectors import as_bytes, as_doubles, as_floats


@numba.njit(**OPTIONS)
def _place_of(row):
    """The elements before a row, in tiles of rows."""
    tile = row // TILE
    return (tile * (tile + 1) // 2 * TILE + (row - tile * TILE) * (tile + 1)) * TILE


@numba.njit(**OPTIONS)
def _load_blocks(triangles, size, first, blocks, rows, scratch):
    """Packed triangles from block number `first` on, one in each lane, ones on the padding."""
    matrix = carray(as_doubles(scratch), _place_of(rows) * LANES)
    elements = size * (size + 1) // 2
    for lane in range(LANES):
        block = min(first + lane, blocks - 1)
        source = carray(as_floats(triangles + 4 * block * elements), elements)
        element = 0
        for row in range(size):
            begin = _place_of(row) * LANES + lane
            for column in range(row + 1):
                matrix[begin + column * LANES] = source[element]
                element += 1
        for row in range(size, rows):
            begin = _place_of(row) * LANES + lane
            for column in range(row):
                matrix[begin + column * LANES] = 0
            matrix[begin + row * LANES] = 1


@numba.njit(**OPTIONS)
def _factor(rows, scratch, least):
    """The factors of the matrices, in place."""
    for column in range(0, rows, TILE):
        stride = (column + TILE) * ELEMENT
        upper = scratch + _place_of(column) * ELEMENT
        factor_diagonal((upper, stride, column, least))
        for row in range(column + TILE, rows, TILE):
            begin = scratch + _place_of(row) * ELEMENT
            factor_below((begin, (row + TILE) * ELEMENT, upper, stride, column))


@compiled(int64(int64, int64, int64, float64, float64, int64, int64))
def _inverse_diagonals(triangles, size, blocks, damping, share, out, scratch):
    """The diagonals of the inverses of damped blocks, and how many are not resolved."""
    rows = (size + TILE - 1) // TILE * TILE
    length = _place_of(rows)
    least = scratch + length * ELEMENT
    sums = least + 2 * ELEMENT
    panel = sums + TILE * ELEMENT
    matrix = carray(as_doubles(scratch), length * LANES)
    limits = carray(as_doubles(least), 2 * LANES)
    squares = carray(as_doubles(sums), TILE * LANES)
    results = carray(as_doubles(out), blocks * size)
    unresolved = 0
    for first in range(0, blocks, LANES):
        _load_blocks(triangles, size, first, blocks, rows, scratch)
        for row in range(size):
            diagonal = (_place_of(row) + row) * LANES
            for lane in range(LANES):
                matrix[diagonal + lane] += damping
        for lane in range(LANES):
            limits[lane] = share
            limits[LANES + lane] = 0
        _factor(rows, scratch, least)
        used = min(LANES, blocks - first)
        for lane in range(used):
            unresolved += int(limits[LANES + lane])
        for column in range(0, rows, TILE):
            for place in range(TILE * LANES):
                squares[place] = 0
            for row in range(column, rows, TILE):
                begin = scratch + _place_of(row) * ELEMENT
                stride = (row + TILE) * ELEMENT
                inverse_rows((begin, stride, column, row - column, panel, sums))
            for number in range(min(TILE, size - column)):
                for lane in range(used):
                    value = squares[number * LANES + lane]
                    results[(first + lane) * size + column + number] = value
    return unresolved


@numba.njit(**OPTIONS)
def _load_vectors(source, size, first, blocks, rows, target):
    """Vectors from block number `first` on, one in each lane, zeros on the padding."""
    given = carray(as_doubles(source), blocks * size)
    values = carray(as_doubles(target), rows * LANES)
    for lane in range(LANES):
        block = min(first + lane, blocks - 1)
        for row in range(size):
            values[row * LANES + lane] = given[block * size + row]
        for row in range(size, rows):
            values[row * LANES + lane] = 0


@numba.njit(**OPTIONS)
def _product(rows, scratch, vector, result):
    """The products of the matrices with vectors, which are put at `result`."""
    products = carray(as_doubles(result), rows * LANES)
    for place in range(rows * LANES):
        products[place] = 0
    for row in range(0, rows, TILE):
        begin = scratch + _place_of(row) * ELEMENT
        multiply_rows((begin, (row + TILE) * ELEMENT, row, vector, result))


@compiled(numba.void(*[int64] * 6))
def _products(triangles, size, blocks, vectors, out, scratch):
    """The products of blocks with one vector each."""
    rows = (size + TILE - 1) // TILE * TILE
    vector = scratch + _place_of(rows) * ELEMENT
    result = vector + rows * ELEMENT
    products = carray(as_doubles(result), rows * LANES)
    results = carray(as_doubles(out), blocks * size)
    for first in range(0, blocks, LANES):
        _load_blocks(triangles, size, first, blocks, rows, scratch)
        _load_vectors(vectors, size, first, blocks, rows, vector)
        _product(rows, scratch, vector, result)
        for lane in range(min(LANES, blocks - first)):
            for row in range(size):
                results[(first + lane) * size + row] = products[row * LANES + lane]


@compiled(int64(int64, int64, int64, float64, float64, int64, int64, int64, int64, int64))
def _compensated(triangles, size, blocks, damping, share, keep, removed, slopes, out, scratch):
    """Solves of the kept weights of each block, and how many blocks are not resolved.

    In place of removed weights there are rows and columns of the identity.
    """
    rows = (size + TILE - 1) // TILE * TILE
    length = _place_of(rows)
    least = scratch + length * ELEMENT
    vector = least + 2 * ELEMENT
    force = vector + rows * ELEMENT
    mask = force + rows * ELEMENT
    matrix = carray(as_doubles(scratch), length * LANES)
    limits = carray(as_doubles(least), 2 * LANES)
    forces = carray(as_doubles(force), rows * LANES)
    masks = carray(as_doubles(mask), rows * LANES)
    slope = carray(as_doubles(vector), rows * LANES)
    kept = carray(as_bytes(keep), blocks * size)
    results = carray(as_doubles(out), blocks * size)
    unresolved = 0
    for first in range(0, blocks, LANES):
        used = min(LANES, blocks - first)
        _load_blocks(triangles, size, first, blocks, rows, scratch)
        _load_vectors(removed, size, first, blocks, rows, vector)
        _product(rows, scratch, vector, force)
        if slopes != 0:
            _load_vectors(slopes, size, first, blocks, rows, vector)
            for place in range(rows * LANES):
                forces[place] -= slope[place]
        for lane in range(LANES):
            block = min(first + lane, blocks - 1)
            for row in range(rows):
                here = row < size and kept[block * size + row] != 0
                masks[row * LANES + lane] = 1.0 if here else 0.0
        for place in range(rows * LANES):
            forces[place] *= masks[place]
        for row in range(rows):
            begin = _place_of(row) * LANES
            for column in range(row):
                for lane in range(LANES):
                    both = masks[row * LANES + lane] * masks[column * LANES + lane]
                    matrix[begin + column * LANES + lane] *= both
            diagonal = begin + row * LANES
            for lane in range(LANES):
                here = masks[row * LANES + lane]
                damped = (matrix[diagonal + lane] + damping) * here
                matrix[diagonal + lane] = damped + (1 - here)
        for lane in range(LANES):
            limits[lane] = share
            limits[LANES + lane] = 0
        _factor(rows, scratch, least)
        for lane in range(used):
            unresolved += int(limits[LANES + lane])
        for row in range(0, rows, TILE):
            begin = scratch + _place_of(row) * ELEMENT
            solve_forward((begin, (row + TILE) * ELEMENT, row, force))
        for row in range(rows - TILE, -1, -TILE):
            begin = scratch + _place_of(row) * ELEMENT
            solve_backward((begin, (row + TILE) * ELEMENT, row, force))
        for lane in range(used):
            for row in range(size):
                results[(first + lane) * size + row] = forces[row * LANES + lane]
    return unresolved


def _scratch(size: int) -> Tensor:
    """Room for one matrix and a few vectors in each lane."""
    rows = -(-size // TILE) * TILE
    tiles = rows // TILE
    elements = TILE * TILE * tiles * (tiles + 1) // 2 + (TILE + 4) * rows + 2 + 2 * TILE
    return torch.empty(elements * LANES, dtype=torch.float64)


def inverse_diagonals(triangles: Tensor, size: int, damping: float, share: float) -> Tensor | None:
    """The diagonals of (block + damping·I)⁻¹, in float64.

    Args:
        triangles: (b, s(s+1)/2) float32, contiguous: the lower triangles row by row.
        size: s.
        damping: λ.
        share: What share of its diagonal element each pivot has at least, else it is unresolved.

    Returns:
        (b, s) float64; None if a pivot is not resolved.

    Example:
        >>> import pytest; _ = pytest.importorskip("numba")
        >>> inverse_diagonals(torch.tensor([[1.0, 0.0, 3.0]]), 2, 1.0, 1e-14)
        tensor([[0.5000, 0.2500]], dtype=torch.float64)
    """
    blocks = len(triangles)
    result = torch.empty(blocks, size, dtype=torch.float64)
    scratch = _scratch(size)
    unresolved = _inverse_diagonals(
        triangles.data_ptr(),
        size,
        blocks,
        damping,
        share,
        result.data_ptr(),
        scratch.data_ptr(),
    )
    return None if unresolved else result


def products(triangles: Tensor, size: int, vectors: Tensor) -> Tensor:
    """The products of blocks with one vector each, in float64.

    Args:
        triangles: As for `inverse_diagonals`.
        size: s.
        vectors: (b, s).

    Returns:
        (b, s) float64.

    Example:
        >>> import pytest; _ = pytest.importorskip("numba")
        >>> products(torch.tensor([[1.0, 2.0, 3.0]]), 2, torch.tensor([[1.0, 1.0]]))
        tensor([[3., 5.]], dtype=torch.float64)
    """
    blocks = len(triangles)
    vectors = vectors.double().contiguous()
    result = torch.empty(blocks, size, dtype=torch.float64)
    scratch = _scratch(size)
    _products(
        triangles.data_ptr(),
        size,
        blocks,
        vectors.data_ptr(),
        result.data_ptr(),
        scratch.data_ptr(),
    )
    return result


def compensated(
    triangles: Tensor,
    size: int,
    damping: float,
    share: float,
    keep: Tensor,
    removed: Tensor,
    slopes: Tensor | None = None,
) -> Tensor | None:
    """F_KK⁻¹ (F_KQ w_Q − g_K) of each block F = block + damping·I, in float64.

    Args:
        triangles: As for `inverse_diagonals`.
        size: s.
        damping: λ.
        share: As for `inverse_diagonals`.
        keep: (b, s) bool, True = kept (K).
        removed: (b, s), w, zero where a weight is kept.
        slopes: (b, s), g; None for zero.

    Returns:
        (b, s) float64, zero where a weight is removed; None if a pivot is not resolved.

    Example:
        >>> import pytest; _ = pytest.importorskip("numba")
        >>> keep = torch.tensor([[True, False]])
        >>> removed = torch.tensor([[0.0, 4.0]])
        >>> compensated(torch.ones(1, 3), 2, 1.0, 1e-14, keep, removed).round(decimals=9)
        tensor([[2., 0.]], dtype=torch.float64)
    """
    blocks = len(triangles)
    keep, removed = keep.contiguous(), removed.double().contiguous()
    given = None if slopes is None else slopes.double().contiguous()
    result = torch.empty(blocks, size, dtype=torch.float64)
    scratch = _scratch(size)
    unresolved = _compensated(
        triangles.data_ptr(),
        size,
        blocks,
        damping,
        share,
        keep.data_ptr(),
        removed.data_ptr(),
        0 if given is None else given.data_ptr(),
        result.data_ptr(),
        scratch.data_ptr(),
    )
    return None if unresolved else result
