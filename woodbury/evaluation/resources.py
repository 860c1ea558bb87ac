"""What a call costs: seconds and peak memory, without a dependency."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")

MEGABYTE = 2**20


@dataclass(frozen=True)
class Resources:
    """What a call cost.

    Two of them add up: seconds in sum, memory in maximum.

    Attributes:
        seconds: Wall-clock time, in seconds.
        memory: The process's peak resident memory, in MB of 2²⁰ bytes; NaN where the system does
            not say it.
        device_memory: What tensors took at most on one CUDA device, in MB of 2²⁰ bytes; None
            without CUDA.

    Example:
        >>> Resources(1.0, 200.0) + Resources(2.0, 150.0)
        Resources(seconds=3.0, memory=200.0, device_memory=None)
    """

    seconds: float
    memory: float
    device_memory: float | None = None

    def __add__(self, other: Resources) -> Resources:
        """What both calls cost, one after the other."""
        known = [
            memory for memory in (self.device_memory, other.device_memory) if memory is not None
        ]
        return Resources(
            seconds=self.seconds + other.seconds,
            memory=max(self.memory, other.memory),
            device_memory=max(known) if known else None,
        )


def measured(call: Callable[[], T]) -> tuple[T, Resources]:
    """Call a function and measure what it costs.

    CUDA devices are waited for, before and after, where CUDA is initialized. The peaks of the
    process and of the devices are reset; where the system cannot do that, the peak is the one since
    the process's start.

    Args:
        call: The function.

    Returns:
        What it returns, and its cost.

    Example:
        >>> value, cost = measured(lambda: sum(range(10)))
        >>> value, cost.seconds > 0
        (45, True)
    """
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    for device in _cuda_devices():
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    value = call()
    for device in _cuda_devices():  # the call may be the first that uses them
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    return value, Resources(seconds, _peak_memory(), _peak_device_memory())


def _cuda_devices() -> range:
    """The CUDA devices; none while CUDA is not initialized, which takes memory and seconds."""
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)


def _peak_device_memory() -> float | None:
    """The peak of the fullest device, in MB."""
    peaks = [torch.cuda.max_memory_allocated(device) for device in _cuda_devices()]
    return max(peaks) / MEGABYTE if peaks else None


def _peak_memory() -> float:
    """The peak resident memory of the process, in MB."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):  # in kB of 2¹⁰ bytes
                return int(line.split()[1]) / 1024
    with suppress(ImportError):
        import resource  # not there on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        unit = 1 if sys.platform == "darwin" else 1024  # in bytes on macOS, else in kB
        return peak * unit / MEGABYTE
    return math.nan
