"""What a call cost: seconds and peak memory, without a dependency."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Resources:
    """Wall-clock seconds, and the process's peak memory in MB."""

    seconds: float
    memory: float

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.seconds + other.seconds, max(self.memory, other.memory))


def measured(call: Callable[[], T]) -> tuple[T, Resources]:
    """What `call` gives, and what it cost. Where the system cannot reset a peak it is that since the process's start."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    value = call()
    return value, Resources(time.perf_counter() - start, _peak_memory())


def _peak_memory() -> float:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    with suppress(ImportError):
        import resource  # not there on Windows

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
            2**20 if sys.platform == "darwin" else 2**10
        )
    return math.nan
