"""Residuals: what they are, their Jacobian and its products, by definition and in float64."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.limits import Limited
from support.random import normal
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.estimation import output_residuals
from woodbury.estimation.output_residuals import Residuals, supports_forward_mode
from woodbury.model.batches import Batch
from woodbury.model.likelihood import Likelihood, cross_entropy, squared_error
from woodbury.model.objective import Objective
from woodbury.model.profile import ModelProfile
from woodbury.model.space import ParameterSpace


class Wrapped(nn.Module):
    """Gives its logits in a dictionary, beside something that has no samples."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"logits": self.net(x), "temperature": torch.tensor(1.0), "words": "none"}


class Heads(nn.Module):
    """By torch's own attention, which is fused in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(2, 1, batch_first=True), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Words(nn.Module):
    """Classes at each of three positions, (b, C, 3), by attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(nn.functional.scaled_dot_product_attention(h, h, h)).movedim(1, 2)


def logits(output: Any) -> Tensor:
    return output["logits"]


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def batches_of(*shape: int, labels: Tensor) -> list[Batch]:
    return list(zip(normal(11, *shape).split(4), labels.split(4), strict=True))


CLASSES = torch.arange(11) % 3
PADDED = torch.tensor([[0, 1, -100]] * 11)
CASES = [
    (plain, cross_entropy, batches_of(4, labels=CLASSES), lambda output: output),
    (plain, squared_error, batches_of(4, labels=normal(11, 3)), lambda output: output),
    (Wrapped, cross_entropy.with_output(logits), batches_of(4, labels=CLASSES), logits),
    (Words, cross_entropy, batches_of(3, 2, labels=PADDED), lambda output: output),
    (Heads, cross_entropy, batches_of(3, 2, labels=CLASSES), lambda output: output),
]


def pair(build: Any, likelihood: Likelihood, batches: list[Batch]) -> tuple[Objective, Objective]:
    """A network of which some weights are gone and the others moved, and the one it came from."""
    torch.manual_seed(0)
    model = build().double()
    goal = Objective.from_model(model, [], likelihood, ParameterSpace.from_model(model, min_ndim=2))
    keep = normal(goal.space.d, seed=1) > -0.5
    return Objective(
        model, batches, likelihood, goal.space.restrict(keep), goal.weights[keep] + 0.1
    ), goal


def at_once(objective: Objective, rank: int) -> int:
    """What a sample needs at once."""
    profile = ModelProfile.measure(objective)
    return max(profile.input_elements, profile.activation_elements, rank * profile.output_elements)


@pytest.mark.parametrize(("build", "likelihood", "batches", "read"), CASES)
def test_everything_is_what_its_definition_says(
    build: Any,
    likelihood: Likelihood,
    batches: list[Batch],
    read: Any,
    limited: Limited,
) -> None:
    limited(activations=3 * at_once(pair(build, likelihood, batches)[0], 4))
    objective, goal = pair(build, likelihood, batches)
    found = Residuals.between(objective, goal, 4, seed=2)
    inputs = torch.cat([part[0] for part in found.parts])
    directions = torch.cat([part[1] for part in found.parts])
    told = read(goal.forward(goal.parameters, inputs)).detach()

    def by_definition(weights: Tensor) -> Tensor:
        said = read(objective.forward(objective.space.unflatten(weights), inputs))
        return ((said - told)[:, None] * directions).flatten(2).sum(2).flatten()

    here, v = objective.weights, normal(objective.space.d, seed=5)
    jacobian = torch.autograd.functional.jacobian(by_definition, here)
    assert isinstance(jacobian, Tensor) and found.m == 44 == len(jacobian) and len(found.parts) == 4
    torch.testing.assert_close(found.at(here), by_definition(here).detach())
    torch.testing.assert_close(found.jacobian(), jacobian)
    torch.testing.assert_close(found.gradient(found.at(here)), jacobian.mT @ found.at(here) / 44)
    torch.testing.assert_close(found.gauss_newton_product(v), jacobian.mT @ (jacobian @ v) / 44)
    torch.testing.assert_close(found.at(here + v), by_definition(here + v).detach())


def test_positions_that_are_padding_count_for_nothing() -> None:
    objective, goal = pair(Words, cross_entropy, batches_of(3, 2, labels=PADDED))
    assert all(
        bool((part[1][..., 2] == 0).all())
        for part in Residuals.between(objective, goal, 2, seed=0).parts
    )


def test_only_the_first_samples_are_read_and_none_is_an_error() -> None:
    objective, goal = pair(plain, cross_entropy, batches_of(4, labels=CLASSES))
    few, first = (
        Residuals.between(one, goal, 2, 0, samples)
        for one, samples in (
            (objective, 4),
            (replace(objective, batches=batches_of(4, labels=CLASSES)[:1]), None),
        )
    )
    torch.testing.assert_close(few.at(objective.weights), first.at(objective.weights))
    with pytest.raises(WoodburyError, match="No batch"):
        Residuals.between(replace(objective, batches=[]), goal, 2, 0)
    with pytest.raises(WoodburyError, match="no Gauss–Newton matrix"):
        Residuals.between(objective, replace(goal, likelihood=Likelihood(cross_entropy.loss)), 2, 0)


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        (torch.ones(2, 784), 10, 784),
        ({"x": torch.ones(2, 3, 32, 32)}, 10, 3072),
        ((torch.ones(2, 16).long(),), 10, 16_000),
        (torch.ones(2, 5), 100, 400),
    ],
)
def test_what_a_sample_needs_is_counted(inputs: Any, outputs: int, expected: int) -> None:
    class Net(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return x.new_ones(len(x), outputs)

    model = Net(1, 1)
    assert at_once(Objective.from_model(model, [(inputs, None)]), 4) == expected
    assert not model._forward_hooks


def test_what_leaves_a_module_is_counted() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 50, 3, padding=1), nn.MaxPool2d(8), nn.Flatten(), nn.Linear(50, 10)
    )
    profile = ModelProfile.measure(Objective.from_model(model, [(torch.ones(2, 3, 8, 8), None)]))
    assert profile.input_elements == 192
    assert profile.activation_elements == 3200
    assert profile.output_elements == 10


def test_the_network_sees_few_samples_at_once_forward_and_backward(
    limited: Limited,
) -> None:
    objective, goal = pair(plain, cross_entropy, batches_of(4, labels=CLASSES))
    limited(activations=50)
    found, seen = Residuals.between(objective, goal, 4, 0), []
    objective.model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    found.gauss_newton_product(objective.weights)
    assert sorted(seen) == [3, 3, 4, 4, 4, 4]


def test_outputs_of_one_number_have_residuals_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)).double()
    goal = Objective.from_model(model, batches_of(4, labels=normal(11)), squared_error)
    found = Residuals.between(goal.at(goal.weights + 0.1), goal, 2, 0)
    rows = found.jacobian()
    torch.testing.assert_close(
        found.gauss_newton_product(goal.weights), rows.mT @ (rows @ goal.weights) / found.m
    )


class OneWay(torch.autograd.Function):
    """An operation that can be differentiated backward only."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * slope


class Backward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return OneWay.apply(self.linear(x))  # type: ignore[return-value]


def test_a_model_without_a_forward_mode_is_named() -> None:
    objective, goal = pair(Backward, cross_entropy, batches_of(4, labels=CLASSES))
    found = Residuals.between(objective, goal, 2, 0)
    assert found.gradient(found.at(objective.weights)).shape == objective.weights.shape
    with pytest.raises(WoodburyError, match="cannot be differentiated forward"):
        found.gauss_newton_product(objective.weights)


@pytest.mark.parametrize(
    ("build", "dtype", "expected"),
    [
        (plain, torch.float64, True),
        (plain, torch.float32, True),
        (plain, torch.bfloat16, False),  # too coarse for iterations
        (Heads, torch.float32, True),
        (Backward, torch.float64, False),
    ],
)
def test_forward_mode_is_tried_on_one_sample(
    build: Any, dtype: torch.dtype, expected: bool
) -> None:
    model = build().to(dtype)
    shape = (3, 2) if build is Heads else (4,)
    objective = Objective.from_model(model, [(normal(5, *shape).to(dtype), None)])
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    assert supports_forward_mode(objective) is expected
    assert set(seen) <= {1}


def test_probes_come_to_the_diagonal() -> None:
    objective = Objective.from_model(plain().double(), batches_of(4, labels=CLASSES))
    found = Residuals.between(objective, objective, 2, 0)
    estimates = torch.stack([found.diagonal(1, seed) for seed in range(1000)])
    exact, error = found.jacobian().square().mean(0), estimates.std(0) / 1000**0.5
    assert bool(((estimates.mean(0) - exact).abs() < 5 * error + 1e-12).all())
    torch.testing.assert_close(found.diagonal(3, seed=7), found.diagonal(3, seed=7), rtol=0, atol=0)


def test_one_probe_is_exact_for_one_residual() -> None:
    objective = Objective.from_model(
        plain().double(), [(x[:1], y[:1]) for x, y in batches_of(4, labels=CLASSES)][:1]
    )
    found = Residuals.between(objective, objective, 1, 0)
    torch.testing.assert_close(found.diagonal(1), found.jacobian()[0].square())


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 800 bytes."
        ),
    ],
)
def test_no_memory_is_not_said_to_be_no_forward_mode(
    error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, goal = pair(plain, cross_entropy, batches_of(4, labels=CLASSES))
    found = Residuals.between(objective, goal, 2, 0)

    def full(*_: object) -> Tensor:
        raise error

    monkeypatch.setattr(output_residuals, "jvp", full)
    with pytest.raises(type(error), match="memory"):
        found.gauss_newton_product(objective.weights)


@pytest.mark.parametrize("category", [DeprecationWarning, FutureWarning])
def test_a_warning_of_torch_of_its_own_import_is_not_shown(category: type[Warning]) -> None:
    with pytest.warns(UserWarning, match="a model's own"), output_residuals._forward_mode():
        warnings.warn("`torch.jit.script` is deprecated.", category, stacklevel=1)
        warnings.warn("a model's own", UserWarning, stacklevel=1)
