"""The cost of a weight in seconds: a line through two trials, for every use of a layer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import woodbury
from woodbury.errors import WoodburyError
from woodbury.runtime import measuring
from woodbury.runtime.layouts import Tiling
from woodbury.runtime.measuring import Choice

pytest.importorskip("numba", reason="the sparse kernels need Numba")


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The products that are timed; each takes 1 µs and 2 ns for each non-zero."""
    seen: list[str] = []

    def chosen(key: str, dense: Any, sparse: Any) -> Choice:
        seen.append(key)
        nonzeros = int(re.findall(r"(\d+) non-zeros", key)[0])
        return Choice(Tiling(1, 0), 1.0, 1e-6 + 2e-9 * nonzeros)

    monkeypatch.setattr(measuring, "chosen", chosen)
    return seen


class Twice(nn.Module):
    """A convolution, then a linear layer that is used twice; its weights count for both uses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 25, 2)
        self.norm = nn.BatchNorm2d(25)
        self.linear = nn.Linear(25, 25)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.linear(self.norm(self.conv(x)).mean((2, 3))))


def test_seconds_of_a_weight(keys: list[str]) -> None:
    model = Twice().train()
    cost = woodbury.latency(model, torch.randn(4, 4, 3, 3))
    assert set(cost.per_weight) == {"conv.weight", "linear.weight"}
    assert cost.per_weight["conv.weight"] == pytest.approx(2e-9 / 4, rel=0.1)  # 4 samples
    assert cost.per_weight["linear.weight"] == pytest.approx(2 * 2e-9 / 4, rel=0.1)
    assert model.training and type(model.linear) is nn.Linear
    assert any("Conv2d" in key for key in keys) and any("Linear" in key for key in keys)


def test_a_pruner_removes_a_share_of_the_time(keys: list[str]) -> None:
    torch.manual_seed(0)
    model = Twice().eval()
    x = torch.randn(4, 4, 3, 3)
    space = woodbury.ParameterSpace.from_model(model, min_ndim=2)
    cost = woodbury.latency(model, x)
    batches = [(x, torch.tensor([0, 1, 2, 3]))]
    objective = woodbury.Objective.from_model(model, batches, space=space)
    pruner = woodbury.Pruner(
        fisher=None,
        saliency=woodbury.saliencies.magnitude,
        update=woodbury.updates.zero,
        cost=cost,
    )
    pruned = pruner(objective, 0.5)
    seconds = cost(space)
    left = seconds[pruned.objective.space.keep].sum() / seconds.sum()
    assert left == pytest.approx(0.5, abs=0.01)


def test_what_has_no_seconds(keys: list[str]) -> None:
    cost = woodbury.latency(Twice(), torch.randn(4, 4, 3, 3))
    with pytest.raises(WoodburyError, match=r"'norm\.weight' are not known|'conv\.bias'"):
        cost(woodbury.ParameterSpace.from_model(Twice()))
    with pytest.raises(WoodburyError, match="No layer of the model can run sparse"):
        woodbury.latency(nn.ReLU(), torch.randn(2, 3))
    with pytest.raises(WoodburyError, match="refuses the inputs"):
        woodbury.latency(Twice(), torch.randn(2, 3))


def test_a_clock_without_differences_gives_a_positive_cost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measuring, "chosen", lambda *_: Choice(Tiling(1, 0), 1.0, 1.0))
    assert woodbury.latency(nn.Linear(8, 8), torch.randn(2, 8)).per_weight["weight"] > 0
