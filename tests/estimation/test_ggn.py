"""Gauss–Newton rows against the exact matrix: over all signs and positions, without labels."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from support.random import normal
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.estimation.ggn import gauss_newton_rows
from woodbury.estimation.gradients import gradient_rows
from woodbury.estimation.labels import sampled
from woodbury.estimation.recipes import gauss_newton, mfac
from woodbury.model.likelihood import Likelihood, cross_entropy, squared_error
from woodbury.model.objective import Objective
from woodbury.pruning.pruner import Pruner


def exact(objective: Objective) -> Tensor:
    """Σ Jᵀ H J / samples by the Hessian of the loss in the output, sample by sample."""
    total = torch.zeros(objective.space.d, objective.space.d, dtype=torch.float64)
    samples = 0
    for inputs, target in objective.batches:
        for i in range(len(inputs)):

            def output(vector: Tensor, one: Tensor = inputs[i : i + 1]) -> Tensor:
                return objective.forward(objective.space.unflatten(vector), one)

            found = output(objective.weights)
            jacobian = torch.autograd.functional.jacobian(output, objective.weights).reshape(
                found.numel(), -1
            )
            label = target[i : i + 1]
            hessian = torch.autograd.functional.hessian(
                lambda f, label=label: objective.likelihood.loss(f, label), found.detach()
            )
            total += jacobian.T @ hessian.reshape(found.numel(), found.numel()) @ jacobian
            samples += 1
    return total / samples


class OverPositions(nn.Module):
    """(b, 4, t) -> logits (b, 3, t)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mT).tanh().mT


def problem(positions: int | None = None, likelihood: Likelihood = cross_entropy) -> Objective:
    torch.manual_seed(1)
    if positions:
        inputs, target = normal(4, 4, positions), torch.arange(4 * positions).view(4, positions) % 3
        target[0, 0] = -100
        return Objective.from_model(
            OverPositions().double(),
            [(inputs[:3], target[:3]), (inputs[3:], target[3:])],
            likelihood,
        )
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3, bias=False)).double()
    target = torch.arange(6) % 3 if likelihood is cross_entropy else normal(6, 3, seed=2)
    return Objective.from_model(model, [(normal(6, 4), target)], likelihood)


@pytest.mark.parametrize("likelihood", [cross_entropy, squared_error])
def test_the_mean_over_all_signs_is_the_gauss_newton_matrix(
    likelihood: Likelihood, monkeypatch
) -> None:
    objective = problem(likelihood=likelihood)
    total = torch.zeros(objective.space.d, objective.space.d, dtype=torch.float64)
    for signs in product((-1.0, 1.0), repeat=3):
        of = "of_classes" if likelihood is cross_entropy else "of_values"
        monkeypatch.setattr(
            f"woodbury.model.likelihood.{of}.random_signs",
            lambda shape, *_, s=signs: torch.tensor(s).double().expand(shape),
        )
        found = gradient_rows(gauss_newton_rows(objective, 1), 6)
        total += found.T @ found / 6 / 8
    torch.testing.assert_close(total, exact(objective))


@pytest.mark.parametrize("positions", [None, 3])
def test_many_rows_come_near_the_gauss_newton_matrix(positions: int | None) -> None:
    objective = problem(positions)
    truth, rank = exact(objective), 4000
    samples = sum(len(inputs) for inputs, _ in objective.batches)
    found = gradient_rows(gauss_newton_rows(objective, rank), samples * rank)
    assert float((found.T @ found / len(found) - truth).norm() / truth.norm()) < 0.05


def test_a_recipe_needs_no_labels_and_prunes() -> None:
    objective = problem()
    unlabelled = Objective.from_model(
        objective.model, [(inputs, None) for inputs, _ in objective.batches]
    )
    recipe = gauss_newton(mfac(12, 1e-3), 2)
    torch.testing.assert_close(recipe(objective).rows, recipe(unlabelled).rows)  # type: ignore[attr-defined]
    assert Pruner(recipe)(unlabelled, 0.5).keep.sum() == 12
    again = gauss_newton(mfac(12, 1e-3), 2, seed=1)(objective)
    assert not torch.allclose(again.rows, recipe(objective).rows)  # type: ignore[attr-defined]


def test_probabilities_for_labels_mark_nothing_as_unobserved() -> None:
    objective = problem()
    soft = [(inputs, normal(len(inputs), 3, seed=5).softmax(1)) for inputs, _ in objective.batches]
    found = Objective.from_model(objective.model, soft)
    torch.testing.assert_close(
        gradient_rows(gauss_newton_rows(found, 3), 18),
        gradient_rows(gauss_newton_rows(objective, 3), 18),
    )
    torch.testing.assert_close(
        gradient_rows(found, 6, **drawn()), gradient_rows(objective, 6, **drawn())
    )


def drawn() -> dict[str, Any]:
    return {"labels": sampled, "generator": torch.Generator().manual_seed(0)}


def test_what_the_model_gives_may_be_read_first() -> None:
    objective = problem()

    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.inner(x)}

    reading = cross_entropy.with_output(lambda output: output["logits"])
    wrapped = Objective.from_model(Wrapped(objective.model), objective.batches, reading)
    torch.testing.assert_close(
        gradient_rows(gauss_newton_rows(wrapped, 2), 12),
        gradient_rows(gauss_newton_rows(objective, 2), 12),
    )


def test_what_cannot_be_is_named() -> None:
    objective = problem()
    with pytest.raises(WoodburyError, match="at least 1"):
        gauss_newton_rows(objective, 0)
    with pytest.raises(WoodburyError, match="no Gauss–Newton matrix"):
        gauss_newton_rows(
            Objective.from_model(
                objective.model, objective.batches, Likelihood(cross_entropy.loss)
            ),
            2,
        )
    with pytest.raises(WoodburyError, match="12 of the 13"):
        gauss_newton(mfac(13), 2)(objective)


@pytest.mark.parametrize("likelihood", [cross_entropy, squared_error])
@pytest.mark.parametrize(
    "rows_by", [lambda o: gauss_newton_rows(o, 1), lambda o: gradient_rows(o, 2, labels=sampled)]
)
def test_an_output_that_is_no_tensor_is_named(likelihood: Likelihood, rows_by: Any) -> None:
    class Named(nn.Linear):
        def forward(self, x: Tensor) -> Any:  # type: ignore[override]
            return {"logits": super().forward(x)}

    objective = Objective.from_model(Named(4, 3), [(torch.ones(2, 4), None)], likelihood)
    with pytest.raises(WoodburyError, match=r"got a dict from the model.*with_output"):
        found = rows_by(objective)
        list(found.batches)
