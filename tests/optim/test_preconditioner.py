"""Preconditioner against the dense inverse, with what else moves a model; Ahead, the stream it is calibrated on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import dense
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import woodbury
from woodbury import ParameterSpace, PeekingLoader, Preconditioner, WoodburyError
from woodbury.estimation.gradients import gradient_rows
from woodbury.model.objective import Objective
from woodbury.model.peeking import preserving_rng

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
    model, batches = network(), data()
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


def test_estimates_come_every_so_many_steps_and_leave_the_loops_random_numbers_alone() -> None:
    model, taken = network(), []

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


def test_a_run_that_goes_on_after_a_multiple_of_every_is_the_one_that_was_not_stopped() -> None:
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


def test_inputs_of_different_scales_cost_it_nothing() -> None:
    x = torch.randn(
        200, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
    ) * torch.logspace(-1, 1, 6)
    batches = [(x, x @ torch.linspace(1, 3, 6, dtype=torch.float64)[:, None])]

    def loss(lr: float, preconditioned: bool) -> float:
        model = nn.Linear(6, 1, bias=False).double()
        nn.init.zeros_(model.weight)
        optimizer, likelihood = torch.optim.SGD(model.parameters(), lr), woodbury.squared_error
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


def test_zeros_stay_zero_while_a_gradual_pruning_shares_the_stream() -> None:
    model = network()
    ahead, optimizer = PeekingLoader(data(count=160), 40), sgd(model, 0.1, 0.9)
    pruner = woodbury.Pruner(woodbury.mfac(40, 1e-3))
    gradual = woodbury.Gradual(model, optimizer, ahead, 0.5, end=10, steps=2, pruner=pruner)
    Preconditioner(optimizer, model, woodbury.kfac(40, DAMPING), ahead, every=5)
    for batch in ahead:
        backward(model, batch)
        optimizer.step()
    left = sum(
        int((parameter != 0).sum()) for parameter in model.parameters() if parameter.ndim == 2
    )
    assert gradual.sparsity == pytest.approx(0.5, abs=0.02) and left == round(
        45 * (1 - gradual.sparsity)
    )


def test_what_has_no_sound_gradient_is_left_alone() -> None:
    model, batches = network(), data()
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


def test_removed_it_changes_nothing() -> None:
    model, batches = network(), data()
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
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    model = network()
    given = {
        "optimizer": sgd(model),
        "model": model,
        "estimate": woodbury.kfac(8),
        "calibration": data(),
    } | options
    with pytest.raises(WoodburyError, match=message):
        Preconditioner(**given)


def test_each_of_two_optimizers_gets_its_own_and_what_is_frozen_counts_for_nothing() -> None:
    model, batches = network(), data()
    first, last = model[0], model[2]  # type: ignore[index]
    optimizers = [torch.optim.SGD(part.parameters(), 0.1) for part in (first, last)]
    chosen = [
        Preconditioner(each, model, woodbury.kfac(40, DAMPING), batches).space.shapes
        for each in optimizers
    ]
    assert [list(names) for names in chosen] == [["0.weight"], ["2.weight"]]
    first.weight.requires_grad_(False)
    assert list(Preconditioner(sgd(model), model, woodbury.kfac(40), batches).space.shapes) == [
        "2.weight"
    ]


def test_a_damping_that_is_no_multiple_of_the_identity_is_refused() -> None:
    model, batches = network(), data()
    optimizer = sgd(model)
    Preconditioner(
        optimizer, model, woodbury.kfac(40, DAMPING, damped=woodbury.fisher.pi_corrected), batches
    )
    backward(model, batches[0])
    with pytest.raises(WoodburyError, match="damping of its own"):
        optimizer.step()


def test_a_network_with_batchnorm_in_autocast() -> None:
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
    model, batches = network(), data()
    optimizer = sgd(model)
    Preconditioner(optimizer, model, woodbury.kfac(40, DAMPING), batches)
    with pytest.raises(WoodburyError, match="closure"):
        optimizer.step(lambda: 0.0)


def numbered(sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [
        (torch.arange(end - size, end), torch.zeros(size))
        for size, end in zip(sizes, ends, strict=True)
    ]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(1, 12))
def test_ahead_gives_all_batches_in_order_and_shows_the_next(
    sizes: list[int], samples: int
) -> None:
    batches, total = numbered(sizes), sum(sizes)
    ahead = PeekingLoader(batches, samples)
    assert int(ahead()[0][0][0]) == 0  # asked before the training begins
    for _ in range(2):  # epochs
        seen = []
        for x, _ in ahead:
            shown = torch.cat([inputs for inputs, _ in ahead()])
            assert len(shown) >= min(samples, total) and torch.equal(
                shown, shown[0] + torch.arange(len(shown))
            )
            assert shown[0] == x[-1] + 1 or shown[-1] == total - 1  # the next in line, or the last
            seen.append(x)
        assert torch.equal(torch.cat(seen), torch.arange(total))


def test_every_pass_is_whole_and_in_an_order_of_its_own() -> None:
    loader = DataLoader(TensorDataset(torch.arange(24), torch.zeros(24)), 4, shuffle=True)
    torch.manual_seed(0)
    ahead = PeekingLoader(loader, 8)
    with preserving_rng(ahead):  # as Gradual asks it before the first pass
        ahead()
    orders = []
    for _ in range(3):
        orders.append(
            [batch[0].tolist() for batch, _ in zip(ahead, range(6), strict=False)]
        )  # left after its last
        with preserving_rng(ahead):
            torch.rand(5)
    assert [sorted(number for batch in order for number in batch) for order in orders] == 3 * [
        list(range(24))
    ]
    assert orders[0] != orders[1] != orders[2]


def test_ahead_reads_no_more_than_it_must_and_goes_on_where_it_was() -> None:
    stream = iter(numbered([2] * 20))
    ahead = PeekingLoader(stream, 6)
    first = [int(x[0]) for (x, _), _ in zip(ahead, range(3), strict=False)]
    assert (
        first == [0, 2, 4] and int(next(stream)[0][0]) == 14
    )  # one more was taken by zip, three are waiting
    with pytest.raises(WoodburyError, match="at least 1"):
        PeekingLoader([], 0)
    with pytest.raises(WoodburyError, match="no batches"):
        PeekingLoader([], 4)()
