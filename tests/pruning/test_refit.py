"""Refit: the damped least-squares step against a dense float64 solve, and what it must lower."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.random import normal
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from woodbury.errors import WoodburyError, WrongType
from woodbury.estimation import output_residuals
from woodbury.estimation.engines import looped, vmapped
from woodbury.estimation.ggn import gauss_newton_rows
from woodbury.estimation.recipes import gauss_newton, mfac
from woodbury.evaluation.methods import Method, run
from woodbury.model.batches import Batch
from woodbury.model.likelihood import Likelihood, cross_entropy, squared_error
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.monitor import progress
from woodbury.pruning.damping_search import DampingSearch
from woodbury.pruning.pruned import Pruned
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.refit import output_fit
from woodbury.pruning.refit.output_fit import Refit
from woodbury.pruning.refit.with_refit import WithRefit
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.scopes import layerwise
from woodbury.pruning.staged import run_stages
from woodbury.pruning.updates import zero


def data(samples: int = 40, seed: int = 0) -> list[Batch]:
    return list(
        zip(
            normal(samples, 6, seed=seed).split(15),
            (torch.arange(samples) % 3).split(15),
            strict=True,
        )
    )


def dense(
    linear: bool = False, likelihood: Likelihood = cross_entropy, samples: int = 40
) -> Objective:
    torch.manual_seed(0)
    layers: list[nn.Module] = (
        [nn.Linear(6, 3)] if linear else [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)]
    )
    model = nn.Sequential(*layers).double()
    return Objective.from_model(
        model, data(samples), likelihood, ParameterSpace.from_model(model, min_ndim=2)
    )


@torch.no_grad()
def divergence(objective: Objective, start: Objective, batches: list[Batch] | None = None) -> float:
    """The mean KL divergence of what `objective` predicts from what `start` does."""
    total, samples = 0.0, 0
    for inputs, _ in batches or start.batches:
        here, goal = (
            one.forward(one.parameters, inputs).log_softmax(1) for one in (objective, start)
        )
        total += float((goal.exp() * (goal - here)).sum())
        samples += len(inputs)
    return total / samples


def truth(objective: Objective, start: Objective, refit: Refit) -> Tensor:
    """−(JᵀJ/m + λ)⁻¹ Jᵀr/m of one step, row by row and dense."""
    goal = gauss_newton_rows(
        replace(start, batches=objective.batches),
        refit.mc_samples,
        refit.seed + 2 * objective.space.d,
    )
    rows, residuals = [], []
    for inputs, directions in goal.batches:
        for x, direction in zip(inputs, directions, strict=True):
            weights = objective.weights.clone().requires_grad_()
            output = objective.forward(objective.space.unflatten(weights), x[None])[0]
            goal_output = start.forward(start.parameters, x[None])[0]
            residual = ((output - goal_output.detach()) * direction).sum()
            rows.append(torch.autograd.grad(residual, weights)[0])
            residuals.append(residual.detach())
    jacobian, r, m = torch.stack(rows), torch.stack(residuals), len(rows)
    normal_matrix = jacobian.mT @ jacobian / m + refit.damping * torch.eye(
        objective.space.d, dtype=torch.float64
    )
    return -torch.linalg.solve(normal_matrix, jacobian.mT @ r / m)


@pytest.mark.parametrize("mc_samples", [1, 3])
def test_one_step_is_the_damped_least_squares_solution(mc_samples: int) -> None:
    start = dense()
    pruned = Pruner(None, magnitude, zero)(start, 0.5).objective
    refit = Refit(mc_samples=mc_samples, damping=1e-1)
    found = refit(pruned, start)
    torch.testing.assert_close(found.weights - pruned.weights, truth(pruned, start, refit))
    assert (
        found.space is pruned.space
        and found.likelihood is pruned.likelihood
        and found.batches is pruned.batches
    )


@pytest.mark.parametrize("mc_samples", [1, 5])
def test_conjugate_gradients_reach_the_same_step_without_rows(
    mc_samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = dense()
    reports: list[tuple[str, int, int]] = []
    pruned = Pruner(None, magnitude, zero)(start, 0.5).objective
    refit = Refit(mc_samples=mc_samples, damping=1e-1, iterations=60)
    monkeypatch.setattr("woodbury.estimation.output_residuals.gradient_rows", None)
    with progress(lambda *now: reports.append(now)):
        found = refit(pruned, start)
    torch.testing.assert_close(
        found.weights - pruned.weights, truth(pruned, start, refit), rtol=1e-5, atol=1e-5
    )
    assert reports[0] == ("iterations of a refit", 1, 60)
    assert reports[-1] == ("iterations of a refit", 60, 60)
    assert (
        found.space is pruned.space
        and found.likelihood is pruned.likelihood
        and found.batches is pruned.batches
    )


def test_more_conjugate_gradients_come_closer() -> None:
    start = dense()
    pruned = Pruner(None, magnitude, zero)(start, 0.5).objective
    first, more, all_ = (
        Refit(mc_samples=9, iterations=count)(pruned, start) for count in (1, 4, 40)
    )
    assert (
        divergence(all_, start)
        < divergence(more, start)
        < divergence(first, start)
        < divergence(pruned, start)
    )


def test_one_step_restores_a_linear_network_with_squared_error() -> None:
    start = dense(linear=True, likelihood=squared_error)
    moved = start.at(start.weights + normal(18, seed=3))
    found = Refit(mc_samples=6, damping=1e-10)(moved, start)
    torch.testing.assert_close(found.weights, start.weights, rtol=0, atol=1e-6)


def test_the_divergence_falls_and_falls_further_with_more_steps() -> None:
    start = dense()
    pruned = Pruner(gauss_newton(mfac(80, 1e-3), 2))(start, 0.6).objective
    far = divergence(pruned, start)
    near, nearer = (
        divergence(Refit(steps, damping=1e-3)(pruned, start), start) for steps in (1, 4)
    )
    assert nearer < near < 0.5 * far


def test_the_dense_network_itself_does_not_move() -> None:
    start = dense()
    torch.testing.assert_close(Refit()(start, start).weights, start.weights, rtol=0, atol=0)


def test_labels_are_not_read() -> None:
    start = dense()
    pruned = Pruner(None, magnitude, zero)(start, 0.5).objective
    unlabelled = replace(pruned, batches=[(inputs, None) for inputs, _ in start.batches])
    torch.testing.assert_close(Refit()(unlabelled, start).weights, Refit()(pruned, start).weights)


def test_a_loader_that_shuffles_comes_as_close_as_a_list() -> None:
    """Both cover four fifths of the way. The order of the samples changes their directions."""
    start = dense()
    pruned = Pruner(None, magnitude, zero)(start, 0.5).objective
    (inputs, target), *_ = data(40)
    loader = DataLoader(TensorDataset(inputs, target), batch_size=5, shuffle=True)
    shuffled = divergence(Refit(4)(replace(pruned, batches=loader), start), start)
    ordered = divergence(Refit(4)(replace(pruned, batches=[(inputs, target)]), start), start)
    assert max(shuffled, ordered) < 0.2 * divergence(pruned, start)


def test_a_step_that_does_not_come_closer_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    start = dense()
    pruned = Pruner(None, magnitude, zero)(start, 0.5).objective
    wild = torch.full_like(pruned.weights, torch.nan)
    monkeypatch.setattr("woodbury.pruning.refit.output_fit.LowRank.solve_range", lambda *_: wild)
    torch.testing.assert_close(Refit()(pruned, start).weights, pruned.weights, rtol=0, atol=0)


def test_every_stage_is_refitted_to_the_dense_network_along_new_directions() -> None:
    start, pruner = dense(), Pruner(gauss_newton(mfac(80, 1e-3), 2))
    by_hand, seeds = Pruned(start, ()), []
    for sparsity in (0.4, 0.7):
        step = pruner(by_hand.objective, sparsity)
        by_hand = replace(step, objective=Refit()(step.objective, start))
        seeds.append(step.objective.space.d)
    found = run_stages(WithRefit.around(pruner, start), start, [0.4, 0.7])
    torch.testing.assert_close(found.weights, by_hand.weights)
    assert len(set(seeds)) == 2 and found.sparsity == pytest.approx(0.7, abs=0.01)
    assert (
        found.predicted
        == found.steps[-1].distance
        == pytest.approx(divergence(found.objective, start), rel=0.3)
    )
    plain = run_stages(pruner, start, [0.4, 0.7])
    unseen = data(200, seed=9)
    assert divergence(found.objective, start, unseen) < divergence(plain.objective, start, unseen)


def test_a_comparison_refits_too() -> None:
    start, pruner = dense(), Pruner(gauss_newton(mfac(80, 1e-3), 2))
    found = run(Method(pruner, stages=2, refit=Refit()), start, 0.7).pruned
    plain = run(Method(pruner, stages=2), start, 0.7).pruned
    assert divergence(found.objective, start) < divergence(plain.objective, start)


@pytest.mark.parametrize("engine", [looped, vmapped])
def test_the_engine_can_be_pinned(engine: Any) -> None:
    start = dense()
    pruned = Pruner(None, magnitude, zero)(start, 0.5).objective
    torch.testing.assert_close(
        Refit(engine=engine)(pruned, start).weights, Refit()(pruned, start).weights
    )


def test_only_the_first_samples_are_read_if_so_asked() -> None:
    start = dense()
    pruned = Pruner(None, magnitude, zero)(start, 0.5).objective
    first = replace(pruned, batches=data()[:1])
    torch.testing.assert_close(
        Refit(samples=15)(pruned, start).weights, Refit()(first, start).weights
    )


def test_the_dense_network_stays_where_it_was_while_the_model_trains() -> None:
    start = dense()
    recipe = WithRefit.around(Pruner(), start)
    inputs, _ = data()[0]
    with torch.no_grad():
        before = start.forward(start.parameters, inputs)
        start.model[0].bias += 1.0  # type: ignore[index,operator]
        torch.testing.assert_close(recipe.dense.forward(recipe.dense.parameters, inputs), before)
        assert float((start.forward(start.parameters, inputs) - before).abs().max()) > 0.1


def test_replacing_a_field_does_not_copy_the_dense_network_again() -> None:
    start = dense()
    recipe = WithRefit.around(Pruner(), start)
    assert recipe.dense.model is not start.model
    assert replace(recipe, refit=Refit(2)).dense.model is recipe.dense.model


def test_the_rules_of_the_pruner_inside_hold_outside() -> None:
    search = DampingSearch(Pruner(scope=layerwise), data(seed=4))
    recipe = WithRefit.around(search, dense())
    assert recipe.rules.scope is layerwise and recipe.rules.cost is search.pruner.cost


def test_impossible_arguments_are_refused_early() -> None:
    for build, says in (
        (lambda: WithRefit.around(Pruner(), nn.Linear(6, 3)), "the Objective of the dense"),  # type: ignore[arg-type]
        (lambda: WithRefit.around(print, dense()), "give a Pruner"),  # type: ignore[arg-type]
        (
            lambda: DampingSearch(WithRefit.around(Pruner(), dense()), data()),
            "around DampingSearch",
        ),  # type: ignore[arg-type]
    ):
        with pytest.raises(WrongType, match=says):
            build()
    for wrong in (
        {"steps": 0},
        {"mc_samples": 0},
        {"steps": 1.5},
        {"samples": 0},
        {"iterations": 0},
        {"iterations": 2.0},
        {"damping": 0.0},
        {"damping": float("nan")},
    ):
        with pytest.raises(WoodburyError):
            Refit(**wrong)
    with pytest.raises(WoodburyError, match="directions"):
        WithRefit.around(
            Pruner(), replace(dense(), likelihood=Likelihood(lambda output, target: output.sum()))
        )
    with pytest.raises(WoodburyError, match="sparsity"):
        WithRefit.around(Pruner(), dense()).rules.check(dense().space, 1.5)


@pytest.mark.parametrize("iterations", [None, 3])
def test_directions_and_rows_that_have_no_room_are_refused_before_work(
    iterations: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = dense()
    huge = Refit(mc_samples=10**12, iterations=iterations)
    for call in (huge, huge.distance):
        with pytest.raises(WoodburyError, match=r"mc_samples is 1,000,000,000,000: .* lower it"):
            call(start, start)
    # Directions of 40 samples × 4 × 3 floats have room, rows of 72 floats do not.
    monkeypatch.setattr(output_residuals, "available_bytes", lambda: 4000)
    monkeypatch.setattr(output_fit, "available_bytes", lambda: 4000)
    refit = Refit(iterations=iterations)
    if iterations is None:
        with pytest.raises(WoodburyError, match="holds 160 rows, mc_samples × samples, which take"):
            refit(start, start)
    else:
        refit(start, start)
