"""A model that draws random numbers in eval mode moves nobody's sequence of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import woodbury
from woodbury.estimation import hessian_products
from woodbury.evaluation import Method, compare
from woodbury.model.objective import Objective
from woodbury.pruning import LayerByLayer


class Noise(nn.Module):
    """Adds noise at all times, and draws from NumPy and Python too, as augmentation does."""

    def forward(self, x: Tensor) -> Tensor:
        numpy.random.rand()  # noqa: NPY002
        random.random()
        return x + 0.01 * torch.randn(x.shape[1:])


def network() -> nn.Module:
    layers = nn.Linear(6, 8), Noise(), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
    return nn.Sequential(*layers).eval()


BATCHES = [
    (torch.linspace(-1, 1, 96).view(16, 6) ** power, torch.arange(16) % 3) for power in (1, 2)
]
INPUTS = BATCHES[0][0]


def objective() -> Objective:
    return Objective.from_model(network(), BATCHES)


def pruned(given: Objective) -> Objective:
    return woodbury.Pruner(woodbury.mfac(16))(given, 0.5).objective


def laplace(given: Objective) -> woodbury.Laplace:
    return woodbury.Laplace(woodbury.mfac(16)(given), given)


def gradual(given: Objective) -> woodbury.Gradual:
    optimizer = torch.optim.SGD(given.model.parameters(), 0.1)
    return woodbury.Gradual(given.model, optimizer, BATCHES, 0.5, end=2, every=1)


ENTRIES: dict[str, Callable[[Objective], Any]] = {
    "mfac": woodbury.mfac(16),
    "woodfisher": woodbury.woodfisher(16, 4),
    "diagonal_fisher": woodbury.diagonal_fisher(16),
    "hessian_diagonal": woodbury.hessian_diagonal(16),
    "kfac": woodbury.kfac(16, skip_unknown=True),
    "kfac_by_rows": woodbury.estimation.kfac_by_rows(16),
    "gauss_newton": woodbury.gauss_newton(woodbury.mfac(16), 2),
    "hessian_products": lambda o: hessian_products(o, torch.ones(o.space.d), 16),
    "Objective.loss": lambda o: o.loss(),
    "Pruner": pruned,
    "Refit": lambda o: woodbury.Refit()(pruned(o), o),
    "LayerByLayer": lambda o: LayerByLayer()(pruned(o), o),
    "prune": lambda o: woodbury.prune(o.model, BATCHES, 0.5),
    "plan": lambda o: woodbury.plan(o.model, BATCHES, 0.5),
    "compare": lambda o: compare(
        {"magnitude": Method(woodbury.Pruner(woodbury.mfac(16)))},
        [0.5],
        [0],
        lambda _: o,
        lambda _: 1.0,
    ),
    "inspect": lambda o: woodbury.inspect(o.model, BATCHES),
    "Gradual": gradual,
    "recalibrate": lambda o: woodbury.recalibrate(o.model, BATCHES),
    "influence": lambda o: woodbury.influence(o.model, BATCHES, BATCHES),
    "Laplace.with_best_prior": lambda o: laplace(o).with_best_prior(),
    "Laplace.with_prior_chosen_on": lambda o: laplace(o).with_prior_chosen_on(BATCHES),
    "Laplace.probabilities": lambda o: laplace(o).probabilities(INPUTS),
    "Laplace.outputs": lambda o: laplace(o).outputs(o.weights[None], INPUTS),
    "flops": lambda o: woodbury.costs.flops(o.model, INPUTS)(o.space),
}

WITH_EXTRAS: dict[str, tuple[str, Callable[[Objective, Path], Any]]] = {
    "accelerate": ("numba", lambda o, _: woodbury.accelerate(o.model, INPUTS)),
    "latency": ("numba", lambda o, _: woodbury.latency(o.model, INPUTS)),
    "compact": ("torch_pruning", lambda o, _: woodbury.compact(o.model, INPUTS)),
    "coupled_channels": ("torch_pruning", lambda o, _: woodbury.coupled_channels(o.model, INPUTS)),
    "export_onnx": (
        "onnx",
        lambda o, folder: woodbury.export_onnx(o.model, INPUTS, folder / "x.onnx", tolerance=1.0),
    ),
}


def draws() -> list[float]:
    return [random.random(), numpy.random.rand(), float(torch.rand(()))]  # noqa: NPY002


def assert_keeps_the_sequence(entry: Callable[[], Any]) -> None:
    random.seed(0)
    numpy.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    want = draws()
    random.seed(0)
    numpy.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    entry()
    assert draws() == want


def test_the_model_draws_where_nothing_is_kept() -> None:
    given = objective()
    with pytest.raises(AssertionError):
        assert_keeps_the_sequence(lambda: given.model(INPUTS))


@pytest.mark.parametrize("name", ENTRIES)
def test_what_the_user_draws_next_is_what_it_would_have_been(name: str) -> None:
    given = objective()
    assert_keeps_the_sequence(lambda: ENTRIES[name](given))


@pytest.mark.parametrize("name", WITH_EXTRAS)
def test_the_same_of_extras(name: str, tmp_path: Path) -> None:
    package, entry = WITH_EXTRAS[name]
    pytest.importorskip(package)
    given = objective()
    assert_keeps_the_sequence(lambda: entry(given, tmp_path))
