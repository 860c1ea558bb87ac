"""Weights in the memory of others, and where nobody may write, are seen before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from support.zoo import vectors
from support.zoo_nets import changed, mlp
from torch import nn

import woodbury
from woodbury import WoodburyError
from woodbury.model.memory_of_weights import MAPPED, check_apart


def square() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))


def give(index: int, weight: Callable[[Any], torch.Tensor]) -> Callable[[Any], None]:
    return lambda model: setattr(model[index], "weight", nn.Parameter(weight(model)))


VIEWS = {
    "a part": lambda: changed(mlp(), give(2, lambda m: m[0].weight.data.flatten()[:24].view(3, 8))),
    "transposed": lambda: changed(square(), give(2, lambda m: m[0].weight.data.t())),
    "another type": lambda: changed(
        square(), give(2, lambda m: m[0].weight.data.view(torch.bfloat16)[:, :6])
    ),
}


@pytest.mark.parametrize("build", VIEWS.values(), ids=VIEWS)
def test_views_of_another_parameter_are_refused_before_any_work(
    build: Callable[[], nn.Module],
) -> None:
    model = build()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(WoodburyError, match=r"'0\.weight' and '2\.weight' are views of the same"):
        woodbury.Objective.from_model(model, vectors()())
    if model[2].weight.dtype == torch.float32:
        with pytest.raises(WoodburyError, match="views of the same memory"):
            woodbury.prune(model, vectors()(), 0.5)
    after = list(model.parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_neighbours_in_one_memory_and_tied_weights_are_taken() -> None:
    model = mlp()
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    parts = flat.split([parameter.numel() for parameter in model.parameters()])
    for parameter, part in zip(model.parameters(), parts, strict=True):
        parameter.data = part.view_as(parameter)
    pruned = woodbury.prune(model, vectors()(), 0.5)
    weights = [model[0].weight, model[2].weight]
    held = sum(int((weight == 0).sum()) for weight in weights)
    assert held / pruned.objective.space.n == pruned.sparsity == 0.5
    columns = torch.randn(4, 6)
    check_apart({"left": columns[:, ::2], "right": columns[:, 1::2]})
    check_apart({"one": columns, "the same": columns.detach()})
    with pytest.raises(WoodburyError, match="'left' and 'all'"):
        check_apart({"left": columns[:, ::2], "all": columns})


@pytest.mark.skipif(not MAPPED.exists(), reason="only Linux says what may be written to")
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_weights_in_a_mapped_file_are_refused_before_any_work(tmp_path: Path) -> None:
    numpy.save(tmp_path / "weight.npy", numpy.ones((8, 6), dtype="f"))
    mapped = numpy.load(tmp_path / "weight.npy", mmap_mode="r")
    model = mlp()
    model[0].weight = nn.Parameter(torch.from_numpy(mapped))
    with pytest.raises(WoodburyError, match=r"'0\.weight' lies in memory that may only be read"):
        woodbury.prune(model, vectors()(), 0.5)  # to write there would be the end of the process
    model[0].weight.data = model[0].weight.data.clone()
    assert woodbury.prune(model, vectors()(), 0.5).sparsity == 0.5
