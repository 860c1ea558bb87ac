"""Scores count samples, not batches, and leave out what is no observation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from support.random import normal
from torch import nn

from woodbury.errors import WoodburyError
from woodbury.evaluation.metrics import accuracy, r_squared
from woodbury.model.likelihood import Likelihood, cross_entropy, squared_error
from woodbury.model.objective import Objective


def problem() -> Objective:
    """A network of three classes, and 64 samples on most of which it is right."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).requires_grad_(False)
    x = normal(64, 6, dtype=torch.float32)
    return Objective.from_model(model, [(x, model(3 * x).argmax(1))])


def test_accuracy_counts_samples_not_batches() -> None:
    objective = problem()
    ((x, y),) = objective.batches
    wrong = torch.cat([y[:60], (y[60:] + 1) % 3])
    whole = accuracy(objective, [(x, wrong)])
    assert accuracy(objective, [(x[:60], wrong[:60]), (x[60:], wrong[60:])]) == pytest.approx(whole)


def test_accuracy_does_not_count_what_is_no_observation() -> None:
    objective = problem()
    [(x, y)] = objective.batches
    right = accuracy(objective, [(x, y)])
    ignored = torch.full_like(y, -100)
    assert accuracy(objective, [(torch.cat([x, x]), torch.cat([y, ignored]))]) == right
    plain = replace(objective, likelihood=Likelihood(cross_entropy.loss))
    assert 0 < accuracy(plain, [(x, y)]) == right
    with pytest.raises(WoodburyError, match="no data"):
        accuracy(objective, [(x, ignored)])


def test_no_data_and_labels_that_do_not_fit_are_refused() -> None:
    objective = problem()
    [(x, y)] = objective.batches
    with pytest.raises(WoodburyError, match="no data to measure the accuracy on"):
        accuracy(objective, [])
    with pytest.raises(WoodburyError, match=r"shape \(64,\) and the labels \(64, 1\): give"):
        accuracy(objective, [(x, y[:, None])])


def test_r_squared_by_its_definition() -> None:
    model = nn.Linear(3, 2).double().requires_grad_(False)
    x, y = normal(20, 3), normal(20, 2, seed=1)
    objective = Objective.from_model(model, [], squared_error)
    error = float((model(x) - y).square().sum())
    truth = 1 - error / float((y - y.mean(0)).square().sum())
    batches = [(x[:15], y[:15]), (x[15:], y[15:])]
    assert r_squared(objective, batches) == pytest.approx(truth)
    assert r_squared(objective, [(x, model(x))]) == pytest.approx(1)
    assert math.isnan(r_squared(objective, [(x, torch.ones(20, 2).double())]))
