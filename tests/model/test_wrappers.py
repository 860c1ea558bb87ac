"""DataParallel, DistributedDataParallel and torch.compile are seen through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

import woodbury


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(16, 6, generator=generator), torch.arange(16) % 3) for _ in range(4)]


@contextmanager
def one_rank(folder: Path) -> Iterator[None]:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/ranks", rank=0, world_size=1
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": DataParallel,
    "DDP": DistributedDataParallel,
    "compiled": lambda model: torch.compile(model, backend="eager"),  # type: ignore[return-value]
    "DDP of compiled": lambda model: DistributedDataParallel(
        torch.compile(model, backend="eager")  # type: ignore[arg-type]
    ),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=list(WRAPPERS))
def test_a_wrapped_model_is_pruned_as_the_bare_one(
    wrap: Callable[[nn.Module], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare, inside = network(), network()
    with one_rank(tmp_path):
        expected = woodbury.prune(bare, data(), 0.5)
        model = wrap(inside)
        # A forward pass of the wrapper would wait for the other ranks.
        monkeypatch.setattr(type(model), "forward", None)
        found = woodbury.prune(model, data(), 0.5)
        assert woodbury.recalibrate(model, data()) == woodbury.recalibrate(bare, data())
        names = dict(model.named_parameters())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        woodbury.Preconditioner(optimizer, model, woodbury.kfac(32, 0.1), data())
        hold = woodbury.hold_zeros(optimizer, model, found.objective.space)
        by_their_names = {name: parameter != 0 for name, parameter in names.items()}
        assert woodbury.hold_zeros(optimizer, model, by_their_names).removed.keys()
        assert woodbury.costs.flops(model, data()[0][0]) == woodbury.costs.flops(bare, data()[0][0])
    assert len(hold.removed) == 2
    assert list(found.objective.space.shapes) == ["0.weight", "3.weight"]
    assert torch.equal(found.keep, expected.keep)
    assert all(torch.equal(inside.state_dict()[k], v) for k, v in bare.state_dict().items())


def test_gradual_on_a_wrapped_model() -> None:
    model = DataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradual = woodbury.Gradual(model, optimizer, data(), 0.5, end=4, steps=2)
    for inputs, target in data():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), target).backward()
        optimizer.step()
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    assert gradual.sparsity == 0.5
    assert sum(int((weight == 0).sum()) for weight in weights) == gradual.space.n // 2
