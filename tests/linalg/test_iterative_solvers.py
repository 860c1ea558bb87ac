"""Conjugate gradients on a matrix written out."""

from __future__ import annotations

import torch
from support.random import normal

from woodbury.linalg.iterative_solvers import conjugate_gradients


def test_conjugate_gradients_on_a_plain_matrix() -> None:
    matrix = normal(8, 8) @ normal(8, 8).mT / 8 + torch.eye(8, dtype=torch.float64)
    b = normal(8, 2, seed=2)
    solution = conjugate_gradients(lambda x: matrix @ x, b, 100, 1e-12)
    truth = torch.linalg.solve(matrix, b)
    torch.testing.assert_close(solution.x, truth, rtol=1e-9, atol=1e-9)
    early = conjugate_gradients(lambda x: matrix @ x, b, 2, 1e-12)
    assert solution.residual <= 1e-12 < early.residual
    actual = ((b - matrix @ early.x).norm(dim=0) / b.norm(dim=0)).max()
    torch.testing.assert_close(torch.tensor(early.residual), actual.float())
