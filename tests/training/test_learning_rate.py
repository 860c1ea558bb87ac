"""A learning rate that restarts after every pruning step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from woodbury.errors import WoodburyError
from woodbury.training.learning_rate import cosine_restarts


def test_the_learning_rate_restarts_after_each_pruning_step() -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.05)
    scheduler = LambdaLR(optimizer, cosine_restarts([4, 8], 16, floor=0.1))
    factors = []
    for _ in range(16):
        factors.append(optimizer.param_groups[0]["lr"] / 0.05)
        optimizer.step()
        scheduler.step()
    half = 0.1 + 0.9 / 2
    assert factors[0] == factors[4] == factors[8] == pytest.approx(1)
    assert factors[2] == factors[6] == factors[12] == pytest.approx(half)
    assert factors[3] < half and factors[15] < 0.2
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.005)


def test_without_a_pruning_step_it_is_half_a_cosine() -> None:
    assert [cosine_restarts([], 2)(step) for step in range(4)] == pytest.approx([1, 0.5, 0, 0])


def test_an_end_before_the_last_pruning_step_is_refused() -> None:
    with pytest.raises(WoodburyError, match="before the pruning step at 3"):
        cosine_restarts([3], 2)


def test_a_floor_that_is_no_fraction_is_refused() -> None:
    with pytest.raises(WoodburyError, match="from 0 to 1"):
        cosine_restarts([3], 4, floor=2)
