"""The exact diagonal of the Hessian against the whole Hessian written out in float64."""

from __future__ import annotations

import pytest
import torch
from support.limits import Limited
from support.once_differentiable import SquareOnce
from support.random import normal
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from woodbury.errors import WoodburyError
from woodbury.estimation.hessian import second_derivatives
from woodbury.estimation.labels import sampled
from woodbury.estimation.recipes import hessian_diagonal
from woodbury.model.likelihood import Likelihood, squared_error
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.monitor import progress

COUNT = 11


def perceptron() -> Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    model(3 * normal(50, 4) + 1)  # running statistics that are not 0 and 1
    return Objective.from_model(
        model.train(), [(normal(8, 4), torch.arange(8) % 3), (normal(6, 4), torch.arange(6) % 3)]
    )


def convolutional() -> Objective:
    torch.manual_seed(1)
    convolution = nn.Conv2d(2, 3, 3, padding=1), nn.Softplus(), nn.MaxPool2d(2)
    model = nn.Sequential(*convolution, nn.Flatten(), nn.Linear(12, 2)).double()
    return Objective.from_model(
        model, [(normal(12, 2, 4, 4), normal(12, 2, seed=1))], squared_error
    )


class Attention(nn.Module):
    """One whose last weight's slope does not depend on it."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.last = nn.Linear(3, 3), nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        mixed = nn.functional.scaled_dot_product_attention(
            self.queries(x)[:, None], x[:, None], x[:, None]
        )
        return mixed[:, 0].mean(1)[:, :2] + self.last


def attentive() -> Objective:
    torch.manual_seed(2)
    linear = Likelihood(lambda output, target: (output * target).sum(1).mean())
    return Objective.from_model(
        Attention().double(), [(normal(12, 4, 3), normal(12, 2, seed=1))], linear
    )


OBJECTIVES = {"perceptron": perceptron, "convolutional": convolutional, "attentive": attentive}


def truth(objective: Objective, count: int = COUNT) -> Tensor:
    inputs, target = (torch.cat(leaves)[:count] for leaves in zip(*objective.batches, strict=True))
    model, space = objective.model.eval(), objective.space

    def loss(weights: Tensor) -> Tensor:
        return objective.likelihood.loss(
            functional_call(model, space.unflatten(weights), (inputs,)), target
        )

    with sdpa_kernel(SDPBackend.MATH):
        matrix = torch.autograd.functional.hessian(loss, objective.weights)
    assert isinstance(matrix, Tensor)
    return matrix.diagonal()


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("restricted", [False, True])
def test_it_is_the_diagonal_of_the_hessian(name: str, restricted: bool, limited: Limited) -> None:
    limited(hessian_samples=4)
    limited(hessian_columns=7)
    objective = OBJECTIVES[name]()
    if restricted:
        keep = torch.arange(objective.space.d) % 3 != 1
        objective = objective.at(objective.weights[keep], objective.space.restrict(keep))
    modes, exact = (
        [module.training for module in objective.model.modules()],
        second_derivatives(objective, COUNT),
    )
    assert [module.training for module in objective.model.modules()] == modes
    torch.testing.assert_close(exact, truth(objective), rtol=1e-9, atol=1e-12)
    assert bool((exact < 0).any()), "the negative entries are part of the test"
    curvature = hessian_diagonal(COUNT, 0.5)(objective).diagonal()
    torch.testing.assert_close(curvature, truth(objective).clamp(min=0) + 0.5)


def test_a_loss_that_is_linear_in_the_weights_has_none() -> None:
    model = nn.Linear(3, 1).double()
    linear = Likelihood(lambda output, target: (output[:, 0] * target).mean())
    objective = Objective.from_model(model, [(normal(5, 3), normal(5))], linear)
    assert torch.equal(second_derivatives(objective, 5), torch.zeros(4, dtype=torch.float64))


def test_labels_may_be_sampled() -> None:
    objective = perceptron()
    unlabelled = Objective.from_model(objective.model, [(normal(14, 4), None)])
    generator = torch.Generator().manual_seed(3)
    drawn = sampled(unlabelled, normal(14, 4)[:COUNT], None, generator)
    labelled = Objective.from_model(objective.model, [(normal(14, 4)[:COUNT], drawn)])
    found = hessian_diagonal(COUNT, 0.5, labels=sampled, seed=3)(unlabelled).diagonal()
    torch.testing.assert_close(found, truth(labelled).clamp(min=0) + 0.5)


def test_progress_ends_at_the_last_weight() -> None:
    seen: list[tuple[str, int, int]] = []
    with progress(lambda *what: seen.append(what)):
        second_derivatives(perceptron(), COUNT)
    assert seen[-1] == ("second derivatives", 53, 53)
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda: second_derivatives(perceptron(), 0), "at least 1"),
        (lambda: second_derivatives(perceptron(), 15), "14 of the 15"),
        (lambda: hessian_diagonal(COUNT, 0.0), "damping is 0"),
        (
            lambda: second_derivatives(
                Objective.from_model(
                    nn.Sequential(nn.Linear(4, 3), SquareOnce()).double(), perceptron().batches
                ),
                COUNT,
            ),
            "differentiated twice by '0.weight'",
        ),
        (
            lambda: second_derivatives(
                Objective.from_model(
                    nn.Linear(2, 1).double(),
                    [(torch.zeros(3, 2).double(), torch.zeros(3, 1).double())],
                    Likelihood(
                        lambda output, target: (
                            (output - output.detach() + target).abs().sqrt().mean()
                        )
                    ),
                ),
                3,
            ),
            "'weight' is not finite",
        ),
    ],
)
def test_bad_requests_are_named(act, says: str) -> None:
    with pytest.raises(WoodburyError, match=says):
        act()


def test_a_scalar_has_a_curvature_too() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * x

    model, x = Scaled(), normal(5, 2)
    objective = Objective.from_model(
        model, [(x, 0 * x)], squared_error, ParameterSpace.from_model(model, min_ndim=0)
    )
    torch.testing.assert_close(second_derivatives(objective, 5), x.square().sum(1).mean()[None])
