"""Ranks, choices and factors of two, by their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from support.random import normal
from torch import Tensor

from woodbury.inspection.agreement import (
    is_within_factor,
    last_within_factor,
    rank_correlation,
    shared_removals,
)


def mean_ranks(values: Tensor) -> Tensor:
    """For each value how many are smaller, and half of the others that are equal."""
    smaller = (values[None] < values[:, None]).sum(1).double()
    equal = (values[None] == values[:, None]).sum(1).double()
    return smaller + (equal - 1) / 2


@pytest.mark.parametrize("levels", [1000, 3])
def test_the_rank_correlation_is_pearsons_of_the_ranks(levels: int) -> None:
    a = (levels * normal(40)).round()
    b = (levels * (normal(40) + normal(40, seed=1))).round()
    expected = float(torch.corrcoef(torch.stack([mean_ranks(a), mean_ranks(b)]))[0, 1])
    assert rank_correlation(a, b) == pytest.approx(expected, abs=1e-12)
    assert 0.3 < expected < 0.95


def test_order_alone_counts() -> None:
    a = normal(30)
    assert rank_correlation(a, a.exp()) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    assert rank_correlation(torch.ones(3), torch.ones(3)) == 1
    assert rank_correlation(torch.ones(3), torch.arange(3.0)) == 0


def test_shared_removals() -> None:
    keep = torch.tensor([False, False, True, True])
    assert shared_removals(keep, keep) == 1
    assert shared_removals(keep, ~keep) == 0
    assert shared_removals(keep, torch.tensor([True, False, False, True])) == 0.5
    assert shared_removals(torch.ones(2).bool(), torch.ones(2).bool()) == 1


@pytest.mark.parametrize(
    ("predicted", "measured", "holds"),
    [
        (1.0, 1.9, True),
        (1.9, 1.0, True),
        (1.0, 2.1, False),
        (2.1, 1.0, False),
        (0.001, 0.009, True),
        (-0.005, 0.004, True),
        (1.0, -1.0, False),
        (1.0, math.inf, False),
    ],
)
def test_within_a_factor_of_two(predicted: float, measured: float, holds: bool) -> None:
    assert is_within_factor(predicted, measured, 0.01) is holds


def test_the_last_place_is_before_the_first_that_does_not_hold() -> None:
    places, measured = [0.1, 0.5, 0.7, 0.9], [0.1, 0.2, 9.0, 0.4]
    assert last_within_factor(places, [0.1, 0.2, 0.3, 0.4], measured, 0.1) == 0.5
    assert last_within_factor(places, [0.9, 0.2, 0.3, 0.4], measured, 0.1) is None
    assert last_within_factor(places, measured, measured, 0.1) == 0.9
