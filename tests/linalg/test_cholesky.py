"""Factors of small matrices, where rounding has made them indefinite and in pieces."""

from __future__ import annotations

import pytest
import torch
from support.limits import Limited
from support.random import normal

from woodbury.errors import WoodburyError
from woodbury.linalg.cholesky import damped_cholesky, definite_inverse, inverse_diagonal


def test_indefinite_rounding_is_clamped_at_the_damping() -> None:
    curvature = torch.tensor(
        [[1.0, 1.0], [1.0, 1.0 - 1e-6]], dtype=torch.float64
    )  # one eigenvalue is −5e-7
    factor = damped_cholesky(curvature, 1e-9)
    assert bool(torch.isfinite(factor).all())
    values = torch.linalg.eigvalsh(factor @ factor.mT)
    torch.testing.assert_close(
        values[0], torch.tensor(1e-9, dtype=torch.float64), rtol=1e-3, atol=0
    )
    assert bool((factor.diagonal() > 0).all()) and float(factor[0, 1].abs()) < 1e-15
    stack = torch.stack([curvature, torch.eye(2, dtype=torch.float64)])
    torch.testing.assert_close(damped_cholesky(stack, 1e-9)[0], factor)
    torch.testing.assert_close(damped_cholesky(stack, 1e-9)[1], torch.eye(2, dtype=torch.float64))


def test_a_matrix_that_is_not_a_fisher_is_named() -> None:
    with pytest.raises(WoodburyError, match="eigenvalue -1: a Fisher is positive semidefinite"):
        damped_cholesky(torch.diag(torch.tensor([1.0, -1.1])), 0.1)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_inverse_diagonal_from_a_factor_in_pieces(size: int, limited: Limited) -> None:
    limited(inverse_columns=size)
    matrix = normal(8, 8) @ normal(8, 8).mT + torch.eye(8, dtype=torch.float64)
    torch.testing.assert_close(
        inverse_diagonal(torch.linalg.cholesky(matrix)),
        torch.linalg.inv(matrix).diagonal(),
        rtol=1e-9,
        atol=0,
    )


def test_an_inverse_in_panels_is_the_inverse(limited: Limited) -> None:
    limited(inverse_columns=3)
    rows = normal(2, 20, 8, seed=1)
    matrices = rows.mT @ rows
    torch.testing.assert_close(definite_inverse(matrices), torch.linalg.inv(matrices))
    torch.testing.assert_close(definite_inverse(matrices[0]), torch.linalg.inv(matrices[0]))
