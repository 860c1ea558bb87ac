"""The table of operators: a new operator is one line here, and inherits every contract test."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from support import dense
from support.random import normal
from woodbury.fisher.base import Fisher
from woodbury.fisher.block_diagonal import BlockDiagonal
from woodbury.fisher.blocks_of_rows import dense_blocks
from woodbury.fisher.dense import Dense
from woodbury.fisher.diagonal import Diagonal
from woodbury.fisher.kronecker.by_rows import KroneckerRows
from woodbury.fisher.kronecker.operator import Kronecker
from woodbury.fisher.lowrank import LowRank
from woodbury.fisher.window import Window
from woodbury.limits import Limits
from woodbury.linalg.paged_rows import PagedRows
from woodbury.memory import stored_rows

DAMPING = 0.03
"""That of all operators in the table."""


class Pair(NamedTuple):
    """An operator and its matrix written out in float64."""

    fisher: Fisher
    matrix: Tensor


class Case(NamedTuple):
    """A line of the table."""

    name: str
    build: Callable[[], Pair]


def _rows(m: int, d: int, seed: int = 0) -> Tensor:
    """Rows whose columns range over two orders of magnitude, as gradients' do."""
    return normal(m, d, seed=seed) * torch.logspace(0, -2, d, dtype=torch.float64)


def _weights(m: int) -> Tensor:
    return torch.rand(m, generator=torch.Generator().manual_seed(9), dtype=torch.float64) + 0.1


def _psd(d: int, seed: int) -> Tensor:
    rows = _rows(d + 3, d, seed)
    return rows.mT @ rows / len(rows)


def _damped(curvature: Tensor) -> Tensor:
    return curvature + DAMPING * torch.eye(len(curvature), dtype=torch.float64)


def _restricted(pair: Pair, every: int, keeps: bool) -> Pair:
    """The operator and the matrix of one weight in `every`, or of all others."""
    keep = (torch.arange(len(pair.matrix)) % every == 0) == keeps
    return Pair(pair.fisher.restrict(keep), pair.matrix[keep][:, keep])


def _diagonal() -> Pair:
    curvature = _rows(1, 12)[0].square()
    return Pair(Diagonal(curvature, DAMPING), _damped(torch.diag(curvature)))


def _dense() -> Pair:
    return Pair(Dense(_psd(11, 1), DAMPING), _damped(_psd(11, 1)))


def _stack() -> Pair:
    blocks = torch.stack([_psd(4, seed) for seed in range(3)])
    return Pair(Dense(blocks, DAMPING), _damped(torch.block_diag(*blocks)))


def _low_rank(m: int, d: int, weighted: bool = False) -> Pair:
    rows = _rows(m, d)
    weights = _weights(m) if weighted else None
    return Pair(LowRank(rows, DAMPING, weights), dense.low_rank(rows, DAMPING, weights))


def _spectral() -> Pair:
    rows, weights = _rows(6, 20), _weights(6)
    fisher = LowRank(rows, DAMPING, weights).spectral()
    return Pair(fisher, dense.low_rank(rows, DAMPING, weights))


def _downdated() -> Pair:
    pair = _low_rank(6, 20)
    pair.fisher.logdet()  # the Gram matrix is known, so that restrict subtracts from it
    return _restricted(pair, 5, keeps=False)


def _on_disk() -> Pair:
    """Rows in pages of eight columns, two of which are chunks."""
    rows, weights = _rows(9, 43), _weights(9)
    with Limits(page=9 * 8 * 8, row_columns=4):
        stored = stored_rows(rows.split(4), (9, 43), torch.float64, memory=1)
    assert isinstance(stored, PagedRows)
    return Pair(LowRank(stored, DAMPING, weights), dense.low_rank(rows, DAMPING, weights))


def _primal(weighted: bool = False) -> Pair:
    sizes, rows = (5, 5, 3, 1, 5), _rows(7, 19)
    weights = _weights(7) if weighted else None
    fisher = dense_blocks(rows, sizes, DAMPING, weights)
    assert isinstance(fisher, Dense)
    return Pair(fisher, dense.blocks_only(dense.low_rank(rows, DAMPING, weights), sizes))


def _dual() -> Pair:
    sizes, rows = (140, 140, 9), _rows(3, 289)
    fisher = dense_blocks(rows, sizes, DAMPING, _weights(3))
    assert isinstance(fisher, BlockDiagonal)
    return Pair(fisher, dense.blocks_only(dense.low_rank(rows, DAMPING, _weights(3)), sizes))


def _kronecker() -> Pair:
    left, right = _psd(3, 4), _psd(5, 5)
    return Pair(Kronecker(left, right, DAMPING), _damped(torch.kron(left, right)))


def _by_rows() -> Pair:
    scales, inputs = _rows(1, 4, 6)[0].square() + 0.1, _psd(5, 7)
    matrix = torch.kron(torch.diag(scales), inputs)
    return Pair(KroneckerRows(scales, inputs, DAMPING), _damped(matrix))


def _by_rows_in_blocks() -> Pair:
    """Three rows of seven columns, in two blocks of four of which the last is padded."""
    scales, blocks = _rows(1, 3, 6)[0].square() + 0.1, torch.stack([_psd(4, 7), _psd(4, 8)])
    inputs = torch.block_diag(blocks[0], blocks[1][:3, :3])
    fisher = KroneckerRows(scales, blocks, DAMPING, columns=7)
    return Pair(fisher, _damped(torch.kron(torch.diag(scales), inputs)))


def _by_rows_in_groups() -> Pair:
    """Two groups of two rows, each of five columns in two blocks."""
    scales = _rows(1, 4, 6)[0].square() + 0.1
    blocks = torch.stack([_psd(3, seed) for seed in range(4)])
    fisher = KroneckerRows(scales, blocks, DAMPING, columns=5, groups=2)
    inputs = [torch.block_diag(blocks[2 * g], blocks[2 * g + 1][:2, :2]) for g in range(2)]
    rows = [scale * inputs[row // 2] for row, scale in enumerate(scales)]
    return Pair(fisher, _damped(torch.block_diag(*rows)))


def _by_rows_transposed() -> Pair:
    scales, inputs = _rows(1, 4, 6)[0].square() + 0.1, _psd(5, 7)
    fisher = KroneckerRows(scales, inputs, DAMPING, transposed=True)
    return Pair(fisher, _damped(torch.kron(inputs, torch.diag(scales))))


def _mixed() -> Pair:
    pairs = [_diagonal(), _low_rank(3, 8), _kronecker(), _dense()]
    fisher = BlockDiagonal(tuple(pair.fisher for pair in pairs))
    return Pair(fisher, torch.block_diag(*(pair.matrix for pair in pairs)))


def _window() -> Pair:
    rows, window = _rows(9, 14), Window(4, 14, DAMPING, dtype=torch.float64)
    for row in rows:
        window.push(row)
    return Pair(window.fisher(), dense.low_rank(rows[-4:], DAMPING))


CASES = [
    Case("diagonal", _diagonal),
    Case("dense", _dense),
    Case("dense, a stack of equal blocks", _stack),
    Case("low rank, m < d", lambda: _low_rank(6, 20)),
    Case("low rank, m > d", lambda: _low_rank(30, 12)),
    Case("low rank, one row", lambda: _low_rank(1, 7)),
    Case("low rank, weighted rows, several panels", lambda: _low_rank(150, 40, weighted=True)),
    Case("low rank, orthogonal rows", _spectral),
    Case("low rank, restricted by subtraction", _downdated),
    Case("low rank, rows on a disk", _on_disk),
    Case("low rank, rows on a disk, restricted", lambda: _restricted(_on_disk(), 3, keeps=False)),
    Case("blocks of rows, primal, padded", _primal),
    Case("blocks of rows, primal, weighted", lambda: _primal(weighted=True)),
    Case("blocks of rows, dual, weighted", _dual),
    Case("Kronecker", _kronecker),
    Case("Kronecker, few kept", lambda: _restricted(_kronecker(), 3, keeps=True)),
    Case("Kronecker, most kept", lambda: _restricted(_kronecker(), 3, keeps=False)),
    Case("Kronecker by rows", _by_rows),
    Case("Kronecker by rows, in blocks of columns", _by_rows_in_blocks),
    Case("Kronecker by rows, some kept", lambda: _restricted(_by_rows(), 2, keeps=True)),
    Case("Kronecker by rows, in groups of rows", _by_rows_in_groups),
    Case("Kronecker by rows, transposed", _by_rows_transposed),
    Case(
        "Kronecker by rows, transposed, some kept",
        lambda: _restricted(_by_rows_transposed(), 3, keeps=False),
    ),
    Case("block diagonal of four structures", _mixed),
    Case("window after replacement", _window),
]
