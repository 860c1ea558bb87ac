"""The optimizers of accelerate and schedulefree: pruned weights are zero at the end of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

import woodbury
from woodbury.errors import WoodburyError
from woodbury.training.gradual import Gradual
from woodbury.training.masks import hold_zeros

INPUTS = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 3
BATCHES = [(INPUTS[i : i + 8], LABELS[i : i + 8]) for i in range(0, 24, 8)]
PRUNER = woodbury.Pruner(woodbury.mfac(24, 1e-2))

SCHEDULE_FREE = (
    *("SGDScheduleFree", "AdamWScheduleFree", "RAdamScheduleFree"),
    *("SGDScheduleFreeReference", "AdamWScheduleFreeReference", "AdamWScheduleFreePaper"),
)
OF_CLOSURES = ("SGDScheduleFreeClosure", "AdamWScheduleFreeClosure", "RAdamScheduleFreeClosure")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def zeros(model: nn.Module) -> float:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    return sum(int((p == 0).sum()) for p in matrices) / sum(p.numel() for p in matrices)


def train(model: nn.Module, optimizer: Any, *, closure: bool = False, times: int = 3) -> None:
    for inputs, labels in BATCHES * times:

        def loss(inputs: Any = inputs, labels: Any = labels) -> Any:
            optimizer.zero_grad()
            found = nn.functional.cross_entropy(model(inputs), labels)
            found.backward()
            return found

        if closure:
            optimizer.step(loss)
        else:
            loss()
            optimizer.step()


@pytest.mark.parametrize("name", [*SCHEDULE_FREE, *OF_CLOSURES])
@pytest.mark.parametrize("way", ["Gradual", "hold_zeros"])
def test_schedulefree_keeps_zeros(name: str, way: str) -> None:
    schedulefree = pytest.importorskip("schedulefree", reason="schedulefree is not installed")
    kind = getattr(schedulefree, name)
    closure = name in OF_CLOSURES
    model = network()
    if way == "hold_zeros":
        woodbury.prune(model, BATCHES, 0.5, pruner=PRUNER)
    optimizer = kind(model.parameters(), lr=0.05, weight_decay=0.1)
    if not closure:
        optimizer.train()
    if way == "hold_zeros":
        hold_zeros(optimizer, model)
    else:
        Gradual(model, optimizer, BATCHES, 0.5, start=3, end=6, steps=2, pruner=PRUNER)
    train(model, optimizer, closure=closure)
    assert zeros(model) == 0.5
    if not closure:
        optimizer.eval()
        assert zeros(model) == 0.5
        optimizer.train()
        assert zeros(model) == 0.5


@pytest.mark.parametrize("name", ["ScheduleFreeWrapper", "ScheduleFreeWrapperReference"])
def test_what_wraps_any_optimizer_is_refused_and_the_one_inside_will_do(name: str) -> None:
    schedulefree = pytest.importorskip("schedulefree", reason="schedulefree is not installed")
    model = network()
    woodbury.prune(model, BATCHES, 0.5, pruner=PRUNER)
    inside = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = getattr(schedulefree, name)(inside, momentum=0.9)
    with pytest.raises(WoodburyError, match=f"A {name} around an optimizer may move weights"):
        hold_zeros(wrapper, model)
    with pytest.raises(WoodburyError, match=f"A {name} around an optimizer may move weights"):
        Gradual(model, wrapper, BATCHES, 0.5, end=4, steps=2, pruner=PRUNER)
    hold_zeros(inside, model)
    wrapper.train()
    train(model, wrapper)
    wrapper.eval()
    assert zeros(model) == 0.5


@pytest.fixture
def accelerator(request: pytest.FixtureRequest) -> Iterator[Any]:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield accelerate.Accelerator(cpu=True, **request.param)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    "accelerator",
    [{}, {"gradient_accumulation_steps": 2}, {"mixed_precision": "bf16"}],
    indirect=True,
    ids=["plain", "accumulating", "bfloat16"],
)
@pytest.mark.parametrize("way", ["Gradual", "hold_zeros"])
def test_accelerate_keeps_zeros(accelerator: Any, way: str) -> None:
    model = network()
    if way == "hold_zeros":
        woodbury.prune(model, BATCHES, 0.5, pruner=PRUNER)
    adam = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    prepared, optimizer = accelerator.prepare(model, adam)
    accumulates = accelerator.gradient_accumulation_steps > 1
    gradual = None
    if way == "hold_zeros":
        hold_zeros(optimizer, prepared)
    else:
        gradual = Gradual(prepared, optimizer, BATCHES, 0.5, start=2, end=4, steps=2, pruner=PRUNER)
    before = model[2].bias.detach().clone()
    for inputs, labels in BATCHES * 4:
        with accelerator.accumulate(prepared) if accumulates else nullcontext():
            accelerator.backward(nn.functional.cross_entropy(prepared(inputs), labels))
            accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    assert zeros(model) == 0.5 and not torch.equal(model[2].bias, before)
    if gradual is not None:
        assert gradual.step == (6 if accumulates else 12)
