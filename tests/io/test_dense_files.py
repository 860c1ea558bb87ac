"""Dense files: tied tensors, views, and what cannot be stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from woodbury.errors import WoodburyError
from woodbury.io.dense_files import save_safetensors, save_torch
from woodbury.io.file_sizes import FileSize, dense_and_sparse_size


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].weight = model[0].weight
    return model


def test_tied_tensors_and_views_are_written_under_each_name(tmp_path: Path) -> None:
    state = tied().state_dict() | {"transposed": tied()[0].weight.detach().T}
    save_safetensors(tmp_path / "model.safetensors", state)
    loaded = load_file(tmp_path / "model.safetensors")
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    tied().load_state_dict({name: loaded[name] for name in tied().state_dict()})


def test_torch_s_file_keeps_the_versions_of_the_modules(tmp_path: Path) -> None:
    model = nn.BatchNorm1d(3)
    save_torch(tmp_path / "model.pt", model.state_dict())
    loaded = torch.load(tmp_path / "model.pt", weights_only=True)
    assert loaded._metadata == model.state_dict()._metadata


def test_what_cannot_be_stored(tmp_path: Path) -> None:
    with pytest.raises(WoodburyError, match="'weight' in the state dict is sparse"):
        save_safetensors(tmp_path / "model.safetensors", {"weight": torch.eye(3).to_sparse()})
    with pytest.raises(WoodburyError, match="cannot be written"):
        save_torch(tmp_path / "nowhere" / "model.pt", {"weight": torch.eye(3)})
    assert not list(tmp_path.iterdir())


def test_sizes_count_tied_tensors_once(tmp_path: Path) -> None:
    model = tied()
    with torch.no_grad():
        model[0].weight.mul_(torch.rand(64, 64) < 0.1).add_(0.0)
    dense, sparse = dense_and_sparse_size(model.state_dict())
    assert dense.plain == 4 * (64 * 64 + 2 * 64)
    kept = int(model[0].weight.count_nonzero())
    assert sparse.plain == 4 * (kept + 2 * 64) + 64 * 64 / 8
    assert sparse.compressed < dense.compressed < dense.plain
    (tmp_path / "file").write_bytes(bytes(10**5))
    size = FileSize.of_file("zeros", tmp_path / "file")
    assert size.plain == 10**5 and size.compressed < 1000
