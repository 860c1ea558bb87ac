"""Gradual with what accelerate prepares: accumulated steps, checkpoints, zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import woodbury
from woodbury.estimation.layer_gradients import hooked

pytest.importorskip("accelerate", reason="accelerate is not installed")

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

PRUNER = woodbury.Pruner(woodbury.mfac(12, 0.1, engine=hooked))


def made(**settings: Any) -> tuple[Accelerator, Any, Any, Any, woodbury.Gradual]:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, **settings)
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))
    inputs, target = torch.randn(24, 6), torch.arange(24) % 3
    data = DataLoader(TensorDataset(inputs, target), batch_size=4)
    optimizer: Any = torch.optim.Adam(model.parameters(), lr=1e-2)
    model, optimizer, data = accelerator.prepare(model, optimizer, data)
    gradual = woodbury.Gradual(
        model, optimizer, [(inputs, target)], 0.8, start=2, end=6, steps=3, pruner=PRUNER
    )
    accelerator.register_for_checkpointing(gradual)
    return accelerator, model, optimizer, data, gradual


def epochs(count: int, parts: Any) -> None:
    accelerator, model, optimizer, data, _ = parts
    for _ in range(count):
        for inputs, target in data:
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.cross_entropy(model(inputs), target))
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(
    precision: str, tmp_path: Path
) -> None:
    whole = made(mixed_precision=precision)
    epochs(1, whole)  # three steps of two batches each
    assert whole[4].step == 3 and len(whole[4].history) == 1
    whole[0].save_state(str(tmp_path))
    epochs(2, whole)
    resumed = made(mixed_precision=precision)
    resumed[0].load_state(str(tmp_path))
    epochs(2, resumed)
    assert whole[4].sparsity == pytest.approx(0.8, abs=0.02) and whole[4].step == 9
    assert resumed[4].history == whole[4].history
    for name, tensor in whole[1].state_dict().items():
        assert torch.equal(resumed[1].state_dict()[name], tensor), name


def test_an_offloaded_model_is_refused_until_its_weights_are_in_memory() -> None:
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_submodules

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    before = [parameter.clone() for parameter in model.parameters()]
    batches = [(torch.randn(24, 6), torch.arange(24) % 3)]
    cpu_offload(model)
    for call in (woodbury.prune, woodbury.plan):
        with pytest.raises(woodbury.WoodburyError, match=r"'0.weight' is on meta.*remove_hook"):
            call(model, batches, 0.5)
    remove_hook_from_submodules(model)
    assert all(map(torch.equal, before, model.parameters()))
    assert woodbury.prune(model, batches, 0.5).sparsity == 0.5
