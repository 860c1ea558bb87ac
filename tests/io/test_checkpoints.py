"""Checkpoints: every usual wrapping is read, and what does not fit is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from woodbury.errors import WoodburyError
from woodbury.io.checkpoints import load_state_dict_checked, read_checkpoint
from woodbury.io.sparse_files import save_sparse

STATE = {"weight": torch.eye(3), "bias": torch.arange(3.0)}
PARALLEL = {f"module.{name}": tensor for name, tensor in STATE.items()}


@pytest.mark.parametrize(
    "content",
    [STATE, PARALLEL, {"state_dict": STATE, "epoch": 3}, {"model": PARALLEL}],
    ids=["plain", "parallel", "with an epoch", "model and parallel"],
)
def test_wrappings_of_torch_files_are_taken_off(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    weights = read_checkpoint(tmp_path / "model.pt")
    assert all(torch.equal(weights[name], STATE[name]) for name in weights | STATE)


def test_safetensors_are_read_dense_or_sparse(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "dense.safetensors")
    save_sparse(tmp_path / "sparse.safetensors", STATE)
    for name in ("dense", "sparse"):
        weights = read_checkpoint(str(tmp_path / f"{name}.safetensors"))
        assert all(torch.equal(weights[key], STATE[key]) for key in weights | STATE)


def test_files_that_hold_no_state_dict_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with pytest.raises(WoodburyError, match=r"There is no file .*model\.pt: check the path"):
        read_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(WoodburyError, match="holds no state dict"):
        read_checkpoint(path)
    torch.save(nn.Linear(2, 2), path)  # would run code when it is read
    with pytest.raises(WoodburyError, match=r"no plain state dict \(.*\): save it with"):
        read_checkpoint(path)
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(WoodburyError, match=r"is truncated .*\): save it with") as refusal:
        read_checkpoint(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ({"weight": STATE["weight"]}, "w.pt lacks 'bias', which the model has: is it of another"),
        ({**STATE, "scale": torch.ones(3)}, "w.pt has 'scale', which the model lacks: is it of"),
        ({**STATE, "bias": torch.ones(4)}, r"'bias' has shape \(4,\) in w.pt and \(3,\) in the"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_change_nothing(
    weights: dict[str, torch.Tensor], sentence: str
) -> None:
    model = nn.Linear(3, 3)
    before = model.weight.detach().clone()
    with pytest.raises(WoodburyError, match=sentence):
        load_state_dict_checked(model, weights, "w.pt")
    assert torch.equal(model.weight, before)


def test_weights_that_fit_are_copied() -> None:
    model = nn.Linear(3, 3)
    load_state_dict_checked(model, STATE, "w.pt")
    assert torch.equal(model.weight, STATE["weight"]) and torch.equal(model.bias, STATE["bias"])


def test_no_flipped_bit_of_the_values_passes(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    weight = torch.arange(64.0)
    torch.save({"weight": weight}, path)
    whole = path.read_bytes()
    start = whole.index(weight.numpy().tobytes())
    for offset in (0, 7, 100, 255):
        damaged = bytearray(whole)
        damaged[start + offset] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(WoodburyError, match="is damaged"):
            read_checkpoint(path)
