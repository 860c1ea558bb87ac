"""What a call costs: seconds add up, memory does not, and CUDA is waited for."""

from __future__ import annotations

import pytest
import torch

from woodbury.evaluation.resources import Resources, measured


def test_costs_add_in_time_and_not_in_memory() -> None:
    value, cost = measured(lambda: torch.ones(2_000_000).sum().item())
    _, other = measured(lambda: None)
    assert value == 2_000_000 and cost.seconds > 0 and cost.memory > 10
    assert (cost + other).seconds == cost.seconds + other.seconds
    assert (cost + other).memory == max(cost.memory, other.memory)


@pytest.mark.parametrize(
    ("first", "second", "both"), [(None, None, None), (3.0, None, 3.0), (3.0, 5.0, 5.0)]
)
def test_device_memory_is_the_larger_one_where_there_is_any(
    first: float | None, second: float | None, both: float | None
) -> None:
    assert (Resources(1, 1, first) + Resources(1, 1, second)).device_memory == both
    assert (Resources(1, 1, second) + Resources(1, 1, first)).device_memory == both


def test_on_a_cpu_cuda_is_left_alone() -> None:
    if torch.cuda.is_initialized():
        pytest.skip("another test has initialized CUDA")
    _, cost = measured(lambda: None)
    assert cost.device_memory is None and not torch.cuda.is_initialized()


def test_devices_are_waited_for_and_the_fullest_one_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[str, int]] = []
    peaks = {0: 3 * 2**20, 1: 7 * 2**20}
    fakes = {
        "is_initialized": lambda: True,
        "device_count": lambda: 2,
        "synchronize": lambda device: calls.append(("wait", device)),
        "reset_peak_memory_stats": lambda device: calls.append(("reset", device)),
        "max_memory_allocated": peaks.__getitem__,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    _, cost = measured(lambda: calls.append(("call", 0)))
    before = [("wait", 0), ("reset", 0), ("wait", 1), ("reset", 1)]
    assert calls == [*before, ("call", 0), ("wait", 0), ("wait", 1)]
    assert cost.device_memory == 7
