"""Which way of a product is the fastest on this machine: timed in turns once, then remembered."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from woodbury.errors import WoodburyError
from woodbury.io.folders import write_atomically
from woodbury.runtime.layouts import Tiling

GAIN = 0.9
"""A sparse product is taken if it takes at most this share of the dense one's time."""
ROUNDS = 5
TRIAL_SECONDS = 0.2
"""About what a trial of one way may take; slow ways have fewer rounds, at least two."""

PAUSE = 0.05
"""Seconds after which threads that wait busily have gone to sleep."""

VECTORS = (2, 4, 8)
BLOCKS = (192, 384, 0)

DENSE_RATE, SPARSE_RATE, PACKING_RATE = 80e9, 30e9, 1e9
"""FLOPs and floats per second of one core, for choices without a trial: an ordinary CPU of today.

Only their ratios matter."""


class Choice(NamedTuple):
    """How one product of one layer is done.

    Attributes:
        tiling: How the sparse product is cut; None for the dense one.
        dense_seconds: Of the dense product, and
        sparse_seconds: of the fastest sparse one, measured or estimated.
    """

    tiling: Tiling | None
    dense_seconds: float
    sparse_seconds: float


def tilings(inner: int, columns: int, width: int) -> list[Tiling]:
    """The ways of cutting a product that are tried.

    Args:
        inner: Columns of the matrix.
        columns: Columns of the input.
        width: Floats in a register.
    """
    needed = -(-columns // width)
    vectors = sorted({min(each, needed if needed in (1, 2, 4, 8) else 8) for each in VECTORS})
    blocks = [block for block in BLOCKS if block < inner]
    return [Tiling(each, block) for each in vectors for block in blocks]


def estimated(
    nonzeros: int, outer: int, inner: int, columns: int, dense_flops: float, width: int
) -> Choice:
    """A choice by FLOPs alone.

    Args:
        nonzeros: Of the matrix.
        outer: Its rows.
        inner: Its columns.
        columns: Of the input.
        dense_flops: Of the dense product.
        width: Floats in a register.
    """
    computed = -(-columns // width) * width
    dense = dense_flops / DENSE_RATE
    packing = (inner + outer) * computed / PACKING_RATE / width
    sparse = 2 * nonzeros * computed / SPARSE_RATE + packing
    tiling = Tiling(min(4, max(1, columns // width)), 384 if inner > 384 else 0)
    if tiling.vectors == 3:
        tiling = Tiling(4, tiling.block)
    return Choice(tiling if sparse < GAIN * dense else None, dense, sparse)


def in_turns(
    ways: Mapping[Any, Callable[[], Any]],
    rounds: int = ROUNDS,
    seconds: float = TRIAL_SECONDS,
    *,
    settled: bool = False,
) -> dict[Any, list[float]]:
    """Seconds of several ways to do the same, one after the other in each round.

    Args:
        ways: Name -> the work.
        rounds: How often each is timed, after one call that is not.
        seconds: Of one way in all; what is slower has fewer rounds, but two.
        settled: Whether a pause and a call come before each that is timed, where torch has several
            threads: those of other libraries wait busily for their next work, on cores that the
            way after them needs.

    Returns:
        Name -> its seconds, one number a round.
    """
    # With one thread its own time counts, in which other processes have no share.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    limits = {}
    for name, work in ways.items():
        work()
        begin = clock()
        work()
        limits[name] = max(2, int(seconds / max(clock() - begin, 1e-9)))
    result: dict[Any, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, work in ways.items():
            if number < limits[name]:
                if settled and torch.get_num_threads() > 1:
                    time.sleep(PAUSE)
                    work()
                begin = clock()
                work()
                result[name].append(clock() - begin)
    return result


def chosen(
    key: str, dense: Callable[[], Any], sparse: Mapping[Tiling, Callable[[], Any]]
) -> Choice:
    """The fastest way, by an earlier process's trial on this machine or by one now.

    Args:
        key: The product: its kind, shape, non-zeros and columns.
        dense: Does it densely.
        sparse: Tiling -> does it sparsely.

    Returns:
        The sparse way that is the fastest, where it beats the dense one; else the dense one.
    """
    file = cache_file()
    key = f"{machine()}, {key}"
    known = _read(file).get(key)
    if known is not None:
        return known
    seconds = {way: min(each) for way, each in in_turns({None: dense, **sparse}).items()}
    best = min(sparse, key=lambda tiling: seconds[tiling])
    wins = seconds[best] < GAIN * seconds[None]
    choice = Choice(best if wins else None, seconds[None], seconds[best])
    _add(file, key, choice)
    return choice


def rounded(number: int) -> int:
    """A number with two digits, so that products that are nearly the same share a trial.

    Args:
        number: Any whole number.

    Example:
        >>> rounded(59_013), rounded(7)
        (59000, 7)
    """
    if number < 100:
        return number
    step = 10 ** (int(math.log10(number)) - 1)
    return round(number / step) * step


def cache_file() -> Path:
    """Where choices are remembered: in the user's folder of caches, by the system's custom."""
    root = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    return (Path(root) if root else Path.home() / ".cache") / "woodbury" / "runtime.json"


def machine() -> str:
    """What timings depend on beside the product: the processor, torch and its threads."""
    return f"{_processor()}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(file: Path) -> dict[str, Choice]:
    """The remembered choices; none where the file is missing, unreadable or of another form."""
    try:
        entries = json.loads(file.read_text("utf-8"))
        return {
            key: Choice(Tiling(*tiling) if tiling else None, float(dense), float(sparse))
            for key, (tiling, dense, sparse) in entries.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _add(file: Path, key: str, choice: Choice) -> None:
    """Remember a choice for later processes, where the folder can be written."""
    entries = {**_read(file), key: choice}
    plain = {
        name: [
            [each.tiling.vectors, each.tiling.block] if each.tiling else None,
            each.dense_seconds,
            each.sparse_seconds,
        ]
        for name, each in entries.items()
    }

    def write(path: Path) -> None:
        path.write_text(json.dumps(plain), "utf-8")

    with suppress(OSError, WoodburyError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, write)
