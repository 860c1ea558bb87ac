"""Preconditioner against the dense inverse, and together with what else moves a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import dense
from torch import Tensor, nn

import woodbury
from woodbury import ParameterSpace, PeekingLoader, Preconditioner, WoodburyError
from woodbury.estimation.gradients import gradient_rows
from woodbury.model.objective import Objective

DAMPING = 0.05


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def data(seed: int = 1, count: int = 40) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, dtype=torch.float64, generator=generator)
    y = torch.randint(3, (count,), generator=generator)
    return list(zip(x.split(8), y.split(8), strict=True))


def backward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    model.zero_grad()
    nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()


def sgd(model: nn.Module, lr: float = 0.5, momentum: float = 0.0) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr, momentum=momentum)


def test_a_step_is_the_damping_times_the_inverse_fisher_times_the_gradient() -> None:
    model = network()
    batches = data()
    space = ParameterSpace.from_model(model, min_ndim=2)
    fisher = dense.low_rank(
        gradient_rows(Objective.from_model(model, batches, space=space), 40), DAMPING
    )
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = sgd(model)
    Preconditioner(optimizer, model, woodbury.mfac(40, DAMPING), batches)
    backward(model, batches[0])
    plain = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    optimizer.step()
    moved = {
        name: parameter.detach() - before[name] for name, parameter in model.named_parameters()
    }
    natural = space.unflatten(DAMPING * torch.linalg.solve(fisher, space.flatten(plain)))
    for name in moved:  # the biases, which are in no space, by their own gradients
        torch.testing.assert_close(
            moved[name], -0.5 * natural.get(name, plain[name]), rtol=1e-9, atol=1e-12
        )


def test_estimates_come_every_n_steps_and_leave_random_numbers_alone() -> None:
    model = network()
    taken = []

    def calibration(step: int) -> list[tuple[Tensor, Tensor]]:
        torch.rand(3)
        taken.append(step)
        return data(step)

    optimizer = sgd(model)
    Preconditioner(optimizer, model, woodbury.kfac(40, DAMPING), calibration, every=3)
    torch.manual_seed(5)
    for batch in data() + data(2):
        backward(model, batch)
        optimizer.step()
    assert taken == [0, 1, 3, 6, 9]  # and once early
    drawn = torch.rand(2)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(2))


def test_a_run_resumed_where_an_estimate_is_due_continues_bit_for_bit() -> None:
    def trained(model: nn.Module, optimizer: Any, batches: list[Any]) -> None:
        for batch in batches:
            backward(model, batch)
            optimizer.step()

    def made() -> tuple[nn.Module, Any, Preconditioner]:
        model = network()
        optimizer = sgd(model, momentum=0.9)
        return (
            model,
            optimizer,
            Preconditioner(optimizer, model, woodbury.kfac(40, DAMPING), data, every=4),
        )

    whole, optimizer, _ = made()
    trained(whole, optimizer, data(7, 64))
    first, optimizer, preconditioner = made()
    trained(first, optimizer, data(7, 64)[:4])
    again, other, resumed = made()
    again.load_state_dict(first.state_dict())
    other.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(preconditioner.state_dict())
    trained(again, other, data(7, 64)[4:])
    for one, two in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


def test_inputs_of_different_scales_are_no_harder() -> None:
    x = torch.randn(
        200, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    ) * torch.logspace(-1, 1, 6)
    batches = [(x, x @ torch.linspace(1, 3, 6, dtype=torch.float64)[:, None])]

    def loss(lr: float, preconditioned: bool) -> float:
        model = nn.Linear(6, 1, bias=False).double()
        nn.init.zeros_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr)
        likelihood = woodbury.squared_error
        if preconditioned:
            recipe = woodbury.gauss_newton(woodbury.mfac(200, 1e-3), 1)
            Preconditioner(optimizer, model, recipe, batches, likelihood=likelihood)
        for _ in range(50):
            optimizer.zero_grad()
            likelihood.loss(model(x), batches[0][1]).backward()
            optimizer.step()
        return float(likelihood.loss(model(x), batches[0][1]).detach())

    alone = min(loss(10.0**power, False) for power in range(-4, 1))
    assert loss(1 / 1e-3, True) < 1e-6 * alone


def test_gradual_pruning_on_the_same_stream_holds_its_zeros() -> None:
    model = network()
    loader = PeekingLoader(data(count=160), 40)
    optimizer = sgd(model, 0.1, 0.9)
    pruner = woodbury.Pruner(woodbury.mfac(40, 1e-3))
    gradual = woodbury.Gradual(model, optimizer, loader, 0.5, end=10, steps=2, pruner=pruner)
    Preconditioner(optimizer, model, woodbury.kfac(40, DAMPING), loader, every=5)
    for batch in loader:
        backward(model, batch)
        optimizer.step()
    left = sum(
        int((parameter != 0).sum()) for parameter in model.parameters() if parameter.ndim == 2
    )
    assert gradual.sparsity == pytest.approx(0.5, abs=0.02) and left == round(
        45 * (1 - gradual.sparsity)
    )


def test_gradients_that_are_missing_or_not_finite_are_left_alone() -> None:
    model = network()
    batches = data()
    optimizer = sgd(model)
    preconditioner = Preconditioner(optimizer, model, woodbury.kfac(40, DAMPING), batches)
    optimizer.step()  # no gradient at all
    backward(model, batches[0])
    first = next(model.parameters())
    assert first.grad is not None
    first.grad[0, 0] = float("nan")
    others = [
        parameter.grad.clone()
        for parameter in list(model.parameters())[1:]
        if parameter.grad is not None
    ]
    preconditioner.optimizer.step()
    for parameter, gradient in zip(list(model.parameters())[1:], others, strict=True):
        assert parameter.grad is not None and torch.equal(parameter.grad, gradient)


def test_after_remove_gradients_are_left_alone() -> None:
    model = network()
    batches = data()
    optimizer = sgd(model)
    Preconditioner(optimizer, model, woodbury.kfac(40, DAMPING), batches).remove()
    backward(model, batches[0])
    gradients = [
        parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
    ]
    optimizer.step()
    assert all(
        torch.equal(p.grad, g)
        for p, g in zip(model.parameters(), gradients, strict=True)
        if p.grad is not None
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "at least 1"),
        ({"optimizer": sgd(network())}, "moves none"),
        (
            {"space": ParameterSpace.from_model(nn.Sequential(nn.Sequential(nn.Linear(6, 5))))},
            "no such parameter",
        ),
        (
            {"space": ParameterSpace.from_model(nn.Linear(6, 5)).restrict(torch.arange(35) > 3)},
            "leaves weights out",
        ),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    model = network()
    given = {
        "optimizer": sgd(model),
        "model": model,
        "estimate": woodbury.kfac(8),
        "calibration": data(),
    } | options
    with pytest.raises(WoodburyError, match=message):
        Preconditioner(**given)


def test_the_space_is_what_the_optimizer_trains() -> None:
    model = network()
    batches = data()
    first = model.get_submodule("0")
    last = model.get_submodule("2")
    optimizers = [torch.optim.SGD(part.parameters(), 0.1) for part in (first, last)]
    chosen = [
        Preconditioner(each, model, woodbury.kfac(40, DAMPING), batches).space.shapes
        for each in optimizers
    ]
    assert [list(names) for names in chosen] == [["0.weight"], ["2.weight"]]
    first.get_parameter("weight").requires_grad_(False)
    assert list(Preconditioner(sgd(model), model, woodbury.kfac(40), batches).space.shapes) == [
        "2.weight"
    ]


def test_a_damping_that_is_no_multiple_of_the_identity_is_refused() -> None:
    model = network()
    batches = data()
    optimizer = sgd(model)
    Preconditioner(
        optimizer, model, woodbury.kfac(40, DAMPING, damped=woodbury.fisher.pi_corrected), batches
    )
    backward(model, batches[0])
    with pytest.raises(WoodburyError, match="damping of its own"):
        optimizer.step()


def test_a_network_with_batchnorm_under_autocast() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    batches = [(torch.randn(16, 1, 6, 6), torch.randint(3, (16,))) for _ in range(3)]
    optimizer = torch.optim.AdamW(model.parameters())
    preconditioner = Preconditioner(optimizer, model, woodbury.kfac(48, DAMPING), batches, every=2)
    with torch.autocast("cpu", torch.bfloat16):
        for batch in batches:
            backward(model, batch)
            optimizer.step()
    assert model.training and preconditioner.step == 3
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_a_closure_is_refused() -> None:
    model = network()
    batches = data()
    optimizer = sgd(model)
    Preconditioner(optimizer, model, woodbury.kfac(40, DAMPING), batches)
    with pytest.raises(WoodburyError, match="closure"):
        optimizer.step(lambda: 0.0)


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(60, 30), nn.Tanh(), nn.Linear(30, 4))


@pytest.mark.parametrize(
    ("estimate", "message"),
    [
        (woodbury.kfac(8, damping=0.1), r"leave out '0\.weight' with exclude='0\.weight'"),
        (woodbury.mfac(400, damping=0.1), r"give mfac\(\d+\), or more memory"),
        (woodbury.gauss_newton(woodbury.mfac(400), 1), r"give mfac\(\d+\), or more memory"),
    ],
)
def test_a_fisher_without_room_is_refused_before_any_step(estimate: Any, message: str) -> None:
    model = wide()
    batches = [(torch.randn(8, 60), torch.arange(8) % 4)]
    with pytest.raises(WoodburyError, match=message):
        Preconditioner(sgd(model), model, estimate, batches, memory="150 kB")


def test_the_offer_has_room() -> None:
    model = wide()
    batches = [(torch.randn(8, 60), torch.arange(8) % 4)]
    with pytest.raises(WoodburyError) as caught:
        Preconditioner(sgd(model), model, woodbury.mfac(400), batches, memory="150 kB")
    offer = int(str(caught.value).split("mfac(")[1].split(")")[0])
    Preconditioner(sgd(model), model, woodbury.mfac(offer), batches, memory="150 kB")
    Preconditioner(sgd(model), model, woodbury.kfac(8), batches, memory="400 kB")
    with pytest.raises(WoodburyError, match="give bytes or a size such as 6GiB"):
        Preconditioner(sgd(model), model, woodbury.mfac(offer), batches, memory="much")


def test_what_has_no_factors_is_left_out_or_has_a_diagonal() -> None:
    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3))

    batches = [(torch.randint(0, 9, (16, 3)), torch.arange(16) % 3) for _ in range(2)]
    for exclude, recipe, names in (
        ("0.weight", woodbury.kfac(16, damping=0.1), ["2.weight"]),
        ((), woodbury.kfac(16, damping=0.1, skip_unknown=True), ["0.weight", "2.weight"]),
    ):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        made = woodbury.Preconditioner(optimizer, model, recipe, batches, exclude=exclude)
        nn.functional.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
        optimizer.step()
        assert list(made.space.shapes) == names
        assert made.fisher is not None and made.fisher.d == made.space.n
    with pytest.raises(WoodburyError, match="leave exclude out"):
        woodbury.Preconditioner(
            optimizer, model, recipe, batches, space=made.space, exclude="0.weight"
        )
