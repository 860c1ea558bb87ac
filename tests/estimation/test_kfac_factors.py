"""K-FAC's statistics where they are exact, and its recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.limits import Limited
from torch import Tensor, nn
from torch.testing import assert_close

from woodbury.errors import WoodburyError
from woodbury.estimation.engines import looped
from woodbury.estimation.gradients import gradient_rows
from woodbury.estimation.kfac_factors import factors
from woodbury.estimation.labels import observed, sampled
from woodbury.estimation.recipes import kfac
from woodbury.fisher.kronecker.operator import Kronecker, pi_corrected
from woodbury.fisher.kronecker.restricted import Restricted
from woodbury.model.likelihood import cross_entropy, squared_error
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.monitor import progress


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _objective(
    model: nn.Module, inputs: Tensor, target: Any, likelihood=squared_error, **space: Any
) -> Objective:
    batches = [
        (inputs[start : start + 7], target[start : start + 7]) for start in range(0, len(inputs), 7)
    ]
    return Objective.from_model(
        model.double(), batches, likelihood, ParameterSpace.from_model(model, **space)
    )


def _fisher(objective: Objective, count: int) -> Tensor:
    """(1/m) Σ g gᵀ, from gradients that know nothing of layers."""
    gradients = gradient_rows(objective, count, engine=looped)
    return gradients.T @ gradients / count


def _grid(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Every input with every output: independent of each other, exactly."""
    return inputs.repeat_interleave(len(outputs), 0), outputs.repeat(
        len(inputs), *[1] * (outputs.ndim - 1)
    )


def test_linear_is_exact_when_gradients_and_inputs_are_independent() -> None:
    model = nn.Linear(4, 3).double()
    inputs, gradients = _grid(_random(5, 4), _random(6, 3, seed=1))
    target = model(inputs).detach() - gradients  # the gradient of ½(output − target)² by the output
    objective = _objective(model, inputs, target)
    pairs = factors(objective, 30, labels=observed)
    assert_close(pairs["weight"][0], gradients.T @ gradients / 30)
    assert_close(pairs["weight"][1], inputs.T @ inputs / 30)
    truth = _fisher(objective, 30)
    assert_close(torch.kron(*pairs["weight"]), truth[:12, :12])
    assert_close(torch.kron(*pairs["bias"]), truth[12:, 12:])
    with pytest.raises(AssertionError):
        assert_close(torch.kron(*pairs["weight"][::-1]), truth[:12, :12])


def test_linear_with_squared_error_has_the_identity_on_the_left() -> None:
    # The true Fisher of y ~ N(Wx, I) is I ⊗ mean(x xᵀ), whatever W is.
    inputs, count = _random(1000, 4), 1000
    objective = _objective(nn.Linear(4, 2, bias=False), inputs, torch.zeros(count, 2))
    left, right = factors(objective, count, generator=torch.Generator().manual_seed(0))["weight"]
    assert_close(left, torch.eye(2, dtype=torch.float64), rtol=0, atol=0.2)
    assert_close(right, inputs.T @ inputs / count)


def test_a_deeper_layer_has_its_own_loss_gradients() -> None:
    """Not independent here: the factors alone are checked, against gradients by hand."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)).double()
    inputs, target = _random(20, 4), torch.arange(20) % 3
    objective = _objective(model, inputs, target, cross_entropy, min_ndim=2)
    pairs = factors(objective, 20, labels=observed)
    hidden = model[0](inputs)
    losses = cross_entropy.loss(model[2](hidden.relu()), target) * 20
    by_hidden = torch.autograd.grad(losses, hidden, retain_graph=True)[0]
    assert_close(pairs["0.weight"], (by_hidden.T @ by_hidden / 20, inputs.T @ inputs / 20))
    assert_close(pairs["2.weight"][1], (hidden.relu().T @ hidden.relu() / 20).detach())


def test_a_1x1_convolution_of_1x1_images_is_a_linear_layer() -> None:
    linear = nn.Linear(4, 3).double()
    convolution = nn.Conv2d(4, 3, 1).double()
    convolution.load_state_dict(
        {"weight": linear.weight.detach()[:, :, None, None], "bias": linear.bias.detach()}
    )
    inputs, target = _random(20, 4), _random(20, 3, seed=1)
    flat = factors(_objective(linear, inputs, target), 20, labels=observed)
    image = factors(
        _objective(convolution, inputs[..., None, None], target[..., None, None]),
        20,
        labels=observed,
    )
    assert_close(image, flat)


@pytest.mark.parametrize("patches", [1, 2**25])
def test_a_convolution_is_exact_when_positions_are_uncorrelated(
    patches: int, limited: Limited
) -> None:
    limited(patches=patches)
    model = nn.Conv2d(2, 3, 2, stride=2).double()
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4).view(
        16, 1, 2, 2
    )
    gradients = signs * _random(3, seed=1)[:, None, None]  # uncorrelated between the four positions
    inputs, gradients = _grid(_random(2, 2, 4, 4), gradients)
    objective = _objective(model, inputs, model(inputs).detach() - gradients)
    pairs = factors(objective, 32, labels=observed)
    truth = _fisher(objective, 32)
    assert_close(torch.kron(*pairs["weight"]), truth[:24, :24])
    assert_close(torch.kron(*pairs["bias"]), truth[24:, 24:])


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1, "stride": 2},
        {"padding": "same", "dilation": 2},
        {"padding": "valid"},
        {"padding": (2, 1), "padding_mode": "reflect"},
        {"padding": 1, "padding_mode": "circular"},
    ],
)
def test_patches_are_those_of_the_convolution(options: dict[str, Any]) -> None:
    """One sample, a gradient at one position: the weight's is g aᵀ, so that both factors show."""
    model = nn.Conv2d(2, 3, 3, bias=False, **options).double()
    inputs = _random(1, 2, 6, 5)
    output = model(inputs).detach()
    places = output[0, 0].numel()
    total = torch.zeros(18, 18, dtype=torch.float64)
    for place in range(places):
        gradient = torch.zeros_like(output)
        gradient.view(3, -1)[0, place] = 1.0
        row = gradient_rows(_objective(model, inputs, output - gradient), 1, engine=looped)[0, :18]
        total += torch.outer(row, row) / places
    left, right = factors(_objective(model, inputs, output - 1), 1, labels=observed)["weight"]
    assert_close(right, total)
    assert_close(left, torch.full((3, 3), float(places), dtype=torch.float64))


def test_a_linear_layer_over_positions_and_a_layer_used_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3, bias=True)
            self.unused = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.layer(x[:, :2]), self.layer(input=x[:, 2:])], dim=1)

    torch.manual_seed(0)
    once, twice = nn.Linear(3, 3).double(), Twice().double()
    once.load_state_dict(twice.layer.state_dict())
    inputs, target = _random(9, 5, 3), _random(9, 5, 3, seed=1)
    truth = factors(_objective(once, inputs, target), 9, labels=observed)
    found = factors(_objective(twice, inputs, target, include="layer.*"), 9, labels=observed)
    assert_close(found["layer.weight"], truth["weight"])
    assert_close(found["layer.bias"], truth["bias"])
    assert_close(truth["weight"][1], inputs.flatten(0, 1).T @ inputs.flatten(0, 1) / 45)
    assert_close(torch.kron(*truth["bias"]), _fisher(_objective(once, inputs, target), 9)[9:, 9:])
    with pytest.raises(
        WoodburyError, match=r"'unused.weight' was never called.*exclude='unused.weight'"
    ):
        factors(_objective(twice, inputs, target), 9, labels=observed)


def test_tied_weights_add_their_uses() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.first(x), self.second(x)], dim=1)

    model, inputs = Tied().double(), _random(6, 3)
    pairs = factors(_objective(model, inputs, model(inputs).detach() - 1), 6, labels=observed)
    assert list(pairs) == ["first.weight"]
    assert_close(pairs["first.weight"][0], 2 * torch.ones(3, 3, dtype=torch.float64))
    assert_close(pairs["first.weight"][1], inputs.T @ inputs / 6)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(8, 3)
    ).double()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    objective = _objective(
        model, _random(10, 1, 4, 4), torch.arange(10) % 3, cross_entropy, min_ndim=2
    )
    first = factors(objective, 10, generator=torch.Generator().manual_seed(1))
    again = factors(objective, 10, generator=torch.Generator().manual_seed(1))
    assert_close(first, again, rtol=0, atol=0)

    def broken(output: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("on purpose")

    failing = _objective(
        model, _random(10, 1, 4, 4), torch.arange(10), type(cross_entropy)(broken), min_ndim=2
    )
    with pytest.raises(WoodburyError, match="on purpose"):
        factors(failing, 10, labels=observed)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_other_weights_and_no_grad_and_progress() -> None:
    """The weights are the objective's, not the model's; a caller's no_grad does not matter."""
    model, inputs, target = nn.Linear(4, 3, bias=False), _random(40, 4), _random(40, 3, seed=1)
    objective = _objective(model, inputs, target)
    other, steps = objective.at(torch.zeros_like(objective.weights)), []
    with torch.no_grad(), progress(lambda *step: steps.append(step)):
        left, _ = factors(other, 40, labels=observed)["weight"]
    assert_close(left, target.T @ target / 40)
    assert steps == [("factors", 32, 40), ("factors", 40, 40)]


class _Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize(
    ("model", "inputs", "says"),
    [
        (
            lambda: nn.Conv2d(2, 2, 1, groups=2),
            (5, 2, 3, 3),
            "grouped convolution of 'weight'.*exclude='weight'",
        ),
        (
            lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)),
            (5, 3),
            "BatchNorm1d, which holds '1.weight'",
        ),
        (lambda: nn.Conv1d(2, 2, 1), (5, 2, 3), "Conv1d, which holds 'weight'"),
        (
            lambda: nn.MultiheadAttention(4, 1),
            (5, 4),
            "MultiheadAttention, which holds 'in_proj_weight'",
        ),
        (_Shuffled, (5, 4, 3), r"'layer.weight' got an input of shape \(4, 5, 3\)"),
    ],
)
def test_layers_it_does_not_know_are_named(
    model: Callable[[], nn.Module], inputs: tuple[int, ...], says: str
) -> None:
    targets = torch.zeros(5, 4, 2) if model is _Shuffled else torch.zeros(5)
    objective = _objective(model(), _random(*inputs), targets)
    with pytest.raises(WoodburyError, match=says):
        factors(objective, 5, labels=observed)


def test_bad_requests_are_named() -> None:
    model, inputs, target = nn.Linear(4, 3), _random(9, 4), _random(9, 3)
    with pytest.raises(WoodburyError, match="gave 9 of the 10 samples"):
        factors(_objective(model, inputs, target), 10, labels=observed)
    with pytest.raises(WoodburyError, match="at least 1"):
        factors(_objective(model, inputs, target), 0, labels=observed)
    target[3, 1] = float("inf")
    with pytest.raises(
        WoodburyError, match="output gradients of parameter 'weight' are not finite"
    ):
        factors(_objective(model, inputs, target), 9, labels=observed)
    inputs[0, 0] = float("nan")
    with pytest.raises(WoodburyError, match="parameter 'weight' are not finite"):
        factors(_objective(model, inputs, target), 9, labels=observed)


def _network() -> Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    return _objective(model, _random(40, 1, 4, 4), torch.arange(40) % 3, cross_entropy)


def test_the_recipe_lays_the_tensors_side_by_side() -> None:
    objective = _network()
    fisher = kfac(40, 0.1, labels=observed)(objective)
    pairs = factors(objective, 40, labels=observed)
    eye = torch.eye(objective.space.d, dtype=torch.float64)
    truth = (
        torch.block_diag(*(torch.kron(*pairs[name]) for name in objective.space.shapes)) + 0.1 * eye
    )
    assert_close(fisher @ eye, truth)
    assert_close(
        kfac(40, 0.1, seed=3)(objective) @ eye,
        kfac(40, 0.1, seed=3)(objective) @ eye,
        rtol=0,
        atol=0,
    )

    # After pruning: the same matrices, of the kept weights; a removed tensor has no part.
    keep = torch.arange(objective.space.d) % 3 != 0
    keep[objective.space.slices["0.bias"]] = False
    smaller = objective.at(objective.weights[keep], objective.space.restrict(keep))
    pairs = factors(smaller, 40, labels=observed)
    truth = (
        torch.block_diag(*(torch.kron(*pairs[name]) for name in objective.space.shapes)) + 0.1 * eye
    )
    left = kfac(40, 0.1, labels=observed)(smaller)
    assert_close(left @ torch.eye(left.d, dtype=torch.float64), truth[keep][:, keep])
    assert [type(part) for part in left.parts] == [Restricted, Restricted, Restricted]


def test_the_recipe_takes_another_damping_of_the_factors() -> None:
    objective = _network()
    pairs = factors(objective, 40, labels=observed)
    fisher = kfac(40, 0.1, labels=observed, damped=pi_corrected)(objective)
    v = _random(objective.space.d)
    parts = v.split([part.numel() for part in objective.space.shapes.values()])
    each = zip(objective.space.shapes, parts, strict=True)
    assert_close(
        fisher.solve(v),
        torch.cat([pi_corrected(*pairs[name], 0.1).solve(own) for name, own in each]),
    )
    with pytest.raises(WoodburyError, match="damping is 0"):
        kfac(40, 0.0)
    assert isinstance(kfac(5, labels=sampled)(objective).parts[0], Kronecker)


class _Mixed(nn.Module):
    """Layers with factors, and others without."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Embedding(5, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.grouped = nn.Conv1d(4, 4, 2, groups=2)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.codes(x)
        y = y + self.attention(y, y, y)[0]
        return self.last(self.grouped(y.mT).tanh().mean(2))


def test_unknown_layers_may_have_a_diagonal() -> None:
    torch.manual_seed(0)
    model = _Mixed().double()
    inputs, target = torch.randint(0, 5, (8, 6)), torch.arange(8) % 3
    objective = _objective(model, inputs, target, cross_entropy, min_ndim=2)
    recipe = kfac(8, 1e-3, labels=observed, skip_unknown=True)
    with pytest.raises(WoodburyError, match=r"know Embedding.*kfac\(skip_unknown=True\)"):
        replace(recipe, skip_unknown=False)(objective)
    alone = ParameterSpace.from_model(model, include="last.weight")
    known = recipe(Objective.from_model(model, objective.batches, space=alone)).diagonal()
    diagonal = gradient_rows(objective, 8).square().mean(0) + 1e-3
    diagonal[objective.space.slices["last.weight"]] = known
    assert_close(recipe(objective).diagonal(), diagonal)
    keep = torch.rand(objective.space.n) > 0.3
    weights = torch.where(keep, objective.weights, 0)
    pruned = objective.at(weights[keep], objective.space.restrict(keep))
    unknown = torch.ones_like(keep)
    unknown[objective.space.slices["last.weight"]] = False
    found = recipe(pruned).inverse_diagonal()[unknown[keep]]
    there = gradient_rows(objective.at(weights), 8).square().mean(0) + 1e-3
    assert_close(1 / found, there[keep & unknown])
