"""The loss along a step against torch's own loss and Hessian in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from inspection.inspected import classes, dense_hessian, label_rows, linear, loss_at, perceptron
from support.random import normal

from woodbury.errors import WoodburyError
from woodbury.inspection.curvatures import estimate_curvatures
from woodbury.inspection.direction import LossAlong, loss_along, losses_along


def test_every_number_is_what_it_is_called() -> None:
    objective = perceptron()
    held_back = classes(25, seed=7)
    there = replace(objective, batches=held_back)
    step = 0.3 * normal(objective.space.d, seed=9)
    curvatures = estimate_curvatures(objective, 30, 1e-3)
    found = loss_along(objective, held_back, step, curvatures, scales={"empirical": 1.5})
    dense = float(loss_at(there, objective.weights))
    for t, increase in zip(found.fractions, found.measured, strict=True):
        loss = float(loss_at(there, objective.weights + t * step))
        assert increase == pytest.approx(loss - dense, abs=1e-12)
    weights = objective.weights.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss_at(there, weights), weights)
    assert found.slope == pytest.approx(float(slope @ step), rel=1e-9)
    hessian = dense_hessian(there)
    assert found.hessian == pytest.approx(float(step @ hessian @ step), rel=1e-9)
    form = float((label_rows(objective, 30) @ step).square().mean())
    assert found.curvatures["empirical"] == pytest.approx(form, rel=1e-9)
    assert found.predicted("empirical")[4] == pytest.approx(0.5 * 0.5**2 * form)
    assert found.predicted("empirical", scaled=True)[4] == pytest.approx(1.5 * 0.125 * form)
    assert set(found.scales) == {"empirical"} and found.samples == 25


def test_several_steps_are_each_as_alone() -> None:
    objective, held_back = perceptron(), classes(25, seed=7)
    curvatures = estimate_curvatures(objective, 30, 1e-3)
    steps = {"a": 0.3 * normal(objective.space.d, seed=9), "b": -objective.weights}
    together = losses_along(objective, held_back, steps, curvatures, scales={"kfac": 2.0})
    for found, (direction, step) in zip(together, steps.items(), strict=True):
        alone = loss_along(
            objective, held_back, step, curvatures, direction=direction, scales={"kfac": 2.0}
        )
        assert found.direction == direction and found.measured == alone.measured
        assert found.hessian == pytest.approx(alone.hessian, rel=1e-12)
        assert found.slope == pytest.approx(alone.slope, rel=1e-12)
        assert found.curvatures == pytest.approx(alone.curvatures, rel=1e-12)
        assert found.scales == alone.scales == {"kfac": 2.0}


def test_near_the_start_the_exact_second_order_is_the_loss() -> None:
    objective = perceptron()
    step = normal(objective.space.d, seed=9)
    curvatures = estimate_curvatures(objective, 30)
    errors = []
    for length in (1e-2, 1e-3):
        found = loss_along(
            objective, list(objective.batches), length * step, curvatures, fractions=[0.0, 1.0]
        )
        assert found.taylor is not None
        errors.append(abs(found.taylor[1] - found.measured[1]))
    assert errors[0] > 1e-9 and errors[1] < 2e-3 * errors[0], "a cubic is left"


def test_a_loss_of_squares_is_its_own_quadratic() -> None:
    objective = linear()
    found = loss_along(
        objective, list(objective.batches), normal(8), estimate_curvatures(objective, 40)
    )
    assert found.taylor == pytest.approx(found.measured, abs=1e-9)
    assert found.quadratic_up_to == 1.25
    ratio = found.ratios["gauss_newton"]
    assert ratio == pytest.approx(1, abs=0.5), "one random direction for each sample"
    assert "within a factor of two up to 1.25" in found.verdict


def along(**changes) -> LossAlong:
    fractions = (0.0, 0.5, 1.0)
    found = LossAlong(
        "a step", 9, 0.1, fractions, (0.0, 0.5, 2.0), 0.0, 4.0, {"kfac": 2.0, "diagonal": 40.0}
    )
    return replace(found, **changes)


def test_the_verdict_names_the_nearest_and_the_farthest() -> None:
    assert along().verdict == (
        "Along a step the loss rises by 2 at the full step; the exact second order is within a "
        "factor of two up to 1 of the step. Along it K-FAC has 0.50 times the Hessian's curvature, "
        "diagonal 10."
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hessian": None}, "K-FAC says 1, diagonal says 20"),
        ({"hessian": -1.0}, "no guide at any length. The Hessian is not positive along it"),
        ({"measured": (0.0, 0.5, 9.0)}, "up to 0.5 of the step"),
        ({"measured": (0.0, math.inf, math.inf)}, "rises by inf"),
        ({"measured": (0.0, -0.1, -0.25)}, "the loss falls by 0.25 at the full step"),
    ],
)
def test_the_verdict_fits_the_numbers(changes: dict, says: str) -> None:
    assert says in along(**changes).verdict


def test_bad_requests_are_named() -> None:
    objective = linear()
    curvatures = estimate_curvatures(objective, 40)
    with pytest.raises(WoodburyError, match=r"give \(8,\)"):
        loss_along(objective, list(objective.batches), torch.ones(3), curvatures)
    with pytest.raises(WoodburyError, match="The step is not finite"):
        loss_along(objective, list(objective.batches), torch.ones(8) / 0, curvatures)
    with pytest.raises(WoodburyError, match="at least one finite number"):
        loss_along(objective, list(objective.batches), torch.ones(8), curvatures, fractions=[])
    with pytest.raises(WoodburyError, match="No sample is held back"):
        loss_along(objective, [], torch.ones(8), curvatures)
    with pytest.raises(WoodburyError, match="no curvature 'nonsense': take one of kfac, diagonal"):
        along().predicted("nonsense")
    with pytest.raises(WoodburyError, match="no scale 'kfac'"):
        along().predicted("kfac", scaled=True)


def test_weights_that_overflow_the_loss_have_an_infinite_increase() -> None:
    objective = linear()
    curvatures = estimate_curvatures(objective, 40)
    batches = list(objective.batches)
    step = torch.full((8,), 1e200, dtype=torch.float64)
    found = loss_along(objective, batches, step, curvatures, hessian=False)
    assert found.measured[0] == 0 and math.isinf(found.measured[-1])
