"""GPT-2 keeps its weights in Conv1D, (inputs, outputs): its hidden layers become smaller too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import woodbury
from woodbury.model.attributes import copy_of

pytest.importorskip("torch_pruning", reason="the graph of channels is Torch-Pruning's")
transformers = pytest.importorskip("transformers", reason="needs transformers")
from woodbury.integrations.compaction import api  # noqa: E402

HIDDEN = [f"transformer.h.{block}.mlp.c_fc" for block in (0, 1)]


def gpt2() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=12, n_embd=12, n_layer=2, n_head=2, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


def codes() -> torch.Tensor:
    return torch.randint(0, 40, (3, 8), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_its_hidden_layers_are_smaller_and_compute_the_same() -> None:
    model = gpt2()
    for name in HIDDEN:  # another constant each, as a bias is no weight of a matrix
        layer = model.get_submodule(name)
        layer.weight[:, 5:30] = 0
        layer.bias[5:30] = torch.randn(25)
    result = api.compacted(model, {"input_ids": codes()})
    smaller: Any = result.model
    truth = copy_of(model).double()(input_ids=codes()).logits
    difference = (smaller(input_ids=codes()).logits - truth).abs().max() / truth.abs().max()
    assert difference < 1e-5
    for name in HIDDEN:
        maker, reader = (smaller.get_submodule(name.replace("c_fc", c)) for c in ("c_fc", "c_proj"))
        assert type(maker) is type(model.get_submodule(name))
        assert (maker.nf, maker.nx, reader.nf, reader.nx) == (23, 12, 12, 23)
        assert maker.weight.shape == (12, 23) and reader.weight.shape == (23, 12)
    assert set(result.shapes) == {
        f"transformer.h.{block}.mlp.{tensor}"
        for block in (0, 1)
        for tensor in ("c_fc.weight", "c_fc.bias", "c_proj.weight")
    }
    assert result.flops[1] < result.flops[0]
    assert "attn.c_attn" in " ".join(result.kept)  # attention mixes its channels


def test_its_coupled_channels_are_pruned_along_the_right_dimension() -> None:
    model, inputs = gpt2(), {"input_ids": codes()}
    unit = woodbury.coupled_channels(model, inputs)
    assert (unit.groups, unit.channels) == (2, 96)
    space = woodbury.ParameterSpace.from_model(model, ["*.weight"])
    (groups,) = unit(space)
    assert groups.shape == (96, 12)
    marked = space.unflatten(torch.zeros(space.d).index_fill(0, groups[0], 1.0))
    columns = {name: each for name, each in marked.items() if each.any()}
    assert len(columns) == 1
    ((name, column),) = columns.items()
    assert name.endswith("c_fc.weight")
    assert column.sum() == 12 and column.any(0).sum() == 1  # all inputs of one output
