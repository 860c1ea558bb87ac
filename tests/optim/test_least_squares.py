"""Least squares on the residuals of a network: its algebra, and its steps."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from support.equations import DECAY, TIMES, X, fitted, flat, net
from support.random import normal
from torch import Tensor, nn

import woodbury
from woodbury import LeastSquares, least_squares
from woodbury.optim.nonlinear_least_squares.damped_steps import DampedSteps


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 5), (40, 4)])
@pytest.mark.parametrize("damping", [1e-3, 1.0, 1e3])
def test_a_step_solves_the_normal_equations(shape: tuple[int, int], damping: float) -> None:
    m, d = shape
    rows, residuals = normal(m, d), normal(m, seed=1)
    for scales in (torch.ones(d).double(), normal(d, seed=2).abs() + 0.01):
        matrix = rows.T @ rows + damping * scales.square().diag()
        expected = -torch.linalg.solve(matrix, rows.T @ residuals)
        step = DampedSteps.of(rows, scales).at(damping).solve(residuals)
        torch.testing.assert_close(step, expected, rtol=1e-8, atol=1e-12)


def test_residuals_and_rows_are_those_of_loops() -> None:
    model = net(inputs=2, outputs=2)
    points = {"vector": (normal(6, 2), normal(6, 2, seed=1)), "number": normal(3, 2, seed=2)}
    equations = {"vector": fitted, "number": lambda u, x: u(x)[0] * u(x)[1] - x.sum()}
    fit = LeastSquares(model, equations, points, weights={"number": 3.0})
    inputs, targets = points["vector"]
    expected = [
        entry / math.sqrt(6 * 2)
        for x, y in zip(inputs, targets, strict=True)
        for entry in model(x) - y
    ]
    expected += [math.sqrt(3 / 3) * (model(x).prod() - x.sum()) for x in points["number"]]
    parameters = list(model.parameters())
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(each, parameters, retain_graph=True)])
        for each in expected
    ]
    values = fit._residuals.at(fit._weights)
    torch.testing.assert_close(values, torch.stack(expected).detach())
    torch.testing.assert_close(fit._residuals.rows(fit._weights), torch.stack(rows))
    assert math.isclose(fit.loss, 0.5 * float(values.square().sum()))


def test_a_linear_problem_reaches_its_exact_solution() -> None:
    model = nn.Linear(3, 1).double()
    inputs, targets = normal(20, 3), normal(20, seed=1)
    done = least_squares(model, fitted, (inputs, targets), steps=40)
    design = torch.cat([inputs, torch.ones(20, 1).double()], 1)
    exact = torch.linalg.lstsq(design, targets).solution
    torch.testing.assert_close(flat(model), exact, rtol=1e-7, atol=1e-7)
    assert done.loss == pytest.approx(0.5 * float((design @ exact - targets).square().mean()))


def test_the_loss_decreases_at_every_step_and_is_that_of_the_model() -> None:
    model = net()
    fit = LeastSquares(model, DECAY, TIMES)
    losses = [fit.loss] + [fit.step().loss for _ in range(12)]
    assert all(after < before for before, after in pairwise(losses))
    assert losses[-1] < 1e-3 * losses[0]
    assert LeastSquares(model, DECAY, TIMES).loss == fit.loss


@pytest.mark.parametrize("begun", [1e-4, 10.0, 1e6])
def test_the_damping_moves_towards_the_wanted_ratio_of_decreases(begun: float) -> None:
    model = net()
    fit = LeastSquares(model, DECAY, TIMES, acceleration=False, damping=begun)
    before, weights = fit.loss, flat(model)
    values = fit._residuals.at(fit._weights)
    rows = fit._residuals.rows(fit._weights)
    reached = fit.step()
    promised = before - 0.5 * float((values + rows @ (flat(model) - weights)).square().sum())
    ratio = (before - reached.loss) / promised
    factor = min(max(math.exp(3 * (0.8 - ratio)), 1 / 8), 8)
    assert fit.damping == pytest.approx(reached.damping * factor, rel=1e-6)
    assert factor > 1 if begun < 1e-3 else factor < 1 or ratio < 0.8


def test_acceleration_is_an_option() -> None:
    models = [net(), net()]
    for model, bent in zip(models, (True, False), strict=True):
        assert LeastSquares(model, DECAY, TIMES, acceleration=bent).run(5).steps == 5
    assert not torch.equal(flat(models[0]), flat(models[1]))


def drawn(step: int) -> tuple[Tensor, Tensor]:
    x = normal(16, 1, seed=step)
    return x, torch.sin(x[:, 0])


def error(model: nn.Module) -> float:
    return float((model(X)[:, 0] - X[:, 0].sin()).detach().norm())


def test_points_that_are_drawn_at_every_step_with_momentum() -> None:
    model = net()
    before = error(model)
    fit = LeastSquares(model, fitted, drawn, momentum=0.5)
    fit.run(40)
    assert fit._last is not None and fit._last.shape == (16,)
    assert error(model) < 0.05 * before


@pytest.mark.parametrize("points", [(X, X[:, 0].exp()), drawn], ids=["fixed", "drawn"])
def test_a_resumed_run_is_the_uninterrupted_one(points: Any) -> None:
    whole, first = net(), net()
    uninterrupted = LeastSquares(whole, fitted, points, momentum=0.3)
    uninterrupted.run(7)
    begun = LeastSquares(first, fitted, points, momentum=0.3)
    begun.run(3)
    state = copy.deepcopy(begun.state_dict())
    other = net(seed=1)
    resumed = LeastSquares(other, fitted, points, momentum=0.3)
    other.load_state_dict(first.state_dict())
    resumed.load_state_dict(state)
    resumed.run(4)
    assert torch.equal(flat(whole), flat(other))
    assert (resumed.loss, resumed.damping, resumed.steps) == (
        uninterrupted.loss,
        uninterrupted.damping,
        uninterrupted.steps,
    )


def test_frozen_parameters_do_not_move() -> None:
    model = net()
    model[0].requires_grad_(False)
    frozen, moving = flat(model[0]), flat(model[2])
    least_squares(model, DECAY, TIMES, steps=3)
    assert torch.equal(flat(model[0]), frozen)
    assert not torch.equal(flat(model[2]), moving)


class Tied(nn.Module):
    """Two names of one matrix, a buffer that the forward pass moves, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(2, 2, bias=False)
        self.second = nn.Linear(2, 2, bias=False)
        self.second.weight = self.first.weight
        self.dropout = nn.Dropout(0.5)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.second(torch.tanh(self.first(self.dropout(x)))).sum(-1)


def test_tied_weights_move_together_and_buffers_and_mode_are_kept() -> None:
    model = Tied().double()
    model.dropout.eval()
    inputs = normal(6, 2)
    fit = LeastSquares(model, fitted, (inputs, inputs.sum(1)))
    weight = model.first.weight
    loss = (model(inputs) - inputs.sum(1)).square().mean() / 2
    model.calls.zero_()
    assert fit.loss == pytest.approx(float(loss.detach()))
    (expected,) = torch.autograd.grad(loss, weight)
    rows = fit._residuals.rows(fit._weights)
    torch.testing.assert_close(rows.T @ fit._values, expected.flatten())
    fit.run(10)
    assert fit.loss < float(loss.detach())
    assert model.second.weight is model.first.weight is weight
    assert model.training and not model.dropout.training and float(model.calls) == 0


def test_an_interruption_leaves_the_best_weights_in_the_model() -> None:
    model = net()
    calls = {"left": 15}

    def residual(u: Any, t: Tensor) -> Tensor:
        calls["left"] -= 1
        if not calls["left"]:
            raise KeyboardInterrupt
        return u(t) - t[0].exp()

    fit = LeastSquares(model, residual, X)
    start = fit.loss
    with pytest.raises(KeyboardInterrupt):
        fit.run(100)
    assert fit.steps > 0 and fit.loss < start
    left = (model(X)[:, 0] - X[:, 0].exp()).detach()
    assert float(left.square().mean()) / 2 == pytest.approx(fit.loss, rel=1e-10)
    assert model.training


def test_rules_that_end_a_run() -> None:
    def run(**rules: Any) -> woodbury.optim.LeastSquaresResult:
        return least_squares(net(), DECAY, TIMES, **rules)

    assert run(steps=2).reason == "all 2 steps are taken"
    reached = run(until=1e-3)
    assert reached.loss <= 1e-3 < reached.losses[-2] and "at most 0.001" in reached.reason
    ended = run(seconds=1e-9)
    assert ended.steps == 0 and "seconds are over" in ended.reason
    slow = run(tolerance=0.999999)
    assert slow.steps >= 10 and "decreased the loss by less" in slow.reason
    line = nn.Linear(1, 1).double()
    minimum = least_squares(line, fitted, (X, X[:, 0] ** 2), steps=200)
    assert "minimum to rounding" in minimum.reason and minimum.steps < 200
    assert repr(minimum).endswith(minimum.reason)
