"""K-FAC by rows: the factors that it is made of, and the places where it is exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.random import normal
from torch import nn

from woodbury import Objective, gauss_newton
from woodbury.errors import WoodburyError
from woodbury.estimation import kfac_by_rows, observed
from woodbury.estimation.kfac_factors import factors
from woodbury.fisher import Kronecker
from woodbury.fisher.kronecker.by_rows import KroneckerRows

COUNT = 40


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3, bias=False)
    ).double()


def objective_of(model: nn.Module | None = None) -> Objective:
    batches = [(normal(COUNT, 2, 4, 4, seed=1), torch.arange(COUNT) % 3)]
    return Objective.from_model(model or network(), batches)


def test_it_is_kfac_with_a_diagonal_output_factor_and_a_ridge() -> None:
    objective = objective_of()
    fisher = kfac_by_rows(COUNT, ridge=0.05, labels=observed)(objective)
    pairs = factors(objective, COUNT, labels=observed)
    for part, (left, right) in zip(fisher.parts, pairs.values(), strict=True):
        ridge = 0.05 * right.diagonal().mean() * torch.eye(len(right), dtype=torch.float64)
        truth = Kronecker(torch.diag(left.diagonal()), right + ridge, 0.0)
        torch.testing.assert_close(part.inverse_diagonal(), truth.inverse_diagonal())
        v = normal(part.d, seed=2)
        torch.testing.assert_close(part.solve(v), truth.solve(v))


def test_wide_layers_are_cut_into_blocks_of_columns() -> None:
    whole = kfac_by_rows(COUNT, labels=observed)(objective_of()).parts[0]
    cut = kfac_by_rows(COUNT, labels=observed, max_columns=7)(objective_of()).parts[0]
    assert isinstance(whole, KroneckerRows) and isinstance(cut, KroneckerRows)
    assert cut.blocks.shape == (3, 6, 6)  # 18 columns in three blocks of at most seven
    torch.testing.assert_close(cut.blocks[1], whole.blocks[0, 6:12, 6:12])
    torch.testing.assert_close(cut.diagonal(), whole.diagonal())


def test_removed_weights_are_left_out() -> None:
    objective = objective_of()
    keep = torch.ones(objective.space.d, dtype=torch.bool)
    keep[5:90:3] = False
    space = objective.space.restrict(keep)
    smaller = objective.at(objective.weights[keep], space)
    fisher = kfac_by_rows(COUNT, labels=observed)(smaller)
    assert fisher.d == int(keep.sum())


def test_directions_need_no_labels() -> None:
    unlabelled = Objective.from_model(network(), [(normal(COUNT, 2, 4, 4, seed=1), None)])
    fisher = gauss_newton(kfac_by_rows(COUNT, labels=observed), 1)(unlabelled)
    assert bool(torch.isfinite(fisher.inverse_diagonal()).all())


def test_a_layer_that_no_input_reaches_costs_next_to_nothing() -> None:
    batches = [(torch.zeros(COUNT, 2, 4, 4, dtype=torch.float64), torch.arange(COUNT) % 3)]
    fisher = kfac_by_rows(COUNT, labels=observed)(Objective.from_model(network(), batches))
    assert bool(torch.isfinite(fisher.inverse_diagonal()).all())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"ridge": 0.0}, "ridge is 0.0"), ({"max_columns": 0}, "max_columns is 0")],
)
def test_bad_settings_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(WoodburyError, match=sentence):
        kfac_by_rows(COUNT, **options)
