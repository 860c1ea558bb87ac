"""MachineRates: what this machine does in a second, by a short trial."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

SIZE = 768
"""Rows of the matrices of the trial: larger ones are no faster."""

REPEATS = 3
"""Trials, of which the fastest counts."""


@dataclass(frozen=True)
class MachineRates:
    """The speed of matrix products and of memory on a device.

    Attributes:
        float32: FLOPs of a float32 matrix product in a second.
        float64: The same in float64.
        copied: Bytes that are read and written again in a second.

    Example:
        >>> rates = MachineRates.measure()
        >>> rates.float32 > 0 and rates.copied > 0
        True
    """

    float32: float
    float64: float
    copied: float

    @classmethod
    def measure(cls, device: torch.device | str = "cpu") -> MachineRates:
        """The rates of a device with the present number of threads, measured once.

        Args:
            device: Where products are taken.

        Returns:
            The rates; a few hundredths of a second the first time.
        """
        return _measured(str(device), torch.get_num_threads())


@cache
def _measured(device: str, threads: int) -> MachineRates:
    """The rates; `threads` is part of the key only."""
    return MachineRates(
        float32=_product_rate(device, torch.float32),
        float64=_product_rate(device, torch.float64),
        copied=_copy_rate(device),
    )


def _product_rate(device: str, dtype: torch.dtype) -> float:
    matrix = torch.ones(SIZE, SIZE, dtype=dtype, device=device)
    return 2 * SIZE**3 / _seconds(lambda: matrix @ matrix, device)


def _copy_rate(device: str) -> float:
    source = torch.ones(2**22, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), device)


def _seconds(call: Callable[[], object], device: str) -> float:
    """The fastest of some calls; the first one pays for more than the others."""
    call()
    return min(_timed(call, device) for _ in range(REPEATS))


def _timed(call: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return max(time.perf_counter() - start, 1e-9)
