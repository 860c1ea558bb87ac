"""Sparse least squares: the support against every subset, the weights against dense solves."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from support.random import normal
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.linalg.sparse_least_squares import SparseLeastSquares

RIDGE = 0.03


def problem(groups: int, rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of correlated inputs of very different sizes, their cross moments, and a start."""
    inputs = normal(groups, 60, columns, seed=seed) @ normal(
        groups, columns, columns, seed=seed + 1
    )
    inputs = inputs * torch.logspace(-2, 1, columns, dtype=torch.float64)
    start = normal(groups, rows, columns, seed=seed + 2)
    goals = inputs @ start.mT + 0.1 * normal(groups, 60, rows, seed=seed + 3)
    return inputs.mT @ inputs / 60, goals.mT @ inputs / 60, start


def loss(moments: Tensor, cross: Tensor, start: Tensor, weights: Tensor) -> float:
    """What (93) minimises, with the ridge in the inputs' own units, from its definition."""
    ridge = RIDGE * torch.diag_embed(moments.diagonal(dim1=1, dim2=2))
    moved = weights - start
    fit = 0.5 * weights @ moments * weights - cross * weights
    return float((fit + 0.5 * moved @ ridge * moved).sum())


def optimum(moments: Tensor, cross: Tensor, start: Tensor, keep: Tensor) -> Tensor:
    """The best weights on a support, row by row by a dense solve."""
    ridge = RIDGE * moments.diagonal(dim1=1, dim2=2)
    matrix = moments + torch.diag_embed(ridge)
    linear = cross + ridge[:, None, :] * start
    found = torch.zeros_like(start)
    for group, rows in enumerate(keep):
        for row, kept in enumerate(rows):
            system = matrix[group][kept][:, kept]
            found[group, row, kept] = torch.linalg.solve(system, linear[group, row, kept])
    return found


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("k", [0, 5, 20])
def test_the_weights_are_the_optimum_on_their_support(groups: int, k: int) -> None:
    moments, cross, start = problem(groups, 4, 7, seed=groups)
    found = SparseLeastSquares(ridge=RIDGE)(moments, cross, start, k)
    assert int(found.keep.sum()) == k
    assert not bool(found.weights[~found.keep].any())
    truth = optimum(moments, cross, start, found.keep)
    torch.testing.assert_close(found.weights, truth, rtol=1e-4, atol=1e-5)


def test_all_weights_are_the_ridge_regression() -> None:
    moments, cross, start = problem(2, 3, 6, seed=5)
    found = SparseLeastSquares(ridge=RIDGE)(moments, cross, start, 36)
    truth = optimum(moments, cross, start, torch.ones_like(start, dtype=torch.bool))
    assert bool(found.keep.all())
    torch.testing.assert_close(found.weights, truth, rtol=1e-4, atol=1e-5)


def test_the_support_is_near_the_best_of_all() -> None:
    """2 rows of 6 inputs, 4 weights kept: 495 supports, of which ADMM finds one of the best."""
    ranks, gains = [], []
    for seed in range(0, 40, 4):
        moments, cross, start = problem(1, 2, 6, seed=seed)
        losses = {}
        for chosen in combinations(range(12), 4):
            keep = torch.zeros(12, dtype=torch.bool)
            keep[list(chosen)] = True
            keep = keep.view(1, 2, 6)
            losses[chosen] = loss(moments, cross, start, optimum(moments, cross, start, keep))
        found = SparseLeastSquares(ridge=RIDGE)(moments, cross, start, 4)
        reached = loss(moments, cross, start, found.weights)
        by_size = start.abs().flatten().topk(4).indices
        magnitude = losses[tuple(sorted(by_size.tolist()))]
        ranks.append(sum(each < reached - 1e-9 for each in losses.values()))
        gains.append(magnitude - reached)
    assert sorted(ranks)[len(ranks) // 2] <= 5  # of 495, the median
    assert min(gains) > -1e-6 and max(gains) > 0


def test_weights_that_are_not_allowed_are_not_kept() -> None:
    moments, cross, start = problem(1, 4, 7, seed=9)
    allowed = torch.arange(28).view(1, 4, 7) % 3 > 0
    found = SparseLeastSquares(ridge=RIDGE)(moments, cross, start, 10, allowed)
    assert int(found.keep.sum()) == 10 and bool(allowed[found.keep].all())
    every = SparseLeastSquares(ridge=RIDGE)(moments, cross, start, 28, allowed)
    assert torch.equal(every.keep, allowed)


def test_inputs_that_are_always_zero_cost_nothing() -> None:
    moments, cross, start = problem(1, 3, 6, seed=2)
    moments[:, 2], moments[:, :, 2], cross[:, :, 2] = 0, 0, 0
    found = SparseLeastSquares(ridge=RIDGE)(moments, cross, start, 8)
    assert bool(torch.isfinite(found.weights).all())
    assert not bool(found.keep[:, :, 2].any())


@pytest.mark.parametrize("options", [{"ridge": 0.0}, {"ridge": float("nan")}, {"steps": -1}])
def test_fields_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(WoodburyError):
        SparseLeastSquares(**options)  # pyright: ignore[reportArgumentType]
