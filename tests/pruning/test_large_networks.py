"""prune() where gradient rows have no room: K-FAC by rows, chosen by the memory alone."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from support.limits import Limited
from torch import Tensor, nn

import woodbury
from woodbury import Pruner, WoodburyError
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.step_choice import BY_ROWS
from woodbury.pruning.updates import zero

SAMPLES = 300
ONE_STAGE = replace(woodbury.presets.quick, in_turn=None)
IN_STAGES = replace(woodbury.presets.standard, in_turn=None)


def data() -> list[tuple[Tensor, Tensor]]:
    """Three classes of points that one layer cannot tell apart."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 12, generator=generator)
    return [(x, (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 1).long())]


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 3)
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    ((x, y),) = data()
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def loss(model: nn.Module) -> float:
    ((x, y),) = data()
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(x), y))


def test_it_is_far_ahead_of_magnitude_without_a_row_in_memory(
    trained: nn.Module, limited: Limited
) -> None:
    ours, theirs = copy.deepcopy(trained), copy.deepcopy(trained)
    limited(memory=4 * 3024 * (SAMPLES - 1))  # a row of 3,024 weights fewer than there are samples
    pruned = woodbury.prune(ours, data(), 0.7, effort=IN_STAGES)
    woodbury.prune(theirs, data(), 0.7, pruner=Pruner(None, magnitude, zero))
    assert pruned.settings["structure"] == BY_ROWS
    assert pruned.settings["stages"] == 1
    assert pruned.sparsity == pytest.approx(0.7, abs=1e-3)
    dense, kfac, by_magnitude = loss(trained), loss(ours), loss(theirs)
    assert kfac - dense < 0.5 * (by_magnitude - dense)


def test_rows_are_taken_where_they_have_room(trained: nn.Module, limited: Limited) -> None:
    limited(memory=4 * 3024 * SAMPLES)
    pruned = woodbury.prune(copy.deepcopy(trained), data(), 0.5, effort=ONE_STAGE)
    assert pruned.settings["structure"] == "whole matrix"


def test_a_budget_chooses_the_structure(trained: nn.Module) -> None:
    with woodbury.Limits(memory=50_000):  # for rows, of which each sample has one of 12 kB
        small = woodbury.prune(copy.deepcopy(trained), data(), 0.5, effort=ONE_STAGE)
    large = woodbury.prune(copy.deepcopy(trained), data(), 0.5, effort=ONE_STAGE, memory="1GiB")
    assert small.settings["structure"] == BY_ROWS
    assert large.settings["structure"] == "whole matrix"


def test_a_parameter_of_an_own_module_is_pruned_too(limited: Limited) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(12, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    limited(memory=4 * 36 * 20)
    pruned = woodbury.prune(Own(), data(), 0.5, effort=woodbury.presets.quick)
    assert pruned.settings["structure"] == BY_ROWS
    assert pruned.sparsity == 0.5


def test_a_budget_that_is_no_size_leaves_the_model_alone(trained: nn.Module) -> None:
    model = copy.deepcopy(trained)
    with pytest.raises(WoodburyError, match="give bytes or a size such as 6GiB"):
        woodbury.prune(model, data(), 0.5, memory="plenty")
    assert loss(model) == loss(trained)
