"""Metric against the dense matrix."""

from __future__ import annotations

import torch
from support.random import normal
from torch.testing import assert_close

from woodbury.fisher.lowrank import LowRank
from woodbury.linalg.metric import Metric


def metric() -> tuple[Metric, torch.Tensor]:
    """Two blocks with weights before, between and after them, and the dense matrix."""
    blocks = [(slice(1, 4), normal(3, 5)), (slice(6, 8), normal(2, 5, seed=1))]
    blocks = [(where, root @ root.mT) for where, root in blocks]
    dense = torch.eye(9, dtype=torch.float64)
    for where, block in blocks:
        dense[where, where] = block
    return Metric(tuple((where, torch.linalg.cholesky(block)) for where, block in blocks)), dense


def test_rows_with_damping_times_the_metric() -> None:
    operator, dense = metric()
    rows, damping, force = normal(4, 9), 0.3, normal(4)
    truth = torch.linalg.solve(rows.mT @ rows / 4 + damping * dense, rows.mT @ force)
    assert_close(
        operator.coloured(LowRank(operator.whiten(rows.clone()), damping).solve_range(force)), truth
    )


def test_a_gradient_is_whitened_and_a_step_coloured() -> None:
    operator, dense = metric()
    v = normal(9)
    assert_close(operator.coloured(operator.whitened(v)), torch.linalg.solve(dense, v))
    assert_close(operator.whitened(v) @ operator.whitened(v), v @ torch.linalg.solve(dense, v))
    assert_close(v, normal(9), rtol=0, atol=0)


def test_without_blocks_it_is_the_identity() -> None:
    operator, v = Metric(()), normal(9)
    assert_close(operator.coloured(v), v, rtol=0, atol=0)
    assert_close(operator.whitened(v), v, rtol=0, atol=0)
