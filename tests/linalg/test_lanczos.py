"""Lanczos against dense eigenvalues in float64."""

from __future__ import annotations

import pytest
import torch
from support.random import normal
from torch import Tensor

from woodbury.linalg.lanczos import lanczos


def symmetric(d: int) -> Tensor:
    """Four large eigenvalues above many small ones of either sign."""
    matrix = normal(d, d) / d
    matrix = matrix + matrix.mT
    outer = normal(d, 4, seed=1)
    return matrix + outer @ outer.mT / d


def test_the_largest_eigenpairs_are_found() -> None:
    matrix = symmetric(80)
    values, vectors = torch.linalg.eigh(matrix)
    ritz = lanczos(lambda v: matrix @ v, normal(80, seed=2), steps=40, largest=4)
    torch.testing.assert_close(ritz.values, values[-4:].flip(0), rtol=1e-8, atol=0)
    overlap = (vectors[:, -4:].mT @ ritz.vectors).square().sum() / 4
    assert float(overlap) == pytest.approx(1, abs=1e-8)


def test_residuals_bound_the_error() -> None:
    matrix = symmetric(80)
    exact = torch.linalg.eigvalsh(matrix)
    ritz = lanczos(lambda v: matrix @ v, normal(80, seed=2), steps=7, largest=5)
    nearest = (exact[:, None] - ritz.values).abs().amin(0)
    assert bool((nearest <= ritz.residuals + 1e-12).all())
    truth = (matrix @ ritz.vectors - ritz.vectors * ritz.values).norm(dim=0)
    torch.testing.assert_close(ritz.residuals, truth, rtol=1e-6, atol=1e-10)
    assert float(ritz.residuals.max()) > 1e-6, "seven steps leave some"


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_it_ends_at_an_invariant_space(rank: int) -> None:
    outer = normal(30, rank)
    calls = []

    def product(v: Tensor) -> Tensor:
        calls.append(v)
        return outer @ (outer.mT @ v)

    ritz = lanczos(product, normal(30, seed=5), steps=25, largest=rank + 1)
    assert len(calls) <= rank + 2
    exact = torch.linalg.eigvalsh(outer @ outer.mT).flip(0)[: rank + 1]
    torch.testing.assert_close(ritz.values, exact, rtol=1e-9, atol=1e-9)
    assert ritz.vectors.shape == (30, len(ritz.values))


def test_one_step_is_the_rayleigh_quotient() -> None:
    matrix, start = symmetric(10), normal(10, seed=3)
    ritz = lanczos(lambda v: matrix @ v, start, steps=1, largest=5)
    assert len(ritz.values) == 1
    expected = start @ matrix @ start / start.square().sum()
    assert float(ritz.values[0]) == pytest.approx(float(expected))


def test_it_does_as_well_in_float32() -> None:
    matrix = symmetric(80)
    ritz = lanczos(lambda v: matrix.float() @ v, normal(80, seed=2).float(), steps=60, largest=3)
    exact = torch.linalg.eigvalsh(matrix).flip(0)[:3]
    torch.testing.assert_close(ritz.values, exact, rtol=1e-5, atol=0)
    gram = ritz.vectors.mT @ ritz.vectors
    torch.testing.assert_close(gram, torch.eye(3), rtol=0, atol=1e-5)
