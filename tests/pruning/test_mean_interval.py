"""Confidence intervals of a mean: quantiles from tables, coverage by simulation."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from woodbury.pruning.mean_interval import mean_interval, student_quantile

TABLE = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 9: 2.2622, 30: 2.0423, 31: 2.0395}
"""Degrees of freedom -> the .975 quantile of Student's t, from printed tables."""

SETS = 1000
"""Sets of samples that coverage is counted on."""


@pytest.mark.parametrize("freedom", TABLE)
def test_quantiles_are_those_of_the_tables(freedom: int) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(TABLE[freedom], abs=5e-5)


def test_with_many_degrees_of_freedom_it_is_the_normal_distribution() -> None:
    for probability in (0.6, 0.9, 0.999):
        normal = NormalDist().inv_cdf(probability)
        assert student_quantile(probability, 3001) == pytest.approx(normal, rel=1e-3)


def test_without_skewness_it_is_students_interval() -> None:
    values = [1.0, 2.0, 2.5, 3.0, 4.0]
    half = TABLE[4] * math.sqrt(sum((v - 2.5) ** 2 for v in values) / 4 / 5)
    interval = mean_interval(values, [3] * 5)
    assert interval.mean == 2.5
    assert interval.low == pytest.approx(2.5 - half, rel=1e-4)
    assert interval.high == pytest.approx(2.5 + half, rel=1e-4)


def test_it_moves_and_scales_with_the_values() -> None:
    values = [0.1, 0.2, 0.9, 3.0]
    interval = mean_interval(values, [2, 2, 2, 1])
    moved = mean_interval([5 - 2 * value for value in values], [2, 2, 2, 1])
    mirrored = (5 - 2 * interval.high, 5 - 2 * interval.mean, 5 - 2 * interval.low)
    assert tuple(moved) == pytest.approx(mirrored)


def test_the_mean_is_that_of_all_samples() -> None:
    assert mean_interval([1.0, 4.0], [3, 1]).mean == pytest.approx(1.75)


def test_equal_groups_have_no_width_and_infinite_ones_no_end() -> None:
    assert mean_interval([0.5, 0.5, 0.5], [4, 4, 1]) == (0.5, 0.5, 0.5)
    assert mean_interval([0.5, math.nan], [4, 4]) == (math.inf, math.inf, math.inf)


def misses(values: Tensor, truth: float) -> tuple[int, int]:
    """How many intervals of (sets, groups, samples) values lie above the truth, and below it."""
    above = below = 0
    for groups in values.mean(2).tolist():
        interval = mean_interval(groups, [values.shape[2]] * len(groups))
        above += interval.low > truth
        below += interval.high < truth
    return above, below


def test_normal_samples_are_covered_as_often_as_is_said() -> None:
    values = torch.randn(SETS, 32, 2, generator=torch.Generator().manual_seed(0))
    expected, spread = 0.05 * SETS, math.sqrt(0.05 * 0.95 * SETS)
    assert abs(sum(misses(values, 0.0)) - expected) < 4 * spread


def test_skewed_samples_are_covered_better_than_by_students_interval() -> None:
    normal = torch.randn(SETS, 32, 2, generator=torch.Generator().manual_seed(1))
    values, truth = normal.exp(), math.exp(0.5)
    above, below = misses(values, truth)
    means = values.mean(2)
    half = TABLE[31] * means.std(1) / math.sqrt(32)
    of_student = int(((means.mean(1) - truth).abs() > half).sum())
    missed = above + below
    assert missed < 0.095 * SETS and missed < 0.9 * of_student, (missed, of_student)
