"""Training over ranks: Gradual, Preconditioner, recalibrate and compare, and sharded models."""

from __future__ import annotations

import copy
import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.processes import on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import woodbury
from woodbury import Gradual, Objective, Preconditioner, Pruner
from woodbury.errors import RankError, WoodburyError, WrongType
from woodbury.evaluation.comparison import compare
from woodbury.evaluation.methods import Method
from woodbury.model.batchnorm import recalibrate
from woodbury.model.sharded import is_sharded, whole_copy
from woodbury.training.masks import hold_zeros

SAMPLES = 48
STEPS = 4


def network() -> nn.Module:
    """Of layers that two ranks do not divide evenly, one with a hook and one tied."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 7),
        nn.BatchNorm1d(7),
        nn.Tanh(),
        nn.Sequential(nn.Linear(7, 7), nn.Tanh()),
        nn.Linear(7, 3),
    ).double()
    generator = torch.Generator().manual_seed(4)
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    norm.running_mean.normal_(generator=generator)
    return model.eval()


def data(size: int = 12, seed: int = 1) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(SAMPLES, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (SAMPLES,), generator=generator)
    return list(zip(inputs.split(size), labels.split(size), strict=True))


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for layer in (model[3], model[0]):  # type: ignore[index]
        fully_shard(layer)
    fully_shard(model)
    return model


def full(model: nn.Module) -> dict[str, Tensor]:
    return {name: each.detach() for name, each in whole_copy(model).state_dict().items()}


def trained(model: nn.Module, wrapped: nn.Module, own: slice, kind: str) -> dict[str, Any]:
    """Some steps in which something of woodbury takes part."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    gradual = None
    if kind == "kfac":
        Preconditioner(optimizer, wrapped, woodbury.kfac(SAMPLES, 0.1), data(), every=2)
    elif kind == "rows":
        Preconditioner(optimizer, wrapped, woodbury.mfac(SAMPLES, 0.1), data(), every=2)
    else:
        pruner = None if kind == "as it comes" else Pruner(woodbury.mfac(SAMPLES, 1e-2))
        gradual = Gradual(
            wrapped,
            optimizer,
            data(),
            0.6,
            end=STEPS - 1,
            steps=2,
            pruner=pruner,
            score=lambda objective: -objective.loss(),
            held_back=data(seed=3),
        )
    wrapped.eval()  # a BatchNorm sees other batches on each rank in training
    for inputs, target in data()[:STEPS]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(wrapped(inputs[own]), target[own]).backward()
        optimizer.step()
    found: dict[str, Any] = {"weights": full(model)}
    if gradual is not None:
        found["sparsity"] = gradual.sparsity
        found["history"] = gradual.history
    return found


def trained_in_all_ways(rank: int, size: int) -> dict[str, Any]:
    own = slice(None) if size == 1 else slice(6 * rank, 6 * rank + 6)
    found: dict[str, Any] = {}
    for kind in ("as it comes", "mfac", "kfac", "rows"):
        model = network()
        wrapped = model if size == 1 else DistributedDataParallel(model)
        found[kind] = trained(model, wrapped, own, kind)
    for kind in ("as it comes", "mfac"):
        model = network() if size == 1 else sharded(network())
        found[f"sharded, {kind}"] = trained(model, model, own, kind)
    return found


def pruned_sharded(size: int) -> dict[str, Any]:
    model = network() if size == 1 else sharded(network())
    if size > 1:
        model(data()[0][0])  # leaves whole tensors at the root
    pruned = woodbury.prune(model, data(), 0.6, pruner=Pruner(woodbury.mfac(SAMPLES, 1e-2)))
    output = model(data()[0][0]).detach()
    assert is_sharded(model) == (size > 1) and not is_sharded(pruned.objective.model)
    return {"weights": full(model), "pruned": pruned.weights, "output": output}


def methods() -> dict[str, Method]:
    zero = Pruner(None, woodbury.saliencies.magnitude, woodbury.updates.zero)
    return {
        "mfac": Method(Pruner(woodbury.mfac(SAMPLES, 1e-2))),
        "magnitude": Method(zero),
        "two stages": Method(Pruner(woodbury.kfac(SAMPLES, 1e-2)), stages=2),
    }


def compared() -> list[Any]:
    def evaluate(objective: Objective) -> float:
        model = copy.deepcopy(objective.model)
        recalibrate(model, data())  # of this rank alone, as its cell is
        return -objective.loss()

    def dense(seed: int) -> Objective:
        space = woodbury.ParameterSpace.for_pruning(network())
        return Objective.from_model(network(), data(seed=seed), space=space)

    results = compare(methods(), [0.4, 0.6], [0, 1], dense, evaluate)
    return [(r.method, r.sparsity, r.seed, r.loss_after, r.predicted) for r in results]


def compared_slowly(rank: int) -> int:
    """How many results come where one rank takes longer than the group's time-out."""
    group = dist.new_group(timeout=timedelta(seconds=6))
    slept = []

    def evaluate(objective: Objective) -> float:
        if rank and not slept:
            slept.append(9)
            time.sleep(9)
        return 0.0

    model, zero = network(), Pruner(None, woodbury.saliencies.magnitude, woodbury.updates.zero)
    methods = {"magnitude": Method(zero)}
    dense = Objective.from_model(model, data())
    results = compare(methods, [0.5], [0, 1, 2, 3], lambda seed: dense, evaluate, group=group)
    return len(results)


def recalibrated(rank: int, size: int) -> dict[str, Any]:
    """The statistics of 5 batches, the last of a single sample, in three ways."""
    samples = [(inputs, None) for inputs, _ in data(12)]
    samples = [*samples, (samples[0][0][:1], None)]
    same, own = network(), network()
    shard = network() if size == 1 else sharded(network())
    recalibrate(same, samples)
    recalibrate(own, samples[:4] if size == 1 else iter(samples[2 * rank : 2 * rank + 2]))
    recalibrate(shard, samples)
    models = {"same": same, "own": own, "sharded": shard}
    return {name: dict(model.named_buffers()) for name, model in models.items()}


def refused(rank: int) -> list[str]:
    """What cannot be done, in a sentence each."""
    said = []
    model = sharded(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("a", "b"))
    attempts = [
        lambda: woodbury.prune(model, data(), 0.5, group=woodbury.ALONE),
        lambda: woodbury.prune(network(), data(), 0.5, group=mesh),
        lambda: hold_zeros(optimizer, model),
        lambda: recalibrate(network() if rank else nn.Sequential(network(), network()), data()),
    ]
    for attempt in attempts:
        with pytest.raises((WoodburyError, WrongType, RankError)) as refusal:
            attempt()
        said.append(str(refusal.value))
    return said


def by_mesh() -> Tensor:
    mesh = init_device_mesh("cpu", (2,))
    pruner = Pruner(woodbury.mfac(SAMPLES, 1e-2))
    return woodbury.prune(network(), data(), 0.6, pruner=pruner, group=mesh).weights


def alone_in_ddp(rank: int) -> bool:
    """One rank prunes a wrapped network with BatchNorm while the other does nothing."""
    wrapped = DistributedDataParallel(network().train())
    if rank:
        return True
    pruner = Pruner(woodbury.mfac(SAMPLES, 1e-2))
    woodbury.prune(wrapped, data(), 0.6, pruner=pruner, group=woodbury.ALONE)
    return True


def everything(rank: int, size: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "trained": trained_in_all_ways(rank, size),
        "pruned": pruned_sharded(size),
        "compared": compared(),
        "recalibrated": recalibrated(rank, size),
    }
    if size > 1:
        found["alone"] = alone_in_ddp(rank)
        found["by mesh"] = by_mesh()
        found["slow"] = compared_slowly(rank)
        found["refused"] = refused(rank)
    return found


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return on_ranks(2, tmp_path_factory.mktemp("two"), everything, 2)


@pytest.fixture(scope="module")
def on_one(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return on_ranks(1, tmp_path_factory.mktemp("one"), everything, 1)[0]


def close(a: Any, b: Any) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name] == 0, b[name] == 0), name
        torch.testing.assert_close(a[name], b[name], rtol=1e-7, atol=1e-9)


KINDS = ("as it comes", "mfac", "kfac", "rows", "sharded, as it comes", "sharded, mfac")


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_that_of_one_process(kind: str, on_one: Any, on_two: list[Any]) -> None:
    for found in on_two:
        assert not isinstance(found, Exception), found
        mine, alone = found["trained"][kind], on_one["trained"][kind]
        close(mine["weights"], alone["weights"])
        assert mine.get("sparsity") == alone.get("sparsity")
        for step, other in zip(mine.get("history", ()), alone.get("history", ()), strict=True):
            assert step.predicted == pytest.approx(other.predicted, rel=1e-6)
            assert step.after == pytest.approx(other.after, rel=1e-9)
            assert step.predicted_interval.mean == pytest.approx(other.predicted_interval.mean)


def test_something_was_pruned(on_one: Any) -> None:
    for kind in ("as it comes", "mfac"):
        found = on_one["trained"][kind]
        assert found["sparsity"] == pytest.approx(0.6, abs=0.01)
        assert len(found["history"]) == 2


def test_sharded_network_is_pruned_and_works_on(on_one: Any, on_two: list[Any]) -> None:
    alone = on_one["pruned"]
    for found in on_two:
        close(found["pruned"]["weights"], alone["weights"])
        torch.testing.assert_close(found["pruned"]["output"], alone["output"])
        assert torch.equal(found["pruned"]["pruned"], on_two[0]["pruned"]["pruned"])


def test_comparison_is_that_of_one_process(on_one: Any, on_two: list[Any]) -> None:
    assert len(on_one["compared"]) == 12
    for found in on_two:
        assert found["compared"] == on_one["compared"]  # each cell is computed by one rank


@pytest.mark.parametrize("way", ["same", "own", "sharded"])
def test_statistics_are_those_of_all_batches(way: str, on_one: Any, on_two: list[Any]) -> None:
    alone = on_one["recalibrated"][way]
    assert not torch.equal(
        alone["1.running_mean"], dict(network().named_buffers())["1.running_mean"]
    )
    for found in on_two:
        mine = found["recalibrated"][way]
        assert mine.keys() == alone.keys()
        for name, buffer in mine.items():
            torch.testing.assert_close(buffer, alone[name], rtol=1e-12, atol=1e-12)
            assert torch.equal(buffer, on_two[0]["recalibrated"][way][name])


def test_a_mesh_is_a_group_and_one_rank_may_be_alone(on_two: list[Any]) -> None:
    for found in on_two:
        torch.testing.assert_close(found["by mesh"], on_two[0]["pruned"]["pruned"])
        assert found["alone"]


def test_a_comparison_may_take_longer_than_the_time_out(on_two: list[Any]) -> None:
    assert [found["slow"] for found in on_two] == [4, 4]


def test_what_cannot_be_done_is_said(on_two: list[Any]) -> None:
    for found in on_two:
        alone, mesh, hold, norms = found["refused"]
        assert "sharded over ranks" in alone and "group=woodbury.ALONE" in alone
        assert "2 dimensions" in mesh
        assert "give keep" in hold
        assert "the number of BatchNorms: 2 on rank 0, 1 on rank 1" in norms
