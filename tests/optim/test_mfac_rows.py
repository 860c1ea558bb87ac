"""MFAC on many rows at once, and LevenbergMarquardt, which sets its damping."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support import dense
from support.small_training import through_a_file, vector
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from woodbury.errors import WoodburyError
from woodbury.optim import MFAC, LevenbergMarquardt, blocks, per_parameter, whole

K = 7


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).double()


def points(step: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(K, 2, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return x, x.prod(1)


def jacobian(model: nn.Module, step: int) -> tuple[list[Tensor], Tensor]:
    """The residuals' Jacobian as (K, *shape) for each parameter, and the residuals (K,)."""
    x, y = points(step)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def residual(p: Any, one: Tensor, target: Tensor) -> Tensor:
        return functional_call(model, p, (one[None],))[0, 0] - target

    rows = vmap(grad(residual), (None, 0, 0))(parameters, x, y)
    return list(rows.values()), vmap(residual, (None, 0, 0))(parameters, x, y)


def matrix(rows: list[Tensor]) -> Tensor:
    return torch.cat([row.flatten(1) for row in rows], 1)


def linear(truth: Tensor, size: int = 20) -> tuple[nn.Parameter, Tensor, Tensor]:
    """A least-squares problem with the solution `truth`: weights, matrix and right-hand side."""
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(size, len(truth), generator=generator, dtype=torch.float64)
    return nn.Parameter(torch.zeros_like(truth)), a, a @ truth


@pytest.mark.parametrize("window", [K, K + 3, 3 * K])
@pytest.mark.parametrize("partition", [whole, per_parameter, blocks(10)])
def test_steps_on_rows_are_those_of_the_dense_truth(window: int, partition: Any) -> None:
    """The last rows of all batches make the Fisher, the newest residuals the gradient."""
    model = net()
    seen = torch.empty(0, 25, dtype=torch.float64)
    sizes = {whole: [25], per_parameter: [12, 6, 6, 1]}.get(partition, [10, 10, 5])
    optimizer = MFAC(model.parameters(), 0.3, window=window, damping=0.1, partition=partition)
    weights = vector(model)
    for step in range(12):
        rows, residuals = jacobian(model, step)
        seen = torch.cat([seen, matrix(rows)])[-window:]
        fisher = dense.blocks_only(dense.low_rank(seen, 0.1), sizes)
        gradient = matrix(rows).mT @ residuals / K
        move = torch.linalg.solve(fisher, gradient)
        weights = weights - 0.3 * move
        optimizer.step(rows=rows, residuals=residuals)
        torch.testing.assert_close(vector(model), weights, rtol=1e-9, atol=1e-9)
        assert optimizer.slope == pytest.approx(float(gradient @ move), rel=1e-9)


def test_one_row_is_a_gradient_and_rows_and_gradients_may_alternate() -> None:
    model = net()
    twin = net()
    options = {"window": 5, "damping": 0.1, "momentum": 0.5}
    optimizer = MFAC(model.parameters(), 0.1, **options)
    other = MFAC(twin.parameters(), 0.1, **options)
    for step in range(14):
        rows, _ = jacobian(model, step)
        for parameter, row in zip(twin.parameters(), rows, strict=True):
            parameter.grad = row[0] * 1.0
        other.step()
        if step % 3:
            optimizer.step(rows=[row[:1] for row in rows], residuals=torch.ones(1))
        else:
            for parameter, row in zip(model.parameters(), rows, strict=True):
                parameter.grad = row[0] * 1.0
            optimizer.step()
    torch.testing.assert_close(vector(model), vector(twin), rtol=1e-9, atol=1e-9)


def test_float32_rows_among_gradients_are_exact_enough() -> None:
    """At damping/λmax = 1e-5, among products that were taken in float32 before."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(400, generator=generator)
    seen = shared + 0.1 * torch.randn(40, 400, generator=generator)
    parameter = nn.Parameter(torch.zeros(400))
    damping = 1e-5 * 20 * 400
    optimizer = MFAC([parameter], 1.0, window=20, damping=damping)
    for start, stop in [(i, i + 1) for i in range(25)] + [(25, 31), (31, 36), (36, 37), (37, 40)]:
        parameter.data.zero_()
        residuals = torch.linspace(1, 2, stop - start)
        optimizer.step(rows=[seen[start:stop]], residuals=residuals)
        gradient = (seen[start:stop].double().mT @ residuals.double()) / (stop - start)
        truth = torch.linalg.solve(
            dense.low_rank(seen[max(0, stop - 20) : stop], damping), gradient
        )
        assert float((parameter.detach().double() + truth).norm() / truth.norm()) < 1e-4


def test_masks_signs_and_decay_hold_for_rows_too() -> None:
    model = net()
    keep = {"0.weight": torch.arange(12).view(6, 2) % 3 != 0}
    kept = torch.cat(
        [keep.get(name, torch.ones(p.shape) > 0).flatten() for name, p in model.named_parameters()]
    )
    model[0].weight.data.mul_(keep["0.weight"])
    options: dict[str, Any] = {"weight_decay": 0.2, "decoupled": False, "maximize": True}
    optimizer = MFAC(model.named_parameters(), 0.1, window=9, damping=0.1, keep=keep, **options)
    weights = vector(model)
    seen = torch.empty(0, int(kept.sum()), dtype=torch.float64)
    for step in range(4):
        rows, residuals = jacobian(model, step)
        seen = torch.cat([seen, matrix(rows)[:, kept]])[-9:]
        gradient = -matrix(rows)[:, kept].mT @ residuals / K + 0.2 * weights[kept]
        weights[kept] -= 0.1 * torch.linalg.solve(dense.low_rank(seen, 0.1), gradient)
        optimizer.step(rows=rows, residuals=residuals)
        torch.testing.assert_close(vector(model), weights, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("where", ["rows", "residuals"])
def test_rows_that_are_not_finite_change_nothing_but_the_count(where: str) -> None:
    model = net()
    optimizer = MFAC(model.parameters(), 0.1, window=9, damping=0.1)
    optimizer.step(rows=jacobian(model, 0)[0], residuals=jacobian(model, 0)[1])
    before = vector(model)
    state = copy.deepcopy(optimizer.state_dict())
    rows, residuals = jacobian(model, 1)
    (rows[2][3] if where == "rows" else residuals[2:]).fill_(float("nan"))
    optimizer.step(rows=rows, residuals=residuals)
    state["windows"]["skipped"] = 1
    torch.testing.assert_close(optimizer.state_dict(), state, rtol=0, atol=0)
    torch.testing.assert_close(vector(model), before, rtol=0, atol=0)


def test_rows_that_do_not_fit_are_named_and_change_nothing() -> None:
    model = net()
    optimizer = MFAC(model.parameters(), 0.1, window=K)
    rows, residuals = jacobian(model, 0)
    before = vector(model)
    for wrong, sentence in (
        ({"rows": rows}, "only one of"),
        ({"residuals": residuals}, "only one of"),
        ({"rows": rows[:2], "residuals": residuals}, "in turn"),
        ({"rows": rows, "residuals": residuals[:3]}, "in turn"),
        ({"rows": rows, "residuals": residuals[:, None]}, "in turn"),
        (
            {"rows": [torch.cat([row, row]) for row in rows], "residuals": residuals.repeat(2)},
            "window of 7",
        ),
        ({"rows": [row[:0] for row in rows], "residuals": residuals[:0]}, "0 rows"),
    ):
        with pytest.raises(WoodburyError, match=sentence):
            optimizer.step(**wrong)
    torch.testing.assert_close(vector(model), before, rtol=0, atol=0)


def test_on_a_quadratic_the_prediction_is_exact_and_the_damping_shrinks() -> None:
    """Where F is the Hessian, the loss falls by (lr − lr²/2)·slope but for the damping."""
    weights, a, b = linear(torch.arange(1.0, 6.0).double())
    optimizer = MFAC([weights], 0.8, window=len(a), damping=1e-3)
    damping = LevenbergMarquardt(optimizer, factor=3.0, min_damping=1e-5)
    dampings = []
    for _ in range(9):
        residuals = a @ weights.detach() - b
        loss = residuals.square().mean() / 2
        damping.step(loss)
        dampings.append(optimizer.param_groups[0]["damping"])
        optimizer.step(rows=[a], residuals=residuals)
        if len(dampings) == 1:
            after = (a @ weights.detach() - b).square().mean() / 2
            assert float(loss - after) == pytest.approx(0.48 * optimizer.slope, rel=1e-3)
    assert dampings[:4] == pytest.approx([1e-3, 1e-3 / 3, 1e-3 / 9, 1e-3 / 27])
    assert dampings[-1] == 1e-5


def after_a_step(share: float, **limits: float) -> float:
    """The damping, 0.1 before, once the loss has fallen by `share` of the prediction."""
    weights, a, b = linear(torch.ones(5).double())
    optimizer = MFAC([weights], 1.0, window=len(a), damping=0.1)
    damping = LevenbergMarquardt(optimizer, **limits)
    damping.step(1.0)
    assert optimizer.param_groups[0]["damping"] == 0.1
    optimizer.step(rows=[a], residuals=a @ weights.detach() - b)
    damping.step(torch.tensor(1.0 - share * optimizer.slope / 2))
    return optimizer.param_groups[0]["damping"]


def test_maximizing_mirrors_minimizing() -> None:
    results = []
    for sign in (1.0, -1.0):
        weights = nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = MFAC([weights], 0.5, window=1, damping=1.0, maximize=sign < 0)
        damping = LevenbergMarquardt(optimizer)
        for _ in range(6):
            loss = sign * weights.square().sum()
            damping.step(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        results.append((optimizer.param_groups[0]["damping"], weights.tolist()))
    assert results[0] == results[1] and results[0][0] != 1.0


def test_rows_of_a_scalar() -> None:
    scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    optimizer = MFAC([scale], 1.0, window=4, damping=0.5)
    optimizer.step(
        rows=[torch.tensor([1.0, 3.0]).double()], residuals=torch.tensor([1.0, 2.0]).double()
    )
    assert scale.item() == pytest.approx(2 - 3.5 / (0.5 + 5))
    with pytest.raises(WoodburyError, match="residuals of shape"):
        optimizer.step(rows=[torch.ones(1)], residuals=torch.tensor(1.0))


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (-1.0, 0.2),
        (0.2, 0.2),
        (0.3, 0.1),
        (0.7, 0.1),
        (0.8, 0.05),
        (1.5, 0.05),
        (-float("inf"), 0.2),
        (float("nan"), 0.2),
    ],
)
def test_the_damping_follows_the_reduction_ratio(share: float, expected: float) -> None:
    assert after_a_step(share) == pytest.approx(expected)


def test_the_damping_stays_within_its_limits() -> None:
    assert (
        after_a_step(0.0, max_damping=0.15) == 0.15 and after_a_step(1.0, min_damping=0.08) == 0.08
    )


def test_levenberg_marquardt_solves_what_a_fixed_damping_does_not() -> None:
    losses = {}
    for name in ("fixed", "moving"):
        model = net(3)
        optimizer = MFAC(model.parameters(), 1.0, window=K, damping=0.1)
        damping = LevenbergMarquardt(optimizer)
        for _ in range(30):
            rows, residuals = jacobian(model, 0)
            losses[name] = float(residuals.square().mean() / 2)
            if name == "moving":
                damping.step(losses[name])
            optimizer.step(rows=rows, residuals=residuals)
    assert losses["moving"] < 1e-3 * losses["fixed"]


def test_levenberg_marquardt_resumes_bit_for_bit() -> None:
    def train(model: nn.Module, optimizer: MFAC, damping: LevenbergMarquardt, steps: range) -> None:
        for _ in steps:
            rows, residuals = jacobian(model, 0)
            damping.step(residuals.square().mean() / 2)
            optimizer.step(rows=rows, residuals=residuals)

    def made(model: nn.Module) -> tuple[MFAC, LevenbergMarquardt]:
        optimizer = MFAC(model.parameters(), 1.0, window=K, damping=0.1)
        return optimizer, LevenbergMarquardt(optimizer)

    model = net(1)
    optimizer, damping = made(model)
    train(model, optimizer, damping, range(5))
    states = through_a_file([optimizer.state_dict(), damping.state_dict()])
    twin = copy.deepcopy(model)
    train(model, optimizer, damping, range(5))
    resumed = made(twin)
    for each, state in zip(resumed, states, strict=True):
        each.load_state_dict(state)
    train(twin, *resumed, range(5))
    torch.testing.assert_close(vector(model), vector(twin), rtol=0, atol=0)
    assert optimizer.param_groups[0]["damping"] == resumed[0].param_groups[0]["damping"] < 0.1


def test_levenberg_marquardt_refuses_what_it_cannot_predict() -> None:
    model = net()
    for options, sentence in (
        ({"momentum": 0.9}, "no momentum"),
        ({"lr": 2.0}, "below 2"),
        ({"factor": 1.0}, "factor"),
        ({"min_damping": 0.0}, "min_damping"),
        ({"min_damping": 2.0, "max_damping": 1.0}, "min_damping"),
    ):
        own = {key: value for key, value in options.items() if key in ("momentum", "lr")}
        rest = {key: value for key, value in options.items() if key not in own}
        with pytest.raises(WoodburyError, match=sentence):
            LevenbergMarquardt(MFAC(model.parameters(), **own), **rest)
    with pytest.raises(WoodburyError, match="or all maximize"):
        mixed: Any = [
            {"params": model[0].parameters(), "maximize": True},
            {"params": model[2].parameters()},
        ]
        LevenbergMarquardt(MFAC(mixed))
    groups: Any = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters()}]
    with pytest.raises(WoodburyError, match="one lr"):
        LevenbergMarquardt(MFAC(groups))
