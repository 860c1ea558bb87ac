"""What this machine can do at best, measured in the same run: the yardsticks of the other
benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from rich.table import Table


def seconds(
    call: Callable[[], object], repeats: int = 3, prepare: Callable[[], object] = lambda: None
) -> float:
    """The least of `repeats` wall-clock times, after one call to warm up where more than one is
    asked for.

    prepare: called before each, outside the clock.
    """
    if repeats > 1:
        prepare()
        call()
    best = float("inf")
    for _ in range(repeats):
        prepare()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    made = Table(*columns, title=title)
    for row in rows:
        made.add_row(*row)
    return made


def matmul_rate(dtype: torch.dtype = torch.float32, size: int = 4096) -> float:
    """Floating-point operations per second of a square matrix product."""
    a, b = torch.randn(2, size, size, dtype=dtype)
    return 2 * size**3 / seconds(lambda: a @ b)


def copy_rate(like: torch.Tensor) -> float:
    """Bytes per second that a copy of `like` moves, the read and the write both counted."""
    target = torch.empty_like(like)
    return 2 * like.numel() * like.element_size() / seconds(lambda: target.copy_(like), 5)
