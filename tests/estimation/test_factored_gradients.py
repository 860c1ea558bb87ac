"""Gradients as outer products against the rows of one backward pass each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.random import normal
from torch import Tensor, nn
from torch.nn import functional

from woodbury.estimation.engines import looped
from woodbury.estimation.factored_gradients import FactoredGradients, factored_rows
from woodbury.estimation.ggn import gauss_newton_rows
from woodbury.estimation.gradients import gradient_rows
from woodbury.limits import Limits
from woodbury.linalg.factored_rows import PANEL
from woodbury.model.batches import Samples
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace

COUNT = 12


class Branches(nn.Module):
    """Two layers side by side, one without a bias, and one that is not chosen in some tests."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 5), nn.Linear(6, 5, bias=False)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.left(x) * self.right(x)).tanh())


class Positions(nn.Module):
    """Its layer sees two positions of each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.view(len(x), 2, 3)).sum(1)


class Functional(nn.Module):
    """Its weight is used once by its layer, and once more beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.layer(x).tanh(), self.layer.weight)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


class Mixing(nn.Module):
    """Its samples see each other, so that no gradient is of one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - x.mean(0))


def objective_of(model: nn.Module, include: str = "*", count: int = COUNT) -> Objective:
    batches = [(normal(count, 6), torch.arange(count) % 4)]
    model = model.double()
    return Objective.from_model(model, batches, space=ParameterSpace.from_model(model, include))


@pytest.mark.parametrize("include", ["*", "left.*", "*.bias", "*.weight"])
def test_products_are_those_of_the_rows(include: str) -> None:
    torch.manual_seed(0)
    objective = objective_of(Branches(), include)
    rows = gradient_rows(objective, COUNT, engine=looped)
    engine = FactoredGradients.of(objective)
    if include == "*.bias":  # a bias has a gradient no larger than its factors
        assert engine is None
        return
    found = factored_rows([(objective, COUNT)])
    assert found is not None
    torch.testing.assert_close(found.gram(), rows @ rows.mT, rtol=1e-12, atol=1e-14)
    v = normal(objective.space.d, seed=5)
    torch.testing.assert_close(found.times(v), rows @ v, rtol=1e-12, atol=1e-14)


def test_several_sources_and_gauss_newton_rows_lie_one_after_the_other() -> None:
    torch.manual_seed(0)
    objective = objective_of(Branches())
    curved = gauss_newton_rows(objective, 3)
    sources = [(objective, COUNT), (curved, 3 * COUNT)]
    rows = torch.cat([gradient_rows(each, count, engine=looped) for each, count in sources])
    found = factored_rows(sources)
    assert found is not None
    torch.testing.assert_close(found.gram(), rows @ rows.mT, rtol=1e-12, atol=1e-14)


def test_more_rows_than_a_panel() -> None:
    torch.manual_seed(0)
    count = PANEL + 30
    objective = objective_of(Branches(), count=count)
    rows = gradient_rows(objective, count)
    found = factored_rows([(objective, count)])
    assert found is not None
    torch.testing.assert_close(found.gram(), rows @ rows.mT, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "make",
    [
        Positions,
        Functional,
        Tied,
        Mixing,
        lambda: nn.Sequential(nn.Linear(6, 6), nn.PReLU(), nn.Linear(6, 4)),
        lambda: nn.Linear(6, 1),
    ],
)
def test_gradients_that_are_no_such_products_are_left_to_the_rows(
    make: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    assert factored_rows([(objective_of(make()), COUNT)]) is None


def test_pruned_weights_and_a_lack_of_room_are_left_to_the_rows() -> None:
    torch.manual_seed(0)
    objective = objective_of(Branches())
    with Limits(memory=8 * 10 * COUNT):
        assert factored_rows([(objective, COUNT)]) is None
    keep = torch.arange(objective.space.d) % 2 == 0
    model = Branches().double()
    batches = [(normal(COUNT, 6), torch.arange(COUNT) % 4)]
    space = ParameterSpace.from_model(model).restrict(keep)
    smaller = Objective.from_model(model, batches, space=space)
    assert factored_rows([(smaller, COUNT)]) is None


def test_a_gradient_that_is_not_finite_is_left_to_the_rows() -> None:
    torch.manual_seed(0)
    objective = objective_of(Branches())
    x = normal(COUNT, 6)
    x[-1, 0] = torch.inf
    broken = Objective.from_model(
        objective.model, Samples.of([(x, torch.arange(COUNT) % 4)]), space=objective.space
    )
    assert factored_rows([(broken, COUNT)]) is None
