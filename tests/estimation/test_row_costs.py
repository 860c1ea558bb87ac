"""What K-FAC by rows takes, against sums by hand and what it holds."""

from __future__ import annotations

import torch
from support.random import normal
from torch import nn

from woodbury import Objective, ParameterSpace
from woodbury.estimation import kfac_by_rows
from woodbury.estimation.row_costs import PRODUCTS, row_cost


def dense() -> Objective:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2, bias=False), nn.Flatten(), nn.Linear(32, 5, bias=False)
    )
    batches = [(normal(20, 4, 4, 4).float(), torch.arange(20) % 5)]
    space = ParameterSpace.from_model(model)
    return Objective.from_model(model, batches, space=space)


def test_the_moments_are_those_that_are_held() -> None:
    objective = dense()
    fisher = kfac_by_rows(20)(objective)
    held = sum(4 * part.inputs.numel() for part in fisher.parts)  # type: ignore[attr-defined]
    assert row_cost(objective, 20, steps=1).moments == held == 4 * (2 * 18**2 + 32**2)


def test_one_step_is_its_products_and_inverses() -> None:
    products = 2 * 8 * 18 * 18 + 2 * 5 * 32 * 32
    inverses = 2 * (2 * 18**3 + 32**3)
    assert row_cost(dense(), 20, steps=1).solves_flops == 2 * PRODUCTS * products + inverses


def test_passes_of_the_network_are_counted() -> None:
    forward = 2 * (8 * 18 * 4 + 5 * 32)
    assert row_cost(dense(), 20, steps=2).passes_flops == 3 * 20 * forward
    assert row_cost(dense(), 20, steps=2, passes=3).passes_flops == (3 + 6) * 20 * forward


def test_it_says_so_in_words() -> None:
    assert "of inputs' moments" in str(row_cost(dense(), 20, steps=2))
