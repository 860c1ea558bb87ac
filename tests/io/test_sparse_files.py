"""Sparse files: exact to the bit, an eighth at 90 %, one sentence for every broken one."""

from __future__ import annotations

import json
import os
import random
import re
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from woodbury.errors import WoodburyError, WrongType
from woodbury.io.sparse_files import (
    FORMAT,
    HEADER,
    VERSION,
    _checksum,
    is_sparse,
    load_sparse,
    save_sparse,
)

DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.complex64,
    torch.int64,
    torch.int8,
    torch.bool,
]


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def pruned(*shape: int, sparsity: float = 0.9, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(shape, generator=generator)
    return dense.masked_fill(torch.rand(shape, generator=generator) < sparsity, 0).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "names", [None, [], ["weight"], ["tied", "scalar", "empty", "view"]], ids=str
)
def test_the_round_trip_is_exact_to_the_bit(
    dtype: torch.dtype, names: list[str] | None, tmp_path: Path
) -> None:
    weight = pruned(3, 5, 7, dtype=dtype)
    state = {
        "weight": weight,
        "bias": torch.randn(5).to(dtype),
        "tied": weight,
        "view": weight.transpose(0, 1),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
    }
    save_sparse(tmp_path / "w.safetensors", state, names)
    loaded = load_sparse(tmp_path / "w.safetensors")
    assert list(loaded) == list(state)
    assert loaded["tied"] is loaded["weight"]
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
        assert torch.equal(bits(loaded[name]), bits(tensor))


def test_negative_zero_and_nan_survive(tmp_path: Path) -> None:
    weight = torch.tensor([0.0, -0.0, float("nan"), 1.0, float("-inf")])
    save_sparse(tmp_path / "w.safetensors", {"w": weight}, ["w"])
    assert torch.equal(bits(load_sparse(tmp_path / "w.safetensors")["w"]), bits(weight))


def test_ninety_percent_sparse_is_about_an_eighth_of_dense(tmp_path: Path) -> None:
    state = {"weight": pruned(512, 512), "bias": torch.zeros(512)}
    save_file(state, tmp_path / "dense.safetensors")
    save_sparse(tmp_path / "sparse.safetensors", state, ["weight"])
    ratio = os.path.getsize(tmp_path / "dense.safetensors") / os.path.getsize(
        tmp_path / "sparse.safetensors"
    )
    assert 7 < ratio < 8.5


def test_a_model_with_tied_weights_and_buffers_loads_back(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))
    model[2].weight = model[0].weight
    nn.init.zeros_(model[2].bias)
    save_sparse(tmp_path / "w.safetensors", model.state_dict(), ["2.weight"])
    other = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))
    other.load_state_dict(load_sparse(tmp_path / "w.safetensors"))
    inputs = torch.randn(5, 8)
    assert torch.equal(model.eval()(inputs), other.eval()(inputs))


def test_without_names_only_what_becomes_smaller_is_packed(tmp_path: Path) -> None:
    save_sparse(tmp_path / "w.safetensors", {"dense": torch.ones(999), "sparse": pruned(999)})
    assert is_sparse(tmp_path / "w.safetensors")
    assert os.path.getsize(tmp_path / "w.safetensors") < 999 * 4 * 1.3


def test_bad_entries_are_named(tmp_path: Path) -> None:
    with pytest.raises(WoodburyError, match="'wieght'"):
        save_sparse(tmp_path / "w.safetensors", {"weight": torch.ones(3)}, ["wieght"])
    with pytest.raises(WrongType, match="'_extra_state' in the state dict is a dict"):
        save_sparse(tmp_path / "w.safetensors", {"_extra_state": {}}, [])  # type: ignore[dict-item]
    with pytest.raises(WoodburyError, match="cannot be written"):
        save_sparse(tmp_path / "nowhere" / "w.safetensors", {"weight": torch.ones(3)})
    assert not list(tmp_path.iterdir())


def test_broken_files_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(WoodburyError, match="There is no file"):
        load_sparse(path)
    save_sparse(path, {"weight": pruned(64, 64)}, ["weight"])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WoodburyError, match="is truncated or not a safetensors file"):
        load_sparse(path)
    path.write_bytes(b"PK not this")
    with pytest.raises(WoodburyError, match="is truncated or not a safetensors file"):
        load_sparse(path)
    save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(
        WoodburyError,
        match=r"not a sparse file of woodbury: read it with safetensors.torch.load_file",
    ):
        load_sparse(path)
    later = json.dumps({"format": "woodbury-sparse", "version": 7})
    save_file({"weight": torch.ones(3)}, path, {"woodbury": later})
    with pytest.raises(WoodburyError, match="format version 7"):
        load_sparse(path)


def test_no_flipped_bit_passes(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    state = {"a": pruned(16, 8), "b.weight": torch.randn(5), "tied": torch.ones(3)}
    state["other"] = state["tied"]
    save_sparse(path, state, ["a"])
    whole = path.read_bytes()
    draw = random.Random(0)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(WoodburyError, match=r"damaged|truncated|not a sparse file|version"):
            load_sparse(path)


def test_a_shape_that_lies_is_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    stored = {"w#keep": torch.zeros(1, dtype=torch.uint8), "w#values": torch.zeros(0)}
    facts = {"format": FORMAT, "version": VERSION, "marks": ["#keep", "#values"]}
    facts |= {"shapes": {"w": [10**6, 10**6]}, "tied": {"w": "w"}}
    facts["checksum"] = _checksum(facts, stored)  # as a liar would
    save_file(stored, path, {HEADER: json.dumps(facts)})
    with pytest.raises(WoodburyError, match="has 1 bytes of bits"):
        load_sparse(path)


def test_two_saves_are_equal_files(tmp_path: Path) -> None:
    state = {name: pruned(8, 8) for name in "abcdef"}
    for file in ("one", "two"):
        save_sparse(tmp_path / file, state)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_names_that_end_like_our_own_marks(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    state = {"a": pruned(8, 8), "a#keep": torch.ones(3), "a##values": torch.zeros(4)}
    save_sparse(path, state, ["a"])
    loaded = load_sparse(path)
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(3, device="meta"), "on meta"),
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.zeros(3, dtype=torch.complex128), "complex128"),
    ],
    ids=["meta", "sparse", "complex128"],
)
def test_what_cannot_be_stored_is_named(tmp_path: Path, tensor: Tensor, words: str) -> None:
    with pytest.raises(WoodburyError, match=f"'w' in the state dict is .*{words}"):
        save_sparse(tmp_path / "w.safetensors", {"w": tensor})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((nn.Linear(2, 2), "w"), "path is a Linear: save_sparse takes text or a PathLike"),
        (("w", nn.Linear(2, 2)), "state_dict is a Linear: save_sparse takes a dict there."),
        (("", {}), "'.' names no file: give the path of the file to write."),
        (("w", {1: torch.ones(2)}), "The state dict has the key 1"),
        (("w", {"a": torch.ones(2)}, "a"), "names is a str: give a list of names"),
        (("w", {"a": torch.ones(2)}, [[3]]), "names is a list: give a list of names"),
    ],
)
def test_slips_of_type_are_one_sentence(arguments: tuple, sentence: str) -> None:
    with pytest.raises(WoodburyError, match=re.escape(sentence)):
        save_sparse(*arguments)
    with pytest.raises(WrongType, match="path is None: load_sparse takes text"):
        load_sparse(None)  # type: ignore[arg-type]


def test_a_quantized_tensor_is_named(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that its quantization will go
        tensor = torch.quantize_per_tensor(torch.rand(4), 0.1, 0, torch.qint8)
        with pytest.raises(WoodburyError, match="'w' in the state dict is quantized"):
            save_sparse(tmp_path / "w.safetensors", {"w": tensor})


def test_a_conjugate_view_keeps_its_values(tmp_path: Path) -> None:
    view = torch.randn(3, 4, dtype=torch.complex64).conj()
    save_sparse(tmp_path / "w.safetensors", {"w": view})
    assert torch.equal(load_sparse(tmp_path / "w.safetensors")["w"], view)


def test_a_tensor_and_its_conjugate_are_two_although_they_share_memory(tmp_path: Path) -> None:
    values = torch.randn(3, 4, dtype=torch.complex64)
    state = {"w": values, "conjugate": values.conj(), "minus": values.conj().imag}
    try:
        save_sparse(tmp_path / "w.safetensors", state)
    except WoodburyError as error:  # of versions of safetensors without complex numbers
        assert "safetensors does not have" in str(error)
        return
    loaded = load_sparse(tmp_path / "w.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
