"""Laplace against Bayesian linear regression in closed form, and dense inverses."""

from __future__ import annotations

import math

import pytest
import torch
from support import dense
from support.random import normal
from torch import Tensor, nn

import woodbury
from woodbury import Laplace, Objective, WoodburyError, likelihoods
from woodbury.applications.inverse_forms import FormsByDamping
from woodbury.applications.linearised_outputs import linearised, outputs_at
from woodbury.applications.vector_groups import DenseGroups, OuterGroups
from woodbury.estimation.ggn import gauss_newton_rows
from woodbury.estimation.gradients import gradient_rows
from woodbury.fisher import BlockDiagonal, Dense, Diagonal, LowRank
from woodbury.memory.row_store import stored_rows

N, WIDTH, SCALE, PRECISION = 25, 4, 0.7, 2.5


def regression() -> tuple[Tensor, Tensor]:
    x = normal(N, WIDTH)
    return x, x @ normal(WIDTH, 1, seed=2) + SCALE * normal(N, 1, seed=3)


def bayesian(precision: float = PRECISION) -> tuple[Laplace, Tensor]:
    """The posterior of a linear model at its most probable weights, and its dense precision."""
    x, y = regression()
    matrix = x.mT @ x / SCALE**2 + precision * torch.eye(WIDTH, dtype=torch.float64)
    model = nn.Linear(WIDTH, 1, bias=False).double()
    model.weight.data.copy_(torch.linalg.solve(matrix, x.mT @ y / SCALE**2).mT)
    objective = Objective.from_model(model, [(x, y)], likelihoods.normal(SCALE))
    fisher = woodbury.gauss_newton(woodbury.mfac(N, precision / N), 1)(objective)
    return Laplace(fisher, objective), matrix


def test_the_predictive_distribution_is_that_of_bayesian_linear_regression() -> None:
    posterior, matrix = bayesian()
    assert posterior.n == N and posterior.prior_precision == pytest.approx(PRECISION)
    inputs = normal(6, WIDTH, seed=8)
    mean, covariance = posterior.predict(inputs)
    torch.testing.assert_close(mean[:, 0], inputs @ posterior.objective.weights)
    expected = (inputs * torch.linalg.solve(matrix, inputs.mT).mT).sum(1)
    torch.testing.assert_close(covariance[:, 0, 0], expected, rtol=1e-9, atol=0)


def test_the_evidence_is_that_of_bayesian_linear_regression() -> None:
    for precision in (0.1, PRECISION, 30.0):
        posterior, _ = bayesian(precision)
        x, y = regression()
        marginal = torch.distributions.MultivariateNormal(
            torch.zeros(N, dtype=torch.float64),
            SCALE**2 * torch.eye(N, dtype=torch.float64) + x @ x.mT / precision,
        )
        left_out = N * (0.5 * math.log(2 * math.pi) + math.log(SCALE))
        found = posterior.log_marginal_likelihood() - left_out
        assert found == pytest.approx(float(marginal.log_prob(y[:, 0])), rel=1e-10)


def test_the_best_prior_is_the_maximum_of_the_dense_evidence() -> None:
    posterior, matrix = bayesian(0.01)
    curvature = matrix - 0.01 * torch.eye(WIDTH, dtype=torch.float64)
    square = posterior.objective.weights.square().sum()

    def slope(precision: float) -> float:
        """The derivative by the precision, with the weights held."""
        damped = curvature + precision * torch.eye(WIDTH, dtype=torch.float64)
        return float((WIDTH / precision - square - torch.linalg.inv(damped).trace()) / 2)

    best = posterior.with_best_prior().prior_precision
    assert slope(best * 0.99) > 0 > slope(best * 1.01)


def classifier() -> Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return Objective.from_model(model, [(normal(30, 4), torch.arange(30) % 3)])


def test_the_covariance_of_a_network_is_that_of_its_dense_jacobian() -> None:
    objective = classifier()
    rows = gradient_rows(gauss_newton_rows(objective, 2), 60)
    posterior = Laplace(LowRank(rows, 0.05), objective)
    inputs = normal(3, 4, seed=9)
    mean, covariance = posterior.predict(inputs)
    inverse = torch.linalg.inv(30 * dense.low_rank(rows, 0.05))
    for sample in range(3):

        def outputs(vector: Tensor, sample: int = sample) -> Tensor:
            parameters = objective.space.unflatten(vector)
            one = inputs[sample : sample + 1]
            return torch.func.functional_call(objective.model, parameters, (one,))[0]

        jacobian = torch.autograd.functional.jacobian(outputs, objective.weights)
        assert isinstance(jacobian, Tensor)
        expected = jacobian @ inverse @ jacobian.mT
        torch.testing.assert_close(covariance[sample], expected, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(mean[sample], outputs(objective.weights))
    variance = covariance.diagonal(dim1=1, dim2=2)
    expected = (mean / (1 + math.pi / 8 * variance).sqrt()).softmax(1)
    torch.testing.assert_close(posterior.probabilities(inputs), expected)


def test_small_variances_keep_their_digits_in_float32() -> None:
    """An output that one row determines: subtracting in float32 would leave noise."""
    x = normal(1, WIDTH).float()
    model = nn.Linear(WIDTH, 1, bias=False)
    objective = Objective.from_model(model, [(x, torch.zeros(1, 1))], woodbury.squared_error)
    found = Laplace(LowRank(x, 1e-8), objective).predict(x).covariance
    square = float(x.double().square().sum())
    assert float(found) == pytest.approx(square / (square + 1e-8), rel=1e-4)


def test_held_out_data_choose_the_prior_of_their_largest_likelihood() -> None:
    objective = classifier()
    posterior = Laplace(woodbury.gauss_newton(woodbury.mfac(60, 0.1), 2)(objective), objective)
    x, y = normal(70, 4, seed=12), torch.arange(70) % 3
    chosen = posterior.with_prior_chosen_on([(x, y)])

    def loss(precision: float) -> float:
        p = posterior.with_prior_precision(precision).probabilities(x)
        return float(-p.log()[torch.arange(70), y].mean())

    priors = [posterior.prior_precision * 10 ** (step / 2) for step in range(-8, 9)]
    assert chosen.prior_precision == pytest.approx(min(priors, key=loss))
    with pytest.raises(WoodburyError, match="held_out holds no samples"):
        posterior.with_prior_chosen_on([])
    with pytest.raises(WoodburyError, match="carry no labels"):
        posterior.with_prior_chosen_on([(x, None)])


@pytest.mark.parametrize("kind", ["rows", "weighted rows", "diagonal", "dense", "blocks"])
def test_draws_have_the_mean_and_the_covariance_of_the_posterior(kind: str) -> None:
    posterior, _ = bayesian()
    rows, weights = normal(9, WIDTH, seed=5), torch.arange(1, 10).double()
    curvature = rows.mT @ rows / 9
    block = LowRank(rows[:, :2], 0.3)
    fisher = {
        "rows": LowRank(rows, 0.3),
        "weighted rows": LowRank(rows, 0.3, weights),
        "diagonal": Diagonal(curvature.diagonal(), 0.3),
        "dense": Dense(curvature, 0.3),
        "blocks": BlockDiagonal((block, Diagonal(torch.ones(2).double(), 0.3))),
    }[kind]
    eye = torch.eye(WIDTH, dtype=torch.float64)
    inverse = torch.linalg.inv(torch.stack([fisher @ column for column in eye])) / N
    draws = Laplace(fisher, posterior.objective).sample(40_000)
    away = draws - posterior.objective.weights
    scale = inverse.diagonal().sqrt()
    assert bool((away.mean(0).abs() < 5 * scale / 200).all())
    found = away.mT @ away / len(away)
    assert bool(((found - inverse).abs() < 0.04 * scale[:, None] * scale).all())


def test_draws_are_the_same_for_the_same_seed_and_give_outputs() -> None:
    objective = classifier()
    posterior = Laplace(woodbury.mfac(30, 0.1)(objective), objective)
    draws = posterior.sample(3, seed=4)
    assert torch.equal(draws, posterior.sample(3, seed=4))
    assert not torch.equal(draws, posterior.sample(3, seed=5))
    inputs = normal(2, 4)
    found = posterior.outputs(draws, inputs)
    assert found.shape == (3, 2, 3)
    parameters = objective.space.unflatten(draws[1])
    expected = torch.func.functional_call(objective.model, parameters, (inputs,))
    torch.testing.assert_close(found[1], expected.detach())


def test_what_does_not_fit_is_said_in_one_sentence() -> None:
    objective = classifier()
    posterior = Laplace(woodbury.mfac(30, 0.1)(objective), objective)
    d = objective.space.d
    with pytest.raises(WoodburyError, match="Fisher is of 4 weights and the objective's space has"):
        Laplace(Diagonal(torch.ones(4), 0.1), objective)
    with pytest.raises(WoodburyError, match=rf"draws have shape \(2, 5\) .* give \(count, {d}\)"):
        posterior.outputs(torch.ones(2, 5), normal(2, 4))
    with pytest.raises(WoodburyError, match="A draw is not finite"):
        posterior.outputs(torch.full((1, d), torch.nan), normal(2, 4))
    with pytest.raises(WoodburyError, match=r"precision is 0\.0"):
        posterior.with_prior_precision(0.0)
    with pytest.raises(WoodburyError, match=r"memory ran out.*: ask for fewer draws"):
        posterior.sample(10**12)
    with pytest.raises(WoodburyError, match="refuses a batch with inputs of shape"):
        posterior.predict(normal(2, 9))
    large = woodbury.kfac(30, 0.1)(
        Objective.from_model(nn.Linear(60, 60), [(torch.randn(30, 60), torch.arange(30))])
    )
    layer = Objective.from_model(nn.Linear(60, 60), [(torch.randn(30, 60), torch.arange(30))])
    with pytest.raises(WoodburyError, match=r"Kronecker.* of 3600 weights is too large to draw"):
        Laplace(large, layer).sample(1)


@pytest.mark.parametrize("kind", ["rows", "weighted rows", "diagonal"])
def test_forms_of_several_dampings_are_those_of_the_dense_inverse(kind: str) -> None:
    rows, weights = normal(9, 6, seed=5), torch.arange(1, 10).double()
    curvature = rows.mT @ rows / 9
    fisher, matrix = {
        "rows": (LowRank(rows, 0.3), curvature),
        "weighted rows": (LowRank(rows, 0.3, weights), rows.mT @ (weights[:, None] * rows) / 9),
        "diagonal": (Diagonal(curvature.diagonal(), 0.3), curvature.diagonal().diag()),
    }[kind]
    vectors, dampings = normal(4, 2, 6, seed=6), (1e-6, 1e-2, 10.0)
    eye = torch.eye(6, dtype=torch.float64)
    for damping, form in zip(
        dampings, FormsByDamping(fisher, dampings).between(DenseGroups(vectors)), strict=True
    ):
        expected = vectors @ torch.linalg.inv(matrix + damping * eye) @ vectors.mT
        torch.testing.assert_close(form, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("on_disk", [False, True])
def test_predictions_by_outer_products_are_those_of_the_written_jacobian(on_disk: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    objective = Objective.from_model(model, [(normal(150, 4), torch.arange(150) % 3)])
    rows = gradient_rows(objective, 150)
    stored = stored_rows([rows], (150, 51), torch.float64, memory=1 if on_disk else "1MiB")
    found = Laplace(LowRank(stored, 0.1), objective).predict(normal(5, 4, seed=1))
    linear = linearised(objective, normal(5, 4, seed=1), torch.float64)
    assert isinstance(linear.jacobian, OuterGroups)
    jacobian = torch.func.jacrev(lambda w: outputs_at(objective, w, normal(5, 4, seed=1)))(
        objective.weights
    )
    torch.testing.assert_close(linear.jacobian.dense(), jacobian)
    inverse = torch.linalg.inv(rows.mT @ rows / 150 + 0.1 * torch.eye(51).double())
    torch.testing.assert_close(found.covariance, jacobian @ inverse @ jacobian.mT / 150)
