"""What least squares refuses, and what its sentences name."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.equations import DECAY, TIMES, X, fitted, flat, net
from torch import Tensor

from woodbury import LeastSquares, least_squares
from woodbury.errors import WoodburyError, WrongType


def with_nan(u: Any, x: Tensor) -> Tensor:
    return u(x) + torch.where(x[0] == X[3, 0], math.nan, 0.0)


@pytest.mark.parametrize(
    ("residual", "points", "sentence"),
    [
        (lambda u, x: None, X, "gave a NoneType"),
        (lambda u, x: u(x).long(), X, "gave torch.int64"),
        (with_nan, X, "'residual' is not finite at point 3"),
        (lambda u, x: 1 / 0, X, "fails.*division by zero"),
        (lambda u, x: u(x), X[:0], "at least one point"),
        (fitted, (X, X[:3, 0]), r"have \[3, 8\] rows"),
        (lambda u, x: u(x), X / 0, "point of 'residual' is not finite"),
        (lambda u, x: u(x), X.to("meta"), "on meta"),
        (lambda u, x: u(x), lambda step: None, "hold a NoneType"),
        (lambda u, x: u(x), 3, "points"),
        (DECAY, {"decay": X}, "give both the same names"),
        ({}, {}, "same names"),
        ({"a": 3}, {"a": X}, "residual"),
    ],
)
def test_bad_residuals_and_points_are_named(residual: Any, points: Any, sentence: str) -> None:
    model = net()
    before = flat(model)
    with pytest.raises(WoodburyError, match=sentence):
        LeastSquares(model, residual, points)
    assert torch.equal(flat(model), before)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"damping": 0.0}, "damping is 0"),
        ({"damping": math.nan}, "damping is nan"),
        ({"damping": 1e17}, "damping is 1e"),
        ({"momentum": 1.0}, "momentum 1"),
        ({"weights": {"decay": 0.0}}, "weight of 'decay' is 0"),
        ({"weights": {"other": 1.0}}, "weight for 'other'"),
        ({"memory": "much"}, "much"),
        ({"model": 3}, "model"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(WoodburyError, match=sentence):
        LeastSquares(**{"model": net(), "residual": DECAY, "points": TIMES, **options})


@pytest.mark.parametrize("rule", [{"seconds": 0.0}, {"until": -1.0}, {"tolerance": 1.0}])
def test_rules_out_of_range_are_named(rule: dict[str, float]) -> None:
    with pytest.raises(WoodburyError, match=next(iter(rule))):
        least_squares(net(), DECAY, TIMES, **rule)


def test_a_step_that_cannot_be_taken_changes_nothing() -> None:
    cases = [
        (LeastSquares(net(), lambda u, x: u(x).detach(), X), "without detaching"),
        (LeastSquares(net(), DECAY, TIMES, memory=100), "may hold 100 B"),
        (LeastSquares(net(), lambda u, x: (0 * u(x)).sqrt(), X), "'residual' by the weights"),
    ]
    for fit, sentence in cases:
        before = flat(fit.model)
        with pytest.raises(WoodburyError, match=sentence):
            fit.step()
        assert torch.equal(flat(fit.model), before) and fit.steps == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"damping": math.nan}, "damping is nan"),
        ({"steps": -1}, "steps"),
        ({"scales": torch.ones(3).double()}, "another network"),
        ({"scales": torch.zeros(16).double()}, "not all positive"),
        ({"last": torch.full((16,), math.nan).double()}, "not finite"),
        ({"last": [1.0]}, "no tensor of float64"),
        ({"more": 1}, "no state of a LeastSquares"),
    ],
)
def test_a_damaged_state_is_refused_and_nothing_changes(change: Any, sentence: str) -> None:
    fit = LeastSquares(net(), DECAY, TIMES)
    fit.run(2)
    before = fit.state_dict()
    with pytest.raises(WoodburyError, match=sentence):
        fit.load_state_dict({**before, **change})
    assert all(fit.state_dict()[name] is value for name, value in before.items())


def test_a_state_of_no_mapping_is_of_the_wrong_type() -> None:
    with pytest.raises(WrongType, match="no state"):
        LeastSquares(net(), DECAY, TIMES).load_state_dict(None)  # pyright: ignore
