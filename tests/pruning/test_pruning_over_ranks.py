"""prune over ranks: the same weights on every rank, and for any number of them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.processes import on_ranks
from torch import Tensor, nn

import woodbury
from woodbury import Pruner
from woodbury.estimation.recipes import gauss_newton
from woodbury.linalg.ranks import Ranks
from woodbury.pruning.refit.layer_by_layer import LayerByLayer, WithLayers

SAMPLES = 96


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 5),
    )


def data() -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(SAMPLES, 2, 8, 8, generator=generator)
    labels = torch.randint(5, (SAMPLES,), generator=generator)
    return list(zip(images.split(10), labels.split(10), strict=True))


PRUNERS = {
    "diagonal": Pruner(woodbury.diagonal_fisher(SAMPLES, 1e-3)),
    "mfac": Pruner(woodbury.mfac(SAMPLES, 1e-3)),
    "mfac, independent": Pruner(woodbury.mfac(40, 1e-3), update=woodbury.updates.independent),
    "mfac, blocks of rows": Pruner(woodbury.mfac(24, 1e-3, block=400)),
    "woodfisher": Pruner(woodbury.woodfisher(SAMPLES, 50, 1e-3)),
    "sampled": Pruner(woodbury.mfac(32, 1e-3, labels=woodbury.estimation.sampled)),
    "batches": Pruner(woodbury.mfac(8, 1e-3, batch=4)),
    "woodtaylor": Pruner(woodbury.mfac(SAMPLES, 1e-2), first_order=True),
    "gauss_newton": Pruner(gauss_newton(woodbury.mfac(2 * SAMPLES, 1e-3), 2)),
    "kfac": Pruner(woodbury.kfac(SAMPLES, 1e-3)),
    "kfac by rows": Pruner(woodbury.estimation.kfac_by_rows(SAMPLES)),
    "units": Pruner(woodbury.mfac(SAMPLES, 1e-3), unit=woodbury.units.block(4)),
    "channels": Pruner(
        woodbury.mfac(SAMPLES, 1e-3),
        unit=woodbury.units.input_channels,
    ),
}


def recipe(name: str, model: nn.Module) -> Any:
    if name != "layers":
        return PRUNERS[name]
    dense = woodbury.Objective.from_model(
        copy.deepcopy(model), data(), space=woodbury.ParameterSpace.for_pruning(model)
    )
    return WithLayers(PRUNERS["kfac by rows"], dense, LayerByLayer(passes=2))


def pruned(name: str) -> dict[str, Any]:
    model = network()
    found = woodbury.prune(model, data(), 0.7, pruner=recipe(name, model))
    return {"weights": found.weights, "predicted": found.predicted}


def as_it_comes(
    effort: woodbury.presets.Effort = woodbury.presets.standard, sparsity: float = 0.7
) -> dict[str, Any]:
    found = woodbury.prune(network(), data(), sparsity, effort=effort)
    return {"weights": found.weights, "predicted": found.predicted, "settings": found.settings}


def counted() -> dict[str, int]:
    """What one rank sends in a step of M-FAC, and what it must send at least."""
    with Ranks.of(None).started("a step that is counted") as ranks:
        found = woodbury.prune(network(), data(), 0.7, pruner=PRUNERS["mfac"])
        return {"sent": ranks.traffic.sent, "d": found.objective.space.n, "size": ranks.size}


def planned_and_fitted() -> dict[str, Any]:
    """A plan, and fits that are called by themselves."""
    model = network()
    plan = woodbury.plan(model, data(), 0.7)
    space = woodbury.ParameterSpace.for_pruning(model)
    dense = woodbury.Objective.from_model(model, data(), space=space)
    keep = torch.arange(space.d) % 3 > 0
    pruned = dense.at(dense.weights[keep], space.restrict(keep))
    fits = [woodbury.Refit(damping=1e-2), LayerByLayer(approximation=None)]
    return {"stages": plan.stages, "fitted": [fit(pruned, dense).weights for fit in fits]}


def everything(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {name: pruned(name) for name in (*PRUNERS, "layers")}
    found["counted"] = counted()
    found["planned"] = planned_and_fitted()
    found["stages"] = as_it_comes(replace(woodbury.presets.standard, in_turn=None))
    found["in turn"] = as_it_comes()
    found["in turn, to .9"] = as_it_comes(sparsity=0.9)
    return found


@pytest.fixture(scope="module")
def by_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ranks")
    return {count: on_ranks(count, folder / str(count), everything) for count in (1, 3)}


def close(a: Tensor, b: Tensor, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    assert torch.equal(a != 0, b != 0)
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", [*PRUNERS, "layers", "stages", "in turn", "in turn, to .9"])
def test_any_number_of_ranks(name: str, by_ranks: dict[int, list[dict[str, Any]]]) -> None:
    for found in by_ranks.values():
        for one in found:
            assert not isinstance(one, Exception), one
    one = by_ranks[1][0][name]
    for found in by_ranks[3]:
        assert torch.equal(found[name]["weights"], by_ranks[3][0][name]["weights"])
        if name.startswith("in turn"):  # their supports hang on the last bit
            assert torch.equal(found[name]["weights"] != 0, one["weights"] != 0)
        far = name == "in turn, to .9"  # five stages, each from the weights of the one before
        close(found[name]["weights"], one["weights"], *((1e-3, 1e-4) if far else ()))
        assert found[name]["predicted"] == pytest.approx(one["predicted"], rel=1e-3)


def test_rows_are_sent_once_and_little_else(by_ranks: dict[int, list[dict[str, Any]]]) -> None:
    """One all-to-all of the rows, (m, m) and (m,) sums, results of d numbers."""
    for found in by_ranks[3]:
        sent, d = found["counted"]["sent"], found["counted"]["d"]
        rows = SAMPLES / 3 * 4 * d * 2 / 3
        small = 3 * 2 * 8 * SAMPLES**2
        results = 12 * 4 * d * 3
        assert 0.9 * rows < sent < 1.1 * rows + small + results + 20_000


def test_a_plan_and_fits_know_ranks(by_ranks: dict[int, list[dict[str, Any]]]) -> None:
    alone = by_ranks[1][0]["planned"]
    for found in by_ranks[3]:
        assert found["planned"]["stages"] == alone["stages"]
        for one, same in zip(found["planned"]["fitted"], alone["fitted"], strict=True):
            torch.testing.assert_close(one, same, rtol=1e-4, atol=2e-4)
