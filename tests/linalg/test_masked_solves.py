"""Masked conjugate gradients against one dense solve for each row."""

from __future__ import annotations

import pytest
import torch
from support.random import normal
from torch import Tensor

from woodbury.linalg.masked_solves import masked_conjugate_gradients


def problem() -> tuple[Tensor, Tensor, Tensor]:
    """Two matrices of six columns, five rows for each, of which one keeps nothing."""
    rows = normal(2, 20, 6, seed=1)
    matrices = rows.mT @ rows / 20 + 0.1 * torch.eye(6, dtype=torch.float64)
    keep = (normal(2, 5, 6, seed=2) > 0).double()
    keep[1, 3] = 0
    return matrices, keep, normal(2, 5, 6, seed=3)


@pytest.mark.parametrize("preconditioned", [False, True])
def test_every_row_is_solved_on_its_own_columns(preconditioned: bool) -> None:
    matrices, keep, rhs = problem()
    inverse = torch.linalg.inv(matrices)
    solution = masked_conjugate_gradients(
        matrices, keep, rhs, lambda v: v @ inverse if preconditioned else v, 1e-12, 50
    )
    for block, matrix in enumerate(matrices):
        for row, kept in enumerate(keep[block].bool()):
            truth = torch.zeros(6, dtype=torch.float64)
            truth[kept] = torch.linalg.solve(matrix[kept][:, kept], rhs[block, row, kept])
            torch.testing.assert_close(solution.x[block, row], truth, rtol=1e-9, atol=1e-10)
    assert solution.residual <= 1e-12


def test_it_ends_at_the_tolerance_or_after_the_last_step() -> None:
    matrices, keep, rhs = problem()
    loose = masked_conjugate_gradients(matrices, keep, rhs, lambda v: v, 0.5, 50)
    tight = masked_conjugate_gradients(matrices, keep, rhs, lambda v: v, 1e-12, 50)
    short = masked_conjugate_gradients(matrices, keep, rhs, lambda v: v, 1e-12, 2)
    assert loose.residual <= 0.5 and loose.steps < tight.steps
    assert short.steps == 2 and short.residual > 1e-12


def test_nothing_to_solve_gives_zeros() -> None:
    matrices, keep, rhs = problem()
    solution = masked_conjugate_gradients(matrices, keep, 0 * rhs, lambda v: v, 1e-6, 9)
    assert not solution.x.any() and solution.residual == 0 and solution.steps == 0
