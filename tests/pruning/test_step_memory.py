"""What a step with blocks holds of the size of the weights: the sums once, and few vectors."""

from __future__ import annotations

import pytest
import torch
from support.limits import Limited
from support.live_bytes import LiveBytes
from torch import nn

import woodbury
from woodbury import Pruner, woodfisher
from woodbury.estimation.gradients import looped
from woodbury.linalg.symmetric_blocks import block_bytes
from woodbury.model.objective import Objective

BLOCK = 10
"""Small, so that the temporaries of some blocks are small beside a vector."""


@pytest.fixture(scope="module")
def objective() -> Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(500, 600), nn.ReLU(), nn.Linear(600, 333))
    batches = [(torch.randn(4, 500), torch.arange(4))]
    space = woodbury.ParameterSpace.from_model(model, min_ndim=2)
    return Objective.from_model(model, batches, space=space)


@pytest.mark.parametrize("first_order", [False, True])
def test_the_sums_once_and_few_vectors(
    objective: Objective, first_order: bool, limited: Limited
) -> None:
    d = objective.space.d
    vector = 4 * d
    sums = block_bytes(len(objective.space.block_sizes(BLOCK)), BLOCK, torch.float32)
    # One row at a time, room for two beside the sums, and no factors kept.
    limited(memory=sums + 2 * vector, gradient_chunk=vector, temporary=2**16)
    pruner = Pruner(woodfisher(4, BLOCK, 0.1, engine=looped), first_order=first_order)
    with LiveBytes(at_least=d) as estimate:
        quadratic = pruner.quadratic(objective)
    with LiveBytes(at_least=d) as step:
        pruner.on_quadratic(quadratic, objective, 0.5)
    # Two rows, a gradient and its flat copy, the diagonal; the mean gradient is taken after.
    print(estimate.peak / vector, sums / vector, step.peak / vector, step.most)
    assert sums < estimate.peak <= sums + 6 * vector
    # Scores, inverse diagonal, step and its product, masks, layers, and what makes each.
    assert step.peak <= STEP_VECTORS * vector


STEP_VECTORS = 10
