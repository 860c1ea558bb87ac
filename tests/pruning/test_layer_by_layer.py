"""The layer-by-layer fit: one layer exactly, several closer than before, masks untouched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.random import normal
from torch import Tensor, nn

import woodbury
from woodbury import Objective, Pruner
from woodbury.errors import WoodburyError
from woodbury.pruning.refit import LayerByLayer
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.updates import zero

BY_MAGNITUDE = Pruner(None, magnitude, zero)


def dense_of(model: nn.Module, x: Tensor) -> Objective:
    space = woodbury.ParameterSpace.from_model(model, min_ndim=2)
    return Objective.from_model(model.double(), [(x, None)], space=space)


def test_a_single_layer_is_its_ridge_regression() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(6, 4), normal(50, 6, seed=1)
    dense = dense_of(model, x)
    pruned = BY_MAGNITUDE(dense, 0.5).objective
    fitted = LayerByLayer(ridge=0.03, approximation=None)(pruned, dense)
    moments = x.T @ x / 50
    moments = moments + 0.03 * moments.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    weight, before = dense.parameters["weight"], pruned.parameters["weight"]
    for row, keep in enumerate(pruned.space.keep.view(4, 6)):
        lacking = (x.T @ x / 50) @ (weight[row] - before[row])
        truth = before[row].clone()
        truth[keep] += torch.linalg.solve(moments[keep][:, keep], lacking[keep])
        torch.testing.assert_close(fitted.parameters["weight"][row], truth)


def distances(dense: Objective, pruned: Objective, fitted: Objective, x: Tensor) -> list[float]:
    """How far the outputs of the pruned and of the fitted network are from the dense ones."""
    with torch.no_grad():
        goal, *found = (one.forward(one.parameters, x) for one in (dense, pruned, fitted))
        return [float((outputs - goal).norm()) for outputs in found]


@pytest.mark.parametrize(("passes", "share"), [(None, 0.7), (2, 0.75), (1, 0.9)])
def test_the_outputs_come_closer_the_more_so_the_more_passes(
    passes: int | None, share: float
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(32, 16), nn.Linear(16, 3)
    )
    x = normal(200, 2, 4, 4, seed=1)
    dense = dense_of(model, x)
    pruned = BY_MAGNITUDE(dense, 0.5).objective
    fitted = LayerByLayer(passes=passes)(pruned, dense)
    before, after = distances(dense, pruned, fitted, x)
    assert after < share * before
    assert torch.equal(fitted.space.keep, pruned.space.keep)


def test_a_layer_that_is_used_twice_is_fitted_to_both_uses() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            return self.layer(self.layer(x).tanh())

    torch.manual_seed(0)
    x = normal(100, 4, seed=1)
    dense = dense_of(Twice(), x)
    pruned = BY_MAGNITUDE(dense, 0.25).objective
    before, after = distances(dense, pruned, LayerByLayer()(pruned, dense), x)
    assert after < before


def test_the_model_is_left_alone() -> None:
    model = nn.Linear(6, 4)
    kept = copy.deepcopy(model.state_dict())
    dense = dense_of(model, normal(20, 6))
    LayerByLayer()(BY_MAGNITUDE(dense, 0.5).objective, dense)
    assert all(
        torch.equal(kept[name].double(), value) for name, value in model.state_dict().items()
    )


@pytest.mark.parametrize(
    ("options", "sentence"), [({"ridge": 0.0}, "ridge is 0.0"), ({"passes": 0}, "passes is 0")]
)
def test_bad_settings_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(WoodburyError, match=sentence):
        LayerByLayer(**options)
