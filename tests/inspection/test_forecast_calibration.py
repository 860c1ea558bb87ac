"""Forecasts against dense quadratics and torch's own loss in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from inspection.inspected import classes, label_rows, linear, loss_at, perceptron
from inspection.test_settings_tried import by_hand, labels_only
from support.dense import low_rank

from woodbury.errors import WoodburyError
from woodbury.fisher.dense import Dense
from woodbury.fisher.lowrank import LowRank
from woodbury.inspection import forecast_calibration
from woodbury.inspection.curvatures import Curvatures, estimate_curvatures, products_of
from woodbury.inspection.forecast_calibration import calibrate_forecast
from woodbury.inspection.forecast_report import ForecastCalibration, ForecastPoint, MeasuredPoint

COUNT = 40


def test_every_point_is_the_pruning_that_it_is_called() -> None:
    objective, held_back = labels_only(), classes(30, seed=7)
    curvatures = estimate_curvatures(objective, COUNT, 1e-2)
    only = replace(curvatures, fishers={"empirical": curvatures.fishers["empirical"]})
    found = calibrate_forecast(objective, held_back, only, [0.6, 0.2])
    there = replace(objective, batches=held_back)
    matrix = low_rank(label_rows(objective, COUNT), 1e-2)
    others = low_rank(label_rows(there, 30), 0.0)
    points = found.points["empirical"]
    assert [point.sparsity for point in points] == pytest.approx([7 / 35, 21 / 35])
    for point in points:
        _, keep, increase = by_hand(objective, matrix, point.sparsity)
        assert point.measured == pytest.approx(increase, rel=1e-7)
        step = -objective.weights.clone()
        removed, kept = ~keep, keep
        force = matrix[kept][:, removed] @ objective.weights[removed]
        step[kept] = torch.linalg.solve(matrix[kept][:, kept], force)
        assert point.predicted == pytest.approx(0.5 * float(step @ matrix @ step), rel=1e-7)
        assert point.held_back == pytest.approx(0.5 * float(step @ others @ step), rel=1e-7)
    assert found.dense == pytest.approx(float(loss_at(there, objective.weights)))
    assert found.samples == 30 and not found.refused


def test_k_fac_forecasts_as_its_dense_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kept weights are found by conjugate gradients, whose residual is what is allowed."""
    monkeypatch.setattr(forecast_calibration, "DIRECT_SIZE", 1)
    objective, held_back = perceptron(COUNT), classes(30, seed=7)
    fisher = estimate_curvatures(objective, COUNT, 1e-2).fishers["kfac"]
    with_dense = Dense(products_of(fisher)(torch.eye(35).double()), 1e-2)
    both = Curvatures({"kfac": fisher, "dense": with_dense})
    found = calibrate_forecast(objective, held_back, both, [0.2, 0.6])
    assert not found.refused
    for mine, exact in zip(found.points["kfac"], found.points["dense"], strict=True):
        assert mine.sparsity == exact.sparsity
        assert mine.predicted == pytest.approx(exact.predicted, rel=1e-3)
        assert mine.measured == pytest.approx(exact.measured, rel=1e-2)
        assert mine.held_back == pytest.approx(exact.held_back, rel=1e-2)


def test_where_the_quadratic_is_the_loss_the_forecast_holds_everywhere() -> None:
    """A least-squares fit at its minimum, with its Hessian as curvature."""
    objective = linear()
    ((x, y),) = objective.batches
    weights = torch.linalg.lstsq(x, y).solution.T.flatten()
    objective = objective.at(weights)
    hessian = torch.kron(torch.eye(2).double(), x.mT @ x / len(x))  # of half of the squares
    truth = Curvatures({"exact": Dense(hessian, 1e-12)})
    found = calibrate_forecast(objective, [(x, y)], truth, [0.25, 0.5, 0.75])
    for point in found.points["exact"]:
        assert point.predicted == pytest.approx(point.measured, rel=1e-6)
    assert found.held_up_to("exact") == 0.75
    assert found.verdict.startswith(
        "Exact: the forecast held within a factor of two at all sparsities tried, up to 75 %."
    )


def test_rows_held_back_forecast_what_the_choosing_rows_do_not_show() -> None:
    """Fewer rows than weights: the quadratic that chooses has directions that are almost free."""
    objective = perceptron(12)
    curvatures = estimate_curvatures(objective, 12, 1e-6)
    only = replace(curvatures, fishers={"empirical": curvatures.fishers["empirical"]})
    found = calibrate_forecast(objective, classes(60, seed=7), only, [0.3])
    (point,) = found.points["empirical"]
    assert point.measured > 20 * point.predicted
    assert abs(point.measured - point.held_back) < abs(point.measured - point.predicted)


def test_what_is_refused_on_the_way_is_named() -> None:
    objective = perceptron()
    fisher = LowRank(1e6 * label_rows(objective, COUNT), 1e-9)
    found = calibrate_forecast(objective, classes(30, 7), Curvatures({"huge": fisher}), [0.5])
    assert found.refused["huge"].startswith("At 50 %: ") and "damping" in found.refused["huge"]
    assert not found.points and found.verdict == ""


@pytest.mark.parametrize("sparsities", [[], [0.0, 0.5], [1.0], [float("nan")]])
def test_bad_sparsities_are_named(sparsities: list[float]) -> None:
    with pytest.raises(WoodburyError, match="larger than 0 and below 1"):
        calibrate_forecast(perceptron(), classes(30, 7), Curvatures({}), sparsities)


def calibration(*rows: tuple[float, float, float, float]) -> ForecastCalibration:
    points = tuple(ForecastPoint(*row) for row in rows)
    return ForecastCalibration(30, 0.1, {"kfac": points}, {})


def test_magnitude_is_pruning_without_an_update() -> None:
    objective, held_back = perceptron(COUNT), classes(30, seed=7)
    found = calibrate_forecast(
        objective, held_back, estimate_curvatures(objective, COUNT, 1e-2), [0.2, 0.6]
    )
    there = replace(objective, batches=held_back)
    for point, removed in zip(found.magnitude, (7, 21), strict=True):
        weights = objective.weights.clone()
        weights[weights.abs().argsort()[:removed]] = 0
        assert point.sparsity == pytest.approx(removed / 35)
        increase = float(loss_at(there, weights) - loss_at(there, objective.weights))
        assert point.measured == pytest.approx(increase, rel=1e-7)


def test_the_verdict_on_magnitude_names_where_it_ends() -> None:
    found = calibration((0.3, 0.1, 0.1, 0.1), (0.5, 0.1, 0.3, 0.4), (0.9, 0.2, 0.3, 9.0))
    assert found.verdict_on_magnitude == ""
    close = (MeasuredPoint(0.3, 0.104), MeasuredPoint(0.5, 0.7), MeasuredPoint(0.9, 7.0))
    assert replace(found, magnitude=close).verdict_on_magnitude == (
        "Magnitude pruning is as good up to 30 %; at 50 % the loss rose by 0.7, and with the best "
        "estimate, K-FAC, it rose by 0.4."
    )
    never = (MeasuredPoint(0.3, 0.2), *close[1:])
    assert "as good nowhere; at 30 %" in replace(found, magnitude=never).verdict_on_magnitude
    always = (close[0], MeasuredPoint(0.5, 0.3), close[2])
    assert "at all sparsities" in replace(found, magnitude=always).verdict_on_magnitude
    assert found.best_at(0.5) == "kfac" and found.best_at(0.4) is None


def test_the_verdict_fits_the_numbers() -> None:
    found = calibration((0.3, 0.1, 0.1, 0.1), (0.5, 0.1, 0.3, 0.4), (0.9, 0.2, 0.3, 9.0))
    assert found.held_up_to("kfac") == 0.3 and found.held_up_to("kfac", held_back=True) == 0.5
    assert found.verdict == (
        "K-FAC: the forecast held within a factor of two up to 30 %; at 50 % it was 0.1 and the "
        "loss rose by 0.4. Rows of other samples forecast it up to 50 %. Differences below 0.005 "
        "count as none."
    )
    never = calibration((0.3, 0.1, 9.0, 0.4))
    assert never.verdict.startswith("K-FAC: the forecast held within a factor of two nowhere")
    assert never.held_up_to("unknown") is None
