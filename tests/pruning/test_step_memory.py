"""What a step with blocks holds of the size of the weights: the sums once, and few vectors."""

from __future__ import annotations

import pytest
import torch
from support.limits import Limited
from support.live_bytes import LiveBytes
from torch import nn

import woodbury
from woodbury import Pruner, woodfisher
from woodbury.estimation.engines import looped
from woodbury.fisher.dense import Dense
from woodbury.linalg.symmetric_blocks import block_bytes
from woodbury.model.objective import Objective

ROWS = 8
BLOCK = 10
"""Small, so that the temporaries of some blocks are small beside a vector."""


@pytest.fixture(scope="module")
def objective() -> Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(500, 300), nn.ReLU(), nn.Linear(300, 333))
    batches = [(torch.randn(ROWS, 500), torch.arange(ROWS))]
    space = woodbury.ParameterSpace.from_model(model, min_ndim=2)
    return Objective.from_model(model, batches, space=space)


@pytest.mark.parametrize("first_order", [False, True])
def test_the_sums_once_and_few_vectors(
    objective: Objective, first_order: bool, limited: Limited
) -> None:
    d = objective.space.d
    vector = 4 * d
    sums = block_bytes(len(objective.space.block_sizes(BLOCK)), BLOCK, torch.float32)
    # One gradient at a time, room for eight rows beside the sums, and no factors kept.
    limited(memory=sums + ROWS * vector, gradient_chunk=vector, temporary=2**16)
    pruner = Pruner(woodfisher(ROWS, BLOCK, 0.1, engine=looped), first_order=first_order)
    with LiveBytes(at_least=d) as estimate:
        quadratic = pruner.quadratic(objective)
    assert isinstance(quadratic.fisher, Dense)
    # The rows, the gradient, the weights.
    assert sums < estimate.peak <= sums + (ROWS + 3) * vector
    with LiveBytes(at_least=d) as step:
        pruner.on_quadratic(quadratic, objective, 0.5)
    # The weights, their layers (two), the inverse diagonal, the step and its product, masks, and
    # what makes each.
    assert sums < step.peak <= sums + (10 + first_order) * vector
