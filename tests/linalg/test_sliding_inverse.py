"""The small inverse under replacements, against the inverse of the matrix written out."""

from __future__ import annotations

import torch
from support.random import normal
from torch import Tensor

from woodbury.linalg.sliding_inverse import REBUILD_EVERY, SlidingInverse


def gram_with(rows: Tensor, index: int, row: Tensor) -> Tensor:
    """The Gram matrix once a row is replaced; the rows are changed."""
    rows[index] = row
    return rows @ rows.mT


def test_a_replacement_is_followed_and_solves_are_exact() -> None:
    rows, inverse, c = normal(5, 9), SlidingInverse(), normal(5, seed=3)
    gram, eye = rows @ rows.mT, torch.eye(5, dtype=torch.float64)
    for step, row in enumerate(normal(2 * REBUILD_EVERY, 9, seed=1)):
        solution = inverse.solve(gram, 0.1, c)
        torch.testing.assert_close(solution, torch.linalg.solve(gram + 0.1 * eye, c))
        assert inverse.updates == step % (REBUILD_EVERY + 1)
        gram = gram_with(rows, step % 5, row)
        inverse.replace(step % 5, gram[step % 5])


def test_another_shift_and_other_rows_are_built_anew() -> None:
    gram, inverse, c = normal(5, 9) @ normal(5, 9).mT, SlidingInverse(), normal(5, seed=3)
    eye = torch.eye(5, dtype=torch.float64)
    inverse.replace(0, gram[0])  # nothing is there yet to be updated
    for shift in (0.1, 0.2):
        truth = torch.linalg.solve(gram + shift * eye, c)
        torch.testing.assert_close(inverse.solve(gram, shift, c), truth)
    other = gram + 3 * eye
    inverse.invalidate()
    torch.testing.assert_close(
        inverse.solve(other, 0.2, c), torch.linalg.solve(other + 0.2 * eye, c)
    )


def test_an_update_that_rounding_has_spoilt_is_given_up() -> None:
    """The Schur complement of a row that the others span is the shift: below it, it is rounding."""
    gram, inverse = torch.eye(2, dtype=torch.float64), SlidingInverse()
    inverse.solve(gram, 1e-3, torch.ones(2).double())
    inverse.replace(1, torch.tensor([1.0, 0.9], dtype=torch.float64))  # not positive semidefinite
    assert inverse.updates == -1
