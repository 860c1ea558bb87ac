"""MFAC over two processes, each with its slice of the window's columns, is MFAC in one."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.optim import MFAC, per_parameter

STEPS = 25
BAD = 5


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(STEPS, 8, 4, generator=generator, dtype=torch.float64)
    return x, x.sin().sum(2, keepdim=True)


def options(case: str, model: nn.Module) -> dict[str, Any]:
    weight = model.get_parameter("0.weight")
    return {
        "whole": {"momentum": 0.9},
        # The last bias has one weight, so that the second rank has none.
        "parameters": {"partition": per_parameter},
        "coupled": {"weight_decay": 0.1, "decoupled": False},
        "masked": {"keep": {weight: torch.arange(20).view(5, 4) % 3 != 0}},
        # A damping so small that the products are repeated in float64.
        "float32": {"dtype": torch.float32, "damping": 1e-6},
    }[case]


CASES = ("whole", "parameters", "coupled", "masked", "float32")


def trained(case: str, part: slice, group: Any, wrap: Any = None) -> dict[str, Any]:
    """Train on the samples `part` of each step; at one step a gradient is NaN."""
    model = net()
    optimizer = MFAC(
        model.parameters(),
        0.02,
        **({"window": 6, "damping": 0.1} | options(case, model)),
        group=group,
    )
    wrapped = model if wrap is None else wrap(model)
    x, y = data()
    for step in range(STEPS):
        optimizer.zero_grad()
        (wrapped(x[step][part]) - y[step][part]).square().mean().backward()
        if step == BAD:
            model[0].bias.grad[0] = float("nan")
        optimizer.step()
    columns = [each["rows"].shape[1] for each in optimizer.state_dict()["windows"]["states"]]
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return {"weights": weights, "columns": columns, "skipped": optimizer.skipped}


def sharded(rank: int, group: Any) -> dict[str, Any]:
    """DTensor parameters, as fully_shard makes them: each rank has its rows of every tensor."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = net()
    mesh = init_device_mesh("cpu", (2,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for parameters, ours in (
        (list(model.parameters()), None),
        ([*model.parameters(), nn.Parameter(torch.ones(2))], group),
    ):
        model(data()[0][0]).sum().backward()
        with pytest.raises(WoodburyError, match="DTensors"):
            MFAC(parameters, window=2, group=ours).step()
    optimizer = MFAC(model.parameters(), 0.02, window=6, damping=0.1, momentum=0.9, group=group)
    x, y = data()
    half = slice(4 * rank, 4 * rank + 4)
    for step in range(STEPS):
        optimizer.zero_grad()
        (model(x[step][half]) - y[step][half]).square().mean().backward()
        if step != BAD:
            optimizer.step()
    weights = torch.cat(
        [parameter.full_tensor().detach().flatten() for parameter in model.parameters()]
    )
    columns = [each["rows"].shape[1] for each in optimizer.state_dict()["windows"]["states"]]
    return {"weights": weights, "columns": columns}


def late_group(group: Any) -> str:
    model = net()
    optimizer = MFAC(model[0].parameters(), window=3, group=group)
    model(data()[0][0]).sum().backward()
    optimizer.step()
    with pytest.raises(WoodburyError) as caught:
        optimizer.add_param_group({"params": list(model[2].parameters())})
    return str(caught.value)


def on_rows(group: Any) -> dict[str, Any]:
    """Several rows per step, the same on all ranks."""
    model = net()
    generator = torch.Generator().manual_seed(5)
    optimizer = MFAC(model.parameters(), 0.02, window=6, damping=0.1, group=group)
    for _ in range(9):
        rows = [
            torch.randn(4, *p.shape, generator=generator, dtype=torch.float64)
            for p in model.parameters()
        ]
        optimizer.step(rows=rows, residuals=torch.arange(4.0))
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return {"weights": weights, "slope": optimizer.slope}


def with_budgets_of_their_own(rank: int, group: Any) -> tuple[int | None, ...]:
    """The window before and after the first step, where the second rank has half the memory."""
    model = net()
    optimizer = MFAC(model.parameters(), group=group, memory=("16 kB", "8 kB")[rank])
    before = optimizer.window
    model(data()[0][0]).sum().backward()
    optimizer.step()
    return before, optimizer.window


def out_of_step(rank: int, group: Any) -> str:
    """The second rank has no gradients at its second step, and nothing to do there."""
    model = net()
    optimizer = MFAC(model.parameters(), window=3, group=group)
    for step in range(2):
        optimizer.zero_grad()
        if (rank, step) != (1, 1):
            model(data()[0][step]).sum().backward()
        if (rank, step) != (0, 1):
            optimizer.step()
    before = model[0].weight.detach().clone()
    model(data()[0][2]).sum().backward()
    with pytest.raises(WoodburyError) as caught:
        optimizer.step()
    assert torch.equal(model[0].weight, before)
    return str(caught.value)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    patience = timedelta(seconds=30)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=patience)
    try:
        from torch.nn.parallel import DistributedDataParallel

        half = slice(4 * rank, 4 * rank + 4)
        results: dict[str, Any] = {
            case: trained(case, half, dist.group.WORLD, DistributedDataParallel) for case in CASES
        }
        results["rows"] = on_rows(dist.group.WORLD)
        results["late"] = late_group(dist.group.WORLD)
        results["step"] = out_of_step(rank, dist.group.WORLD)
        results["budgets"] = with_budgets_of_their_own(rank, dist.group.WORLD)
        results["sharded"] = sharded(rank, dist.group.WORLD)
        torch.save(results, f"{folder}/{rank}.pt")
        dist.barrier()  # none leaves while another still talks to it
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, (str(folder),), nprocs=2)  # type: ignore[attr-defined]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(case: str, ranks: list[dict[str, Any]]) -> None:
    alone = trained(case, slice(0, 8), None)
    first, second = [results[case] for results in ranks]
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if case == "float32" else {"rtol": 1e-9, "atol": 1e-11}
    assert not torch.equal(
        alone["weights"], torch.cat([p.detach().flatten() for p in net().parameters()])
    )
    torch.testing.assert_close(first["weights"], alone["weights"], **tolerance)
    torch.testing.assert_close(second["weights"], first["weights"], rtol=0, atol=0)
    assert alone["skipped"] == first["skipped"] == second["skipped"] == 1


@pytest.mark.parametrize("case", CASES)
def test_each_process_holds_its_own_columns(case: str, ranks: list[dict[str, Any]]) -> None:
    alone = trained(case, slice(0, 8), None)["columns"]
    first, second = [results[case]["columns"] for results in ranks]
    assert [a + b for a, b in zip(first, second, strict=True)] == alone
    assert all(0 <= a - b <= 1 for a, b in zip(first, second, strict=True))


def test_sharded_parameters_train_as_one(ranks: list[dict[str, Any]]) -> None:
    alone = trained("whole", slice(0, 8), None)
    first, second = [results["sharded"] for results in ranks]
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=1e-9, atol=1e-11)
    assert first["columns"][0] + second["columns"][0] == alone["columns"][0]
    assert min(first["columns"][0], second["columns"][0]) > 0


def test_rows_on_two_processes_are_those_on_one(ranks: list[dict[str, Any]]) -> None:
    alone = on_rows(None)
    first, second = [results["rows"] for results in ranks]
    torch.testing.assert_close(first, alone, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(second, first, rtol=0, atol=0)


def test_a_late_group_is_refused_on_ranks(ranks: list[dict[str, Any]]) -> None:
    assert all("before the first step" in results["late"] for results in ranks)


def test_a_rank_that_skips_a_step_is_found_out(ranks: list[dict[str, Any]]) -> None:
    sentences = [results["step"] for results in ranks]
    for step, sentence in zip((2, 3), sentences, strict=True):
        assert f"This rank is at step {step} and another is not" in sentence
    assert all("skip a step on all ranks or on none" in each for each in sentences)


def test_ranks_take_the_smallest_window_that_any_has_room_for(ranks: list[dict[str, Any]]) -> None:
    (first, agreed), (second, also) = [results["budgets"] for results in ranks]
    assert second < first and agreed == also == second
