"""A solve with a sketched preconditioner against a dense float64 solve."""

from __future__ import annotations

import pytest
import torch
from support.random import normal
from torch import Tensor

from woodbury.linalg import dual_solve
from woodbury.linalg.dual_solve import is_sketched, solve_dual
from woodbury.linalg.metric import Metric

M, D = 24, 4000


def unequal() -> Tensor:
    """Rows of columns of very unequal size, most of them near a shared direction."""
    rows = normal(M, D) + 5 * normal(1, D, seed=1)
    return (rows * normal(D, seed=2).exp().pow(2)).float()


def few_columns() -> Tensor:
    """Rows that are zero but in three columns."""
    rows = torch.zeros(M, D)
    rows[:, [5, 70, 900]] = normal(M, 3).float()
    return rows


@pytest.mark.parametrize("rows", [unequal(), few_columns(), torch.zeros(M, D)])
@pytest.mark.parametrize("damping", [1e-1, 1e2])
def test_the_solution_is_that_of_a_dense_solve(rows: Tensor, damping: float) -> None:
    assert is_sketched(rows)
    c = normal(M, seed=3)
    wide = rows.double()
    matrix = wide @ wide.mT / M + damping * torch.eye(M, dtype=torch.float64)
    truth = torch.linalg.solve(matrix, c)
    found = solve_dual(rows, damping, c, tolerance=1e-6)
    torch.testing.assert_close(wide.mT @ found, wide.mT @ truth, rtol=1e-3, atol=1e-4)
    assert float((matrix @ found - c).norm()) < 1e-4 * float(c.norm())


@pytest.mark.parametrize("d", [3000, 3500])
def test_a_metric_takes_the_place_of_the_identity(d: int) -> None:
    """On 60 blocks of 50 weights; of 3,500 weights 500 are in none."""
    rows, c = normal(M, d).float(), normal(M, seed=3)
    matrix = torch.eye(d, dtype=torch.float64)
    factors = []
    for start in range(0, 3000, 50):
        root = normal(50, 50, seed=start) / 7
        factor = torch.linalg.cholesky(root @ root.mT + 0.1 * torch.eye(50).double())
        where = slice(start, start + 50)
        matrix[where, where] = factor @ factor.mT
        factors.append((where, factor.float()))
    metric = Metric(tuple(factors))
    wide = rows.double()
    inner = wide @ torch.linalg.solve(matrix, wide.mT) / M + 1e-2 * torch.eye(M).double()
    truth = torch.linalg.solve(inner, c)
    found = solve_dual(rows, 1e-2, c, metric, tolerance=1e-6)
    torch.testing.assert_close(found, truth, rtol=1e-3, atol=1e-5)
    v = normal(d, seed=5).float()
    torch.testing.assert_close(
        metric.solved(v), torch.linalg.solve(matrix, v.double()).float(), rtol=1e-4, atol=1e-5
    )


def test_few_iterations_read_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = 0

    def counting(rows: Tensor, v: Tensor) -> Tensor:
        nonlocal reads
        reads += 1
        return rows.double() @ v.double()

    monkeypatch.setattr(dual_solve, "times", counting)
    rows = normal(200, 8000).float()
    solve_dual(rows, 1e-3, normal(200, seed=3))
    assert 2 < reads < 20


def test_few_or_exact_rows_are_not_sketched() -> None:
    assert not is_sketched(torch.zeros(10, 50))
    assert not is_sketched(torch.zeros(1, 50).double())
