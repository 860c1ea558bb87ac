"""The table of operators: a new operator is one line here, and inherits every contract test."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from support import dense
from woodbury.fisher.base import Fisher
from woodbury.fisher.block_diagonal import BlockDiagonal
from woodbury.fisher.blocks_of_rows import dense_blocks
from woodbury.fisher.dense import Dense
from woodbury.fisher.diagonal import Diagonal
from woodbury.fisher.kronecker.operator import Kronecker
from woodbury.fisher.lowrank import LowRank
from woodbury.fisher.window import Window

DAMPING = 0.03


class Case(NamedTuple):
    name: str
    build: Callable[[], tuple[Fisher, Tensor]]


def _rows(m: int, d: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, d, generator=generator, dtype=torch.float64) * torch.logspace(
        0, -2, d, dtype=torch.float64
    )


def _weights(m: int) -> Tensor:
    return torch.rand(m, generator=torch.Generator().manual_seed(9), dtype=torch.float64) + 0.1


def _psd(d: int, seed: int) -> Tensor:
    rows = _rows(d + 3, d, seed)
    return rows.mT @ rows / len(rows)


def _diagonal() -> tuple[Fisher, Tensor]:
    curvature = _rows(1, 12)[0].square()
    return Diagonal(curvature, DAMPING), torch.diag(curvature + DAMPING)


def _dense() -> tuple[Fisher, Tensor]:
    return Dense(_psd(11, 1), DAMPING), _psd(11, 1) + DAMPING * torch.eye(11, dtype=torch.float64)


def _stack() -> tuple[Fisher, Tensor]:
    blocks = torch.stack([_psd(4, seed) for seed in range(3)])
    return Dense(blocks, DAMPING), torch.block_diag(*blocks) + DAMPING * torch.eye(
        12, dtype=torch.float64
    )


def _low_rank(m: int, d: int, weighted: bool = False) -> tuple[Fisher, Tensor]:
    rows, weights = _rows(m, d), _weights(m) if weighted else None
    return LowRank(rows, DAMPING, weights), dense.low_rank(rows, DAMPING, weights)


def _primal(weighted: bool = False) -> tuple[Fisher, Tensor]:
    sizes, rows, weights = (5, 5, 3, 1, 5), _rows(7, 19), _weights(7) if weighted else None
    fisher = dense_blocks(rows, sizes, DAMPING, weights)
    assert isinstance(fisher, Dense)
    return fisher, dense.blocks_only(dense.low_rank(rows, DAMPING, weights), sizes)


def _dual() -> tuple[Fisher, Tensor]:
    sizes, rows = (140, 140, 9), _rows(3, 289)
    fisher = dense_blocks(rows, sizes, DAMPING, _weights(3))
    assert isinstance(fisher, BlockDiagonal)
    return fisher, dense.blocks_only(dense.low_rank(rows, DAMPING, _weights(3)), sizes)


def _mixed() -> tuple[Fisher, Tensor]:
    parts = [_diagonal(), _low_rank(3, 8), _kronecker(), _dense()]
    return BlockDiagonal(tuple(fisher for fisher, _ in parts)), torch.block_diag(
        *(matrix for _, matrix in parts)
    )


def _kronecker() -> tuple[Fisher, Tensor]:
    left, right = _psd(3, 4), _psd(5, 5)
    matrix = torch.kron(left, right) + DAMPING * torch.eye(15, dtype=torch.float64)
    return Kronecker(left, right, DAMPING), matrix


def _window() -> tuple[Fisher, Tensor]:
    rows, window = _rows(9, 14), Window(4, 14, DAMPING, dtype=torch.float64)
    for row in rows:
        window.push(row)
    return window.fisher(), dense.low_rank(rows[-4:], DAMPING)


CASES = [
    Case("diagonal", _diagonal),
    Case("dense", _dense),
    Case("dense, a stack of equal blocks", _stack),
    Case("low rank, m < d", lambda: _low_rank(6, 20)),
    Case("low rank, m > d", lambda: _low_rank(30, 12)),
    Case("low rank, one row", lambda: _low_rank(1, 7)),
    Case("low rank, weighted rows, several panels", lambda: _low_rank(150, 40, weighted=True)),
    Case("blocks of rows, primal, padded", _primal),
    Case("blocks of rows, primal, weighted", lambda: _primal(weighted=True)),
    Case("blocks of rows, dual, weighted", _dual),
    Case("Kronecker", _kronecker),
    Case("block diagonal of four structures", _mixed),
    Case("window after replacement", _window),
]
