"""MFAC against the dense truth, in its limits, and in everything expected of a torch optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import dense
from support.small_training import (
    assert_equal_weights,
    backward,
    data,
    gradient,
    net,
    snapshot,
    train,
    vector,
)
from torch import Tensor, nn

import woodbury
from woodbury.errors import WoodburyError
from woodbury.model.space import ParameterSpace
from woodbury.optim import MFAC, blocks, per_group, per_parameter, whole


def largest(rows: Tensor) -> float:
    return float(torch.linalg.eigvalsh(rows.double() @ rows.double().T / len(rows))[-1])


def iid(count: int, d: int, r: Callable[..., Tensor]) -> Tensor:
    return r(count, d)


def sharing_a_direction(count: int, d: int, r: Callable[..., Tensor]) -> Tensor:
    return r(1, d) + 0.1 * r(count, d)


def nearly_dependent(count: int, d: int, r: Callable[..., Tensor]) -> Tensor:
    return r(count, 5) @ r(5, d) + 1e-4 * r(count, d)


def of_gradient_descent(count: int, d: int, r: Callable[..., Tensor]) -> Tensor:
    curvature = torch.logspace(0, -5, d, dtype=torch.float64)
    return torch.stack([curvature * (1 - 0.9 * curvature) ** t for t in range(count)]) * r(d)


STREAMS = [iid, sharing_a_direction, nearly_dependent, of_gradient_descent]


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_200_steps_match_the_dense_truth(
    stream: Callable[..., Tensor], dtype: torch.dtype, within: float
) -> None:
    """At damping / λmax = 1e-5, on streams of gradients that are easy and hard for float32."""
    generator = torch.Generator().manual_seed(1)
    rows = stream(
        200, 300, lambda *s: torch.randn(*s, generator=generator, dtype=torch.float64)
    ).to(dtype)
    m = 20
    worst = 0.0
    damping = 1e-5 * largest(rows[:m])
    parameter = nn.Parameter(torch.zeros(300, dtype=dtype))
    optimizer = MFAC([parameter], lr=1.0, window=m, damping=damping)
    for step, row in enumerate(rows):
        parameter.data.zero_()
        parameter.grad = row.clone()
        optimizer.step()
        seen = rows[max(0, step - m + 1) : step + 1]
        truth = torch.linalg.solve(dense.low_rank(seen, damping), row.double())
        if dtype == torch.float64 or stream is not nearly_dependent:
            worst = max(worst, float((parameter.detach().double() + truth).norm() / truth.norm()))
            continue
        # The dense solve itself is off by more here than the range form in float64.
        exact = seen.double()
        gram = exact @ exact.T + len(seen) * damping * torch.eye(len(seen), dtype=torch.float64)
        truth = len(seen) * exact.T @ torch.linalg.inv(gram)[:, -1]
        worst = max(worst, float((parameter.detach().double() + truth).norm() / truth.norm()))
    assert 0 < worst <= within


def test_training_follows_the_dense_truth() -> None:
    """The same trajectory of 200 steps, in which all rows are replaced many times."""
    model = net(0, torch.float64)
    twin = net(0, torch.float64)
    rows = []
    optimizer = MFAC(model.parameters(), lr=0.05, window=8, damping=1e-2)
    weights = vector(twin)
    for step in range(200):
        train(model, optimizer, range(step, step + 1))
        nn.utils.vector_to_parameters(weights, twin.parameters())
        twin.zero_grad()
        backward(twin, step)
        rows = [*rows, gradient(twin)][-8:]
        weights = weights - 0.05 * torch.linalg.solve(
            dense.low_rank(torch.stack(rows), 1e-2), rows[-1]
        )
    torch.testing.assert_close(vector(model), weights, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("maximize", [False, True])
def test_with_large_damping_it_is_sgd(momentum: float, maximize: bool) -> None:
    model = net(0, torch.float64)
    twin = net(0, torch.float64)
    ours = MFAC(
        model.parameters(),
        lr=0.1 * 1e9,
        damping=1e9,
        window=4,
        momentum=momentum,
        maximize=maximize,
    )
    sgd = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=momentum, maximize=maximize)
    train(model, ours, range(20))
    train(twin, sgd, range(20))
    torch.testing.assert_close(vector(model), vector(twin), rtol=1e-6, atol=1e-6)


def test_weight_decay_decoupled_and_coupled() -> None:
    """Both against the dense truth; the curvature sees the loss's gradient alone."""
    for decoupled in (True, False):
        model = net(0, torch.float64)
        weights = vector(model)
        rows = []
        optimizer = MFAC(
            model.parameters(), 0.1, window=4, damping=0.1, weight_decay=0.3, decoupled=decoupled
        )
        for step in range(9):
            train(model, optimizer, range(step, step + 1))
            rows = [*rows, gradient(model)][-4:]
            fisher = dense.low_rank(torch.stack(rows), 0.1)
            if decoupled:
                weights = (1 - 0.1 * 0.3) * weights - 0.1 * torch.linalg.solve(fisher, rows[-1])
            else:
                weights = weights - 0.1 * torch.linalg.solve(fisher, rows[-1] + 0.3 * weights)
            torch.testing.assert_close(vector(model), weights, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("partition", [whole, per_parameter])
def test_a_gradient_that_is_not_finite_changes_nothing_but_the_count(
    bad: float, partition: Any
) -> None:
    model = net()
    optimizer = MFAC(
        model.parameters(), 0.05, window=4, momentum=0.9, weight_decay=0.1, partition=partition
    )
    train(model, optimizer, range(7))
    weights = vector(model)
    state = snapshot(optimizer)
    backward(model, 8)
    model[2].bias.grad[1] = bad
    optimizer.step()
    assert optimizer.skipped == 1 and optimizer.state_dict()["windows"]["skipped"] == 1
    state["windows"]["skipped"] = 1
    torch.testing.assert_close(optimizer.state_dict(), state, rtol=0, atol=0)
    torch.testing.assert_close(vector(model), weights, rtol=0, atol=0)


def test_a_gradient_whose_square_overflows_is_not_finite() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = MFAC([parameter], 1.0, window=2)
    parameter.grad = torch.tensor([1e30, 1.0, 1.0])
    optimizer.step()
    assert optimizer.skipped == 1 and torch.equal(parameter.detach(), torch.zeros(3))


@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 1e12},
        {"weight_decay": 1e36, "lr": 1e6},
        {"weight_decay": 1e38, "decoupled": False},
        {"lr": 3e38},
        {"lr": 1e300},
        {"lr": 1e38, "momentum": 0.99, "damping": 1e-3},
        {"lr": 1e30, "weight_decay": 1e9, "masked": True},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_step_that_would_make_infinite_weights_is_not_taken_and_said_once(
    options: dict[str, Any], dtype: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    weight = nn.Parameter(torch.tensor([3.0, 0.0, -2.0], dtype=dtype))
    other = nn.Parameter(torch.zeros(2, dtype=dtype))
    options = dict(options)
    keep = {weight: torch.tensor([True, False, True])} if options.pop("masked", False) else None
    optimizer = MFAC([weight, other], window=4, keep=keep, **options)
    for step in range(12):
        before = weight.detach().clone()
        skipped = optimizer.skipped
        weight.grad = torch.tensor([1.0, -2.0, 0.5 + step], dtype=dtype)
        other.grad = torch.ones(2, dtype=dtype)
        optimizer.step()
        assert bool(torch.isfinite(weight).all() and torch.isfinite(other).all())
        if optimizer.skipped > skipped:
            assert torch.equal(weight.detach(), before)
    assert optimizer.skipped > 1
    said = capsys.readouterr().err
    assert said.count("would make weights that are not finite and was not taken") == 1
    assert said.count("\n") == 1


def test_large_steps_that_weights_can_hold_are_taken() -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimizer = MFAC([weight], 1e30, window=4, damping=1.0)
    weight.grad = torch.tensor([1.0, 0.0, 0.0])
    optimizer.step()
    assert optimizer.skipped == 0
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.5e30, 0.0, 0.0]))


def test_parameters_without_a_gradient_do_not_move() -> None:
    used = nn.Parameter(torch.ones(3))
    unused = nn.Parameter(torch.ones(2))
    optimizer = MFAC([used, unused], 0.1, window=4, damping=0.5, momentum=0.9, weight_decay=0.1)
    optimizer.step()
    assert torch.equal(used.detach(), torch.ones(3)) and not optimizer.state
    alone = nn.Parameter(torch.ones(3))
    other = MFAC([alone], 0.1, window=4, damping=0.5, momentum=0.9, weight_decay=0.1)
    for step in range(6):
        used.grad = torch.arange(3.0) + step
        alone.grad = torch.arange(3.0) + step
        optimizer.step()
        other.step()
    assert torch.equal(unused.detach(), torch.ones(2))
    torch.testing.assert_close(used, alone)


def test_closures_run_with_gradients_and_give_the_loss() -> None:
    model = net()
    twin = net()
    optimizer = MFAC(model.parameters(), 0.05, window=4)
    other = MFAC(twin.parameters(), 0.05, window=4)
    for step in range(6):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            assert torch.is_grad_enabled()
            return backward(model, step)

        loss = optimizer.step(closure)
        other.zero_grad(set_to_none=False)
        torch.testing.assert_close(loss, backward(twin, step), rtol=0, atol=0)
        assert other.step() is None
    assert_equal_weights(model, twin)


def test_parameter_groups_have_their_own_options() -> None:
    """One window over both, and the dense truth with the lr, momentum and decay of each."""
    model = net(0, torch.float64)
    weights = vector(model)
    rows = []
    first = sum(p.numel() for p in model[0].parameters())
    groups = [
        {"params": list(model[0].parameters()), "lr": 0.1, "weight_decay": 0.2},
        {"params": list(model[2].parameters()), "lr": 0.02, "momentum": 0.8},
    ]
    optimizer = MFAC(groups, 5.0, window=5, damping=0.1)
    buffer = torch.zeros(len(weights) - first, dtype=torch.float64)
    for step in range(12):
        train(model, optimizer, range(step, step + 1))
        rows = [*rows, gradient(model)][-5:]
        move = torch.linalg.solve(dense.low_rank(torch.stack(rows), 0.1), rows[-1])
        buffer = 0.8 * buffer + move[first:]
        weights = torch.cat(
            [0.98 * weights[:first] - 0.1 * move[:first], weights[first:] - 0.02 * buffer]
        )
    torch.testing.assert_close(vector(model), weights, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("partition", [whole, per_group, per_parameter, blocks(7)])
def test_with_partitions_the_truth_is_block_diagonal(partition: Any) -> None:
    model = net(0, torch.float64)
    rows = []
    groups = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters())}]
    sizes = {whole: [43], per_group: [25, 18], per_parameter: [20, 5, 15, 3]}.get(
        partition, [7] * 6 + [1]
    )
    optimizer = MFAC(groups, 0.1, window=5, damping=0.1, partition=partition)
    weights = vector(model)
    for step in range(12):
        train(model, optimizer, range(step, step + 1))
        rows = [*rows, gradient(model)][-5:]
        fisher = dense.blocks_only(dense.low_rank(torch.stack(rows), 0.1), sizes)
        weights = weights - 0.1 * torch.linalg.solve(fisher, rows[-1])
        torch.testing.assert_close(vector(model), weights, rtol=1e-9, atol=1e-9)
    assert [len(each["rows"][0]) for each in optimizer.state_dict()["windows"]["states"]] == sizes


def test_groups_may_differ_in_damping_where_they_share_no_window() -> None:
    model = net(0, torch.float64)
    rows = []
    groups = [
        {"params": list(model[0].parameters()), "damping": 0.7},
        {"params": list(model[2].parameters())},
    ]
    with pytest.raises(WoodburyError, match="share a window"):
        train(model, MFAC(groups, 0.1, window=5, damping=0.1), range(1))
    weights = vector(model)
    optimizer = MFAC(groups, 0.1, window=5, damping=0.1, partition=per_group)
    for step in range(9):
        optimizer.param_groups[1]["damping"] = 0.1 + step  # a schedule, as of a learning rate
        train(model, optimizer, range(step, step + 1))
        rows = [*rows, gradient(model)][-5:]
        moves = [
            torch.linalg.solve(dense.low_rank(torch.stack(rows)[:, part], damping), rows[-1][part])
            for part, damping in ((slice(0, 25), 0.7), (slice(25, 43), 0.1 + step))
        ]
        weights = weights - 0.1 * torch.cat(moves)
    torch.testing.assert_close(vector(model), weights, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("partition", [whole, per_group, blocks(20)])
def test_a_group_added_between_steps_counts_as_zeros_before(partition: Any) -> None:
    model = net(0, torch.float64)
    twin = net(0, torch.float64)
    optimizer = MFAC(model[0].parameters(), 0.1, window=5, damping=0.1, partition=partition)
    train(model, optimizer, range(7))
    optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.03})
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.03]
    train(model, optimizer, range(7, 16))
    weights = vector(twin)
    rows = []
    for step in range(16):
        nn.utils.vector_to_parameters(weights, twin.parameters())
        twin.zero_grad()
        backward(twin, step)
        rows = [*rows, gradient(twin)][-5:]
        if step < 7:
            rows[-1][25:] = 0
        sizes = {whole: [43], per_group: [25, 18]}.get(partition, [20, 20, 3])
        fisher = dense.low_rank(torch.stack(rows), 0.1)
        start = 0
        for size in sizes:
            part = slice(start, start + size)
            late = start >= 25  # a window that was opened later has seen less
            seen = torch.stack(rows[-max(1, step - 6) :] if late else rows)[:, part]
            fisher[part, part] = dense.low_rank(seen, 0.1)
            start += size
        fisher = dense.blocks_only(fisher, sizes)
        rate = torch.tensor([0.1] * 25 + [0.03 if step >= 7 else 0.0] * 18, dtype=torch.float64)
        weights = weights - rate * torch.linalg.solve(fisher, rows[-1])
    torch.testing.assert_close(vector(model), weights, rtol=1e-9, atol=1e-9)


def test_learning_rate_schedules() -> None:
    model = net()
    twin = net()
    optimizer = MFAC(model.parameters(), 0.1, window=4)
    other = MFAC(twin.parameters(), 0.1, window=4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    for step in range(10):
        other.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"]
        train(model, optimizer, range(step, step + 1))
        schedule.step()
        train(twin, other, range(step, step + 1))
    assert optimizer.param_groups[0]["lr"] < 1e-6
    assert_equal_weights(model, twin)


def test_the_learning_rate_may_be_a_tensor() -> None:
    model = net()
    twin = net()
    train(model, MFAC(model.parameters(), torch.tensor(0.25), window=4), range(6))
    train(twin, MFAC(twin.parameters(), 0.25, window=4), range(6))
    assert_equal_weights(model, twin)


def test_a_grad_scaler_unscales_the_loss_and_skips_overflow() -> None:
    model = net()
    twin = net()
    optimizer = MFAC(model.parameters(), 0.1, window=4)
    other = MFAC(twin.parameters(), 0.1, window=4)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # type: ignore[attr-defined]
    x, y = data()
    for step in range(9):
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(x[step]), y[step])).backward()
        if step == 4:
            model[0].bias.grad[0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        if step != 4:
            train(twin, other, range(step, step + 1))
    assert scaler.get_scale() == 512.0
    assert_equal_weights(model, twin)


def test_the_window_takes_accumulated_and_clipped_gradients() -> None:
    model = net(0, torch.float64)
    optimizer = MFAC(model.parameters(), 0.1, window=4, damping=0.1)
    weights = vector(model)
    rows = []
    for step in range(8):
        optimizer.zero_grad()
        backward(model, 2 * step)
        backward(model, 2 * step + 1)
        nn.utils.clip_grad_norm_(model.parameters(), 0.2)
        rows = [*rows, gradient(model)][-4:]
        assert float(rows[-1].norm()) <= 0.2 + 1e-6
        optimizer.step()
        weights = weights - 0.1 * torch.linalg.solve(
            dense.low_rank(torch.stack(rows), 0.1), rows[-1]
        )
    torch.testing.assert_close(vector(model), weights, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("by", ["space", "names", "parameters"])
def test_pruned_weights_stay_zero_and_take_no_memory(by: str) -> None:
    """The truth is the dense one on the kept weights; a tensor without a mask is kept whole."""
    model = net(0, torch.float64)
    rows = []
    masks = {
        "0.weight": torch.arange(20).view(5, 4) % 4 == 0,
        "2.weight": torch.arange(15).view(3, 5) % 3 != 1,
    }
    for name, mask in masks.items():
        model.get_parameter(name).data.mul_(mask)
    space = ParameterSpace.from_model(model, ["0.weight", "2.weight"])
    forms: dict[str, Any] = {
        "space": space.restrict(torch.cat([mask.flatten() for mask in masks.values()])),
        "names": masks,
        "parameters": {model.get_parameter(name): mask for name, mask in masks.items()},
    }
    named: Any = model.parameters() if by == "parameters" else model.named_parameters()
    options = {"window": 4, "damping": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    optimizer = MFAC(named, 0.1, keep=forms[by], **options)
    keep = torch.cat(
        [masks.get(name, torch.ones(p.shape) > 0).flatten() for name, p in model.named_parameters()]
    )
    weights = vector(model)[keep]
    buffer = torch.zeros(int(keep.sum()), dtype=torch.float64)
    for step in range(9):
        train(model, optimizer, range(step, step + 1))
        rows = [*rows, gradient(model)[keep]][-4:]
        buffer = 0.9 * buffer + torch.linalg.solve(dense.low_rank(torch.stack(rows), 0.1), rows[-1])
        weights = 0.99 * weights - 0.1 * buffer
    torch.testing.assert_close(vector(model)[keep], weights, rtol=1e-9, atol=1e-9)
    assert not vector(model)[~keep].any()
    assert optimizer.state_dict()["windows"]["states"][0]["rows"].shape == (4, int(keep.sum()))
    assert optimizer.state[model[0].weight]["momentum_buffer"].numel() == 5


def test_a_pruned_network_is_finetuned_with_its_zeros_held() -> None:
    """From `prune` to `keep` in one line: the loss recovers, and not one zero is lost."""
    model = net()
    x, y = data()
    train(model, MFAC(model.parameters(), 0.02, window=16, damping=1e-2, momentum=0.9), range(60))
    pruned = woodbury.prune(model, [(x[:20].flatten(0, 1), y[:20].flatten())], 0.4)
    zeros = [parameter == 0 for parameter in model.parameters()]
    before = float(nn.functional.cross_entropy(model(x[0]), y[0]).detach())
    keep = pruned.objective.space
    optimizer = MFAC(
        model.named_parameters(), 0.02, window=16, damping=1e-2, momentum=0.9, keep=keep
    )
    for _ in range(60):
        train(model, optimizer, range(1))
    assert float(nn.functional.cross_entropy(model(x[0]), y[0]).detach()) < 0.7 * before
    assert sum(int(zero.sum()) for zero in zeros) == keep.n - keep.d > 0
    assert all(
        bool((p.detach()[zero] == 0).all())
        for p, zero in zip(model.parameters(), zeros, strict=True)
    )


def test_bfloat16_rows_take_half_the_memory_and_give_nearly_the_same_steps() -> None:
    model = net()
    twin = net()
    half = MFAC(model.parameters(), 0.1, window=6, damping=0.1, dtype=torch.bfloat16)
    full = MFAC(twin.parameters(), 0.1, window=6, damping=0.1)
    start = vector(model)
    train(model, half, range(12))
    train(twin, full, range(12))
    rows = [o.state_dict()["windows"]["states"][0]["rows"] for o in (half, full)]
    assert rows[0].nbytes * 2 == rows[1].nbytes
    moved = vector(model) - start
    wanted = vector(twin) - start
    assert 0 < float((moved - wanted).norm() / wanted.norm()) < 0.02


def test_half_precision_parameters_get_float32_rows() -> None:
    model = net(0, torch.bfloat16)
    twin = net(0, torch.bfloat16).float()
    options = {"window": 6, "damping": 0.1, "momentum": 0.5, "weight_decay": 0.01}
    optimizer = MFAC(model.parameters(), 0.1, **options)
    train(model, optimizer, range(8))
    train(twin, MFAC(twin.parameters(), 0.1, **options), range(8))
    assert optimizer.state_dict()["windows"]["states"][0]["rows"].dtype == torch.float32
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    torch.testing.assert_close(vector(model).float(), vector(twin), rtol=0.05, atol=0.05)


def test_weights_that_are_not_contiguous() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2)).double()
    x = torch.randn(6, 5, 3, 6, 6, dtype=torch.float64)
    model(x[0])
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)
    keep = torch.arange(108).view(4, 3, 3, 3) % 5 != 0
    for each in (model, twin):
        options = {"window": 3, "damping": 0.1, "momentum": 0.5}
        optimizer = MFAC(each.parameters(), 0.1, keep={each[0].weight: keep}, **options)
        for step in range(6):
            optimizer.zero_grad()
            each(x[step].contiguous(memory_format=torch.channels_last)).square().mean().backward()
            optimizer.step()
    assert not twin[0].weight.is_contiguous()
    torch.testing.assert_close(vector(twin), vector(model))


def test_hooks_and_compiled_models() -> None:
    model = net()
    twin = net()
    calls = []
    optimizer = MFAC(model.parameters(), 0.1, window=4)
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    train(torch.compile(model, backend="eager"), optimizer, range(5))  # type: ignore[arg-type]
    train(twin, MFAC(twin.parameters(), 0.1, window=4), range(5))
    assert calls == ["before", "after"] * 5
    assert_equal_weights(model, twin)


def test_a_window_of_one_and_windows_larger_than_the_model() -> None:
    for window in (1, 100):
        model = net(0, torch.float64)
        weights = vector(model)
        rows = []
        optimizer = MFAC(model.parameters(), 0.1, window=window, damping=0.1)
        for step in range(8):
            train(model, optimizer, range(step, step + 1))
            rows = [*rows, gradient(model)][-window:]
            weights = weights - 0.1 * torch.linalg.solve(
                dense.low_rank(torch.stack(rows), 0.1), rows[-1]
            )
        torch.testing.assert_close(vector(model), weights, rtol=1e-9, atol=1e-9)


def test_it_overfits_one_batch() -> None:
    """What matters to a user, after all the equalities."""
    model = net()
    first = float(backward(model, 0).detach())
    optimizer = MFAC(model.parameters(), 0.01, window=32, damping=1e-3, momentum=0.9)
    for _ in range(200):
        optimizer.zero_grad()
        last = float(backward(model, 0).detach())
        optimizer.step()
    assert last < 0.02 * first
