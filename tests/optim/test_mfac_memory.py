"""What MFAC holds, and what it does where its memory does not hold the window."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from support.small_training import assert_equal_weights, net, through_a_file, train, vector
from torch import nn

from woodbury.errors import WoodburyError
from woodbury.memory import bytes_in_words, parse_bytes
from woodbury.optim import MFAC, blocks, footprint, per_parameter
from woodbury.optim.footprint import MOST_BY_DEFAULT, Footprint

ROW = 4 * 43
"""Bytes of one gradient of the small network."""


def make(**options: Any) -> MFAC:
    return MFAC(net().parameters(), **options)


def tensors_of(optimizer: MFAC) -> int:
    """Bytes of all tensors that the optimizer keeps between its steps, counted one by one."""
    windows = optimizer.state_dict()["windows"]["states"]
    held = [
        value for state in windows for value in state.values() if isinstance(value, torch.Tensor)
    ]
    held += [state["momentum_buffer"] for state in optimizer.state.values()]
    return sum(tensor.nbytes for tensor in held)


def test_a_small_network_has_the_whole_window() -> None:
    optimizer = make()
    assert optimizer.window == MOST_BY_DEFAULT == 512
    assert "window: 512 gradients of 43 weights" in repr(optimizer)


def test_less_memory_means_a_smaller_window() -> None:
    large, small = make(memory="60 kB"), make(memory="30 kB")
    assert large.window and small.window and 2 <= small.window < large.window < 512
    assert f"window: {small.window} gradients" in repr(small)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"dtype": torch.bfloat16, "momentum": 0.9},
        {"partition": per_parameter},
        {"partition": blocks(7), "weight_decay": 0.1, "decoupled": False},
        {"dtype": torch.float64},
    ],
)
def test_what_is_kept_fits_the_memory_and_one_gradient_more_does_not(
    options: dict[str, Any],
) -> None:
    model = net()
    optimizer = MFAC(model.parameters(), memory="40 kB", **options)
    window = optimizer.window
    assert window and window < 512
    train(model, optimizer, range(window + 2))
    assert tensors_of(optimizer) <= 40_000
    with pytest.raises(WoodburyError, match=f"give window={window}[, ]"):
        MFAC(net().parameters(), window=window + 1, memory="40 kB", **options)


def test_the_room_of_the_inverses_is_held_until_they_are_made() -> None:
    """Full windows hold inverses, and 22 of them more than rows: they must not come later."""
    model = net()
    optimizer = MFAC(model.parameters(), window=4, partition=blocks(2))
    train(model, optimizer, range(1))
    windows = optimizer._windows
    assert windows is not None and windows._reserve is not None
    assert windows._reserve.nbytes == 22 * 4 * 4 * 8
    held = tensors_of(optimizer) + windows._reserve.nbytes
    train(model, optimizer, range(1, 5))
    assert windows._reserve is None and tensors_of(optimizer) == held
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    train(model, optimizer, range(5, 6))
    assert tensors_of(optimizer) == held


def test_the_refusal_offers_what_fits() -> None:
    with pytest.raises(WoodburyError) as caught:
        make(window=300, memory="60 kB", partition=blocks(2))
    sentence = str(caught.value)
    assert "A window of 300 gradients of 43 weights takes" in sentence
    assert "memory='60 kB'" in sentence and sentence.count(".") < sentence.count("window=") + 8
    fewer = int(sentence.split("give window=")[1].split(",")[0])
    in_one = int(sentence.split("window=")[-1].split()[0])
    assert make(window=fewer, memory="60 kB", partition=blocks(2)).window == fewer
    assert in_one > fewer and make(window=in_one, memory="60 kB").window == in_one
    memory = sentence.split("memory='")[-1].split("'")[0]
    assert make(window=300, memory=memory, partition=blocks(2)).window == 300


def test_bfloat16_is_offered_where_it_holds_more() -> None:
    parameters = [nn.Parameter(torch.zeros(100_000))]
    with pytest.raises(
        WoodburyError, match=r"give window=\d+, or window=\d+ with dtype="
    ) as caught:
        MFAC(parameters, window=128, memory="20 MB")
    fewer, in_halves = (
        int(part.split()[0].rstrip(",")) for part in str(caught.value).split("window=")[1:]
    )
    assert in_halves > 1.5 * fewer
    assert MFAC(parameters, window=in_halves, memory="20 MB", dtype=torch.bfloat16)


def test_no_room_for_one_gradient_is_refused() -> None:
    with pytest.raises(WoodburyError, match="A window of 1 gradient of 43 weights takes"):
        make(memory=ROW)


@pytest.mark.parametrize("memory", [0, "", "much", -1, float("nan"), "1e30 GiB", True])
def test_what_is_no_size_is_refused(memory: Any) -> None:
    with pytest.raises(WoodburyError, match="give bytes or a size such as 6GiB"):
        make(memory=memory)


def test_more_than_there_is_counts_as_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "available_bytes", lambda device: 50_000)
    assert make(memory="100 GB").window == make(memory=50_000).window
    with pytest.raises(WoodburyError, match="all that is left on cpu, less than memory='100 GB'"):
        make(memory="100 GB", window=500)


def test_the_ranks_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    half, whole = (make(memory=size).window for size in (30_000, 60_000))
    monkeypatch.setattr(footprint, "budget_bytes", lambda memory, device: 60_000)
    assert make().window == whole
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert make().window == half


def test_the_window_is_chosen_again_where_its_room_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = net()
    optimizer, asked = MFAC(model.parameters()), MFAC(model.parameters(), window=512)
    smaller = make(memory=36_000).window
    monkeypatch.setattr(footprint, "available_bytes", lambda device: 60_000)
    monkeypatch.setattr(footprint, "budget_bytes", lambda memory, device: 36_000)
    train(model, optimizer, range(1))
    assert optimizer.window == smaller
    before = vector(model)
    with pytest.raises(WoodburyError, match="A window of 512 gradients"):
        train(model, asked, range(1))
    assert torch.equal(before, vector(model))


def test_a_resumed_run_takes_the_saved_window() -> None:
    model, other = net(), net()
    optimizer = MFAC(model.parameters(), memory="40 kB")
    train(model, optimizer, range(3))
    resumed = MFAC(other.parameters())
    assert resumed.window != optimizer.window
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert resumed.window == optimizer.window
    train(model, optimizer, range(3, 6))
    train(other, resumed, range(3, 6))
    assert_equal_weights(model, other)
    with pytest.raises(WoodburyError, match=f"A window of {optimizer.window} gradients"):
        make(memory="20 kB").load_state_dict(optimizer.state_dict())


def test_a_group_without_room_is_refused_and_changes_nothing() -> None:
    model = net()
    optimizer = MFAC(model[0].parameters(), memory="30 kB")
    train(model, optimizer, range(2))
    with pytest.raises(WoodburyError, match="no room for another group"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(10_000))]})
    assert len(optimizer.param_groups) == 1
    train(model, optimizer, range(2, 4))


def test_rows_of_a_step_have_room_or_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    optimizer = MFAC(model.parameters(), window=8)
    rows = [torch.ones(4, *parameter.shape) for parameter in model.parameters()]
    optimizer.step(rows=rows, residuals=torch.ones(4))
    monkeypatch.setattr("woodbury.optim.optimizer.available_bytes", lambda device: 5 * ROW)
    optimizer.step(rows=rows, residuals=torch.ones(4))
    more = [torch.ones(6, *parameter.shape) for parameter in model.parameters()]
    with pytest.raises(WoodburyError, match="A step copies its rows"):
        optimizer.step(rows=more, residuals=torch.ones(6))


def test_momentum_on_another_device_has_room_there(monkeypatch: pytest.MonkeyPatch) -> None:
    room = make(momentum=0.9)._room()
    elsewhere = footprint.Room(room.need, None, {torch.device("cuda"): 1000}, None, room.device)
    free = {"cuda": 999, "cpu": 10**9}
    monkeypatch.setattr(footprint, "available_bytes", lambda device: free[device.type])
    with pytest.raises(
        WoodburyError, match=r"Momentum takes 1\.00 kB on cuda, where 999 B are left"
    ):
        elsewhere.window(None)


def test_the_largest_window_by_trying_all() -> None:
    need = Footprint((300, 20), torch.float32, 5000)
    for budget in (0, 5000, 7000, 50_000, 10**7):
        tried = max([0, *(m for m in range(1, 65) if need.of(m) <= budget)])
        assert need.largest(budget, 64) == tried


def test_the_words_for_a_size_are_read_back_as_at_least_that_size() -> None:
    for size in (1, 999, 1000, 1001, 123_456, 9_999_999, 10**9 + 1, 3 * 10**13):
        assert size <= parse_bytes(bytes_in_words(size)) <= 1.01 * size


LIMITED = """
import pathlib, re, resource, torch, woodbury
torch.set_num_threads(1)
status = pathlib.Path("/proc/self/status").read_text()
limit = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", status)[1]) + 500_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
model = torch.nn.Linear(600, 600)
optimizer = woodbury.MFAC(model.parameters(), lr=1e-3, momentum=0.9)
assert 100 < optimizer.window < 350, optimizer.window
for parameter in model.parameters():
    parameter.grad = torch.ones_like(parameter)
for _ in range(2):
    optimizer.step()
try:
    woodbury.MFAC(model.parameters(), window=512)
except woodbury.WoodburyError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_in_a_process_limit_it_takes_what_fits() -> None:
    """512 gradients of 360 thousand weights are 0.74 GB, of the 0.5 GB that there are."""
    run = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "A window of 512 gradients of 360,600 weights takes" in run.stdout
