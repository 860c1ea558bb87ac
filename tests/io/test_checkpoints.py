"""Checkpoints: every usual wrapping is read, and what does not fit is named."""

from __future__ import annotations

import zipfile
from argparse import Namespace
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


COMPILED = {f"_orig_mod.{name}": tensor for name, tensor in PARALLEL.items()}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        PARALLEL,
        COMPILED,
        {"state_dict": STATE, "epoch": 3},
        {"model": PARALLEL, "args": Namespace(lr=0.1)},
        {"model_state_dict": {f"module.{name}": tensor for name, tensor in COMPILED.items()}},
    ],
    ids=["plain", "parallel", "compiled", "with an epoch", "with options", "many"],
)
def test_wrappings_of_torch_files_are_taken_off(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    model = nn.Linear(3, 3)
    load_state_dict_checked(model, read_checkpoint(tmp_path / "model.pt"), "model.pt")
    assert torch.equal(model.weight, STATE["weight"]) and torch.equal(model.bias, STATE["bias"])


def test_a_prefix_that_the_model_has_itself_stays() -> None:
    inner = nn.Linear(3, 3)
    model = nn.DataParallel(inner)
    load_state_dict_checked(model, PARALLEL, "w.pt")
    assert torch.equal(inner.weight, STATE["weight"])


def test_torch_itself_decides_what_old_files_may_lack(tmp_path: Path) -> None:
    norm = nn.BatchNorm1d(3)
    old = {name: tensor for name, tensor in norm.state_dict().items() if "num" not in name}
    load_state_dict_checked(nn.BatchNorm1d(3), {f"module.{name}": old[name] for name in old}, "w")
    new = norm.state_dict()
    del new["num_batches_tracked"]  # its version says that it should be there
    with pytest.raises(WoodburyError, match="w lacks 'num_batches_tracked'"):
        load_state_dict_checked(nn.BatchNorm1d(3), new, "w")
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    scales = {"weight_g": torch.full((3, 1), 2.0), "weight_v": torch.eye(3)}
    load_state_dict_checked(layer, {"bias": STATE["bias"], **scales}, "w")
    assert torch.equal(layer.weight, 2 * torch.eye(3))


class Scaled(nn.Linear):
    scale = 0.0

    def get_extra_state(self) -> Any:
        return {"scale": self.scale}

    def set_extra_state(self, state: Any) -> None:
        self.scale = state["scale"]


def test_extra_state_is_handed_over(tmp_path: Path) -> None:
    saved = Scaled(3, 3)
    saved.scale = 5.0
    torch.save({"model": saved.state_dict()}, tmp_path / "w.pt")
    model = Scaled(3, 3)
    load_state_dict_checked(model, read_checkpoint(tmp_path / "w.pt"), "w.pt")
    assert model.scale == 5.0
    before = model.weight.detach().clone()
    with pytest.raises(WoodburyError, match=r"w.pt cannot be loaded \(KeyError: 'scale'\)"):
        load_state_dict_checked(model, {**STATE, "_extra_state": {}}, "w.pt")
    assert torch.equal(model.weight, before)
    with pytest.raises(WoodburyError, match=r"w\.pt lacks '_extra_state'"):
        load_state_dict_checked(model, STATE, "w.pt")


def test_a_zip_that_holds_more_than_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(WoodburyError, match=r"damaged \(archive/data.pkl is not torch's\)"):
        read_checkpoint(path)


@pytest.mark.parametrize(("field", "value"), [(10, 8), (38, 0x10)], ids=["method", "folder"])
def test_what_the_directory_of_a_zip_says_is_checked(
    field: int, value: int, tmp_path: Path
) -> None:
    """Torch leaves numbers out that are marked as a folder, and so takes any for them."""
    path = tmp_path / "model.pt"
    torch.save(STATE, path)
    content = bytearray(path.read_bytes())
    entries = [place for place in range(len(content)) if content[place:].startswith(b"PK\1\2")]
    for entry in entries:
        damaged = bytes([*content[: entry + field], value, *content[entry + field + 1 :]])
        path.write_bytes(damaged)
        with pytest.raises(WoodburyError, match=r"damaged .* is not torch's"):
            read_checkpoint(path)


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
        ({**STATE, "bias": torch.ones(3) * 1j}, "'bias' is complex in w.pt and real in the model"),
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


def test_a_damaged_name_in_a_checkpoint_breaks_no_line(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data\n_re3.pkl", b"0123456789" * 10)
    path.write_bytes(path.read_bytes().replace(b"0123456789", b"0123456780"))
    with pytest.raises(WoodburyError, match="is damaged") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
