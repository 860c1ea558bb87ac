"""Senseless calls that `make chaos` found: one sentence each, in place of a raw error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import woodbury
from woodbury import Objective, Pruner, WoodburyError
from woodbury.estimation.engines import one_engine
from woodbury.fisher import Window
from woodbury.inspection.settings_tried import sensitivity
from woodbury.model.peeking import batches_for_step
from woodbury.pruning.refit.with_refit import WithRefit
from woodbury.pruning.schedule import check_sparsity
from woodbury.pruning.staged import run_stages
from woodbury.training.finetuning import finetune

MODEL = nn.Linear(3, 4)
INPUTS, LABELS = torch.randn(20, 3), torch.arange(20) % 4
PRUNER = Pruner(woodbury.mfac(20, 1e-2))


def objective() -> Objective:
    return Objective.from_model(MODEL, [(INPUTS, LABELS)])


def tune_nothing() -> None:
    optimizer = torch.optim.SGD(MODEL.parameters(), lr=0.1)
    finetune(nn.ReLU(), optimizer, [(INPUTS, LABELS % 3)], range(1, 2))


CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "a name that no tensor has": (
        lambda: woodbury.scopes.consecutive(2).obstacle(objective().space, "quick"),
        "no tensor 'quick'",
    ),
    "a name that is a list": (
        lambda: woodbury.scopes.consecutive(2).obstacle(
            objective().space,
            [1],  # type: ignore[arg-type]
        ),
        r"no tensor \[1\]",
    ),
    "columns that are no indices": (
        lambda: woodbury.fisher.LowRank(torch.ones(1, 3), 1.0).whitened(torch.tensor([0.5])),
        "give int64 indices",
    ),
    "columns in two dimensions": (
        lambda: woodbury.fisher.LowRank(torch.ones(1, 3), 1.0).whitened(torch.tensor([[0]])),
        r"columns has the shape \(1, 1\)",
    ),
    "a column that is not there": (
        lambda: woodbury.fisher.LowRank(torch.ones(1, 3), 1.0).whitened(torch.tensor([3])),
        r"must lie in \[0, 3\)",
    ),
    "a device of a large number": (
        lambda: Window(4, 3, device=2**70),  # type: ignore[arg-type]
        "give a torch.device",
    ),
    "a module in the place of an estimate": (lambda: Pruner(MODEL), "fisher is a Linear"),
    "a module in the place of batches": (
        lambda: batches_for_step(nn.ReLU(), 0),  # type: ignore[arg-type]
        "calibration is a ReLU",
    ),
    "an engine that is no name": (
        lambda: one_engine([{"a": 1}]).__enter__(),  # type: ignore[list-item]
        "engine is .*: give one of",
    ),
    "rows without values": (
        lambda: woodbury.MFAC(MODEL.parameters(), window=4, device="meta"),
        "where rows have no values",
    ),
    "a lazy layer": (
        lambda: Objective.from_model(
            nn.Sequential(MODEL, nn.LazyLinear(2)), [(INPUTS, LABELS)], space=objective().space
        ),
        "layers are lazy",
    ),
    "more steps than anyone waits for": (lambda: woodbury.Refit(steps=10**12), "from 1 to 1,000"),
    "nothing to train": (tune_nothing, "does not depend on the chosen weights to train"),
    "one label for all": (
        lambda: objective().check_mean(INPUTS, torch.tensor(1)),
        "refuses a single sample",
    ),
    "a module as a closure": (
        lambda: woodbury.MFAC(MODEL.parameters(), window=4).step(MODEL),  # type: ignore[arg-type]
        "The closure of the step fails",
    ),
    "a module after each stage": (
        lambda: run_stages(PRUNER, objective(), [0.5], after=MODEL),
        "The function `after` fails",
    ),
    "a module that makes a Fisher": (
        lambda: WithRefit.around(PRUNER, objective(), reuse=MODEL)(objective(), 0.5),
        "What makes a Fisher of the rows",
    ),
    "more directions than memory": (
        lambda: woodbury.gauss_newton(woodbury.mfac(8), mc_samples=10**12)(objective()),
        "give fewer mc_samples or rows",
    ),
    "more rows than memory": (
        lambda: sensitivity(objective(), [(INPUTS, LABELS)], count=10**12),
        "count|samples|rows",
    ),
    "a complex sparsity": (
        lambda: check_sparsity(torch.tensor(0.5 + 1j)),  # type: ignore[arg-type]
        "sparsity is",
    ),
    "an array as a dtype": (
        lambda: Window(4, 3, 1e-2, dtype=torch.arange(3).numpy()),  # type: ignore[arg-type]
        "dtype is array",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_senseless_call_is_one_sentence(name: str) -> None:
    call, said = CALLS[name]
    with pytest.raises(WoodburyError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_gradient_of_whole_numbers_is_a_gradient() -> None:
    keep = torch.tensor([True, True, False])
    diagonal = woodbury.fisher.Diagonal(torch.ones(3), 1.0)
    step = diagonal.compensate(keep, torch.zeros(3), torch.ones(3, dtype=torch.bool))
    assert step.tolist() == [-0.5, -0.5]
