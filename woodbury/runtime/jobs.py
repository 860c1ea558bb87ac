"""Jobs: what the kernel is called with, prepared once for each size of input and thread count."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from woodbury.runtime.layouts import ROWS_AT_ONCE, Packed
from woodbury.runtime.team import team

RELU, RELU6, GELU = "relu", "relu6", "gelu"

MOST_JOBS = 64
"""Sizes of inputs whose jobs a packed matrix keeps."""


class Geometry(NamedTuple):
    """How the columns of a product lie in its input and its output.

    Attributes:
        images: How many images, or 1 for tokens.
        columns: Of an image, or tokens.
        source_image: Floats of an input image.
        target_image: Floats of an output image.
        width: Pixels in each line of the output.
        grid: Columns for each line of the output.
        activation: "relu", "relu6", "gelu" or None.
    """

    images: int
    columns: int
    source_image: int
    target_image: int
    width: int
    grid: int
    activation: str | None


class Job(NamedTuple):
    """What the threads of a product share.

    Attributes:
        numbers: As `kernels.take_parts` reads them; addresses of a call's own are missing.
        room: Floats of scratch for all threads.
        sources: What `numbers` has the address of.
    """

    numbers: np.ndarray
    room: int
    sources: np.ndarray | None


def job(
    kernels: Any, packed: Packed, geometry: Geometry, sources: np.ndarray | None, threads: int
) -> Job:
    """Prepare a product.

    Args:
        kernels: The compiled kernels.
        packed: The matrix.
        geometry: Of its input and output.
        sources: For images, (inner,) int32, where each row of a panel begins; None for tokens.
        threads: How many share it.
    """
    units = geometry.images * -(-geometry.columns // (packed.vectors * kernels.WIDTH))
    parts = shares(packed, units, threads)
    room = (min(packed.block, packed.inner) + packed.outer) * packed.vectors * kernels.WIDTH
    activations = {None: 0, RELU: kernels.RELU, RELU6: kernels.RELU6, GELU: kernels.GELU}
    numbers = [
        0,  # the next part
        0,  # the next thread
        len(parts),
        4 * room,
        0,  # the source,
        0,  # and the target of a call
        packed.values.ctypes.data,
        packed.places.ctypes.data,
        packed.starts.ctypes.data,
        packed.order.ctypes.data,
        packed.begin.ctypes.data,
        0 if sources is None else sources.ctypes.data,
        0,  # the scratch of a call
        packed.inner,
        packed.outer,
        packed.block,
        packed.vectors,
        *geometry[:-1],
        *(0, 0, 0, 0),  # of each part, below
        activations[geometry.activation],
        *(number for part in parts for number in part),
    ]
    return Job(np.array(numbers, dtype=np.int64), threads * room, sources)


def run(kernels: Any, ready: Job, source: Tensor, target: Tensor, threads: int) -> None:
    """Do a product.

    Args:
        kernels: The compiled kernels.
        ready: The product.
        source: Its input, contiguous.
        target: Its output, which is written.
        threads: As it was prepared for.
    """
    numbers = ready.numbers.copy()
    numbers[kernels.SOURCE] = source.data_ptr()
    numbers[kernels.TARGET] = target.data_ptr()
    numbers[kernels.SCRATCH] = _scratch.room(ready.room)
    address = numbers.ctypes.data
    if threads == 1:
        kernels.take_parts_here(address)
        return
    of_torch = team()
    if of_torch is not None:
        of_torch(kernels.take_parts.address, address, threads)
        return
    others = [_pool(threads).submit(kernels.take_parts_here, address) for _ in range(threads - 1)]
    kernels.take_parts_here(address)
    for other in others:
        other.result()


def shares(packed: Packed, units: int, threads: int) -> list[tuple[int, int, int, int]]:
    """The parts of a product that threads take: units where there are enough, else rows.

    Args:
        packed: The matrix.
        units: Panels of all images.
        threads: How many share them.

    Returns:
        First unit, the one after the last, first row, and the one after the last, of each part.
        Parts of rows have as many non-zeros.
    """
    by_units = min(threads, units)
    by_rows = max(1, min(threads // max(by_units, 1), packed.outer))
    edges = np.linspace(0, units, by_units + 1).astype(int)
    if by_rows == 1:
        rows = [0, packed.outer]
    else:
        nonzeros = np.diff(packed.starts.astype(np.int64)).reshape(-1, packed.outer).sum(0) + 1
        share = np.cumsum(nonzeros) / nonzeros.sum()
        inner = np.searchsorted(share, np.arange(1, by_rows) / by_rows)
        inner = -(-inner // ROWS_AT_ONCE) * ROWS_AT_ONCE  # only within such groups rows are sorted
        rows = [0, *inner.clip(max=packed.outer).tolist(), packed.outer]
    return [
        (int(a), int(b), top, bottom)
        for a, b in pairwise(edges)
        for top, bottom in pairwise(rows)
        if a < b and top < bottom
    ]


class _Scratch(threading.local):
    """Room that a thread keeps, so that its pages are in place."""

    def __init__(self) -> None:
        self.held = np.zeros(0, dtype=np.float32)
        self.address = 0

    def room(self, floats: int) -> int:
        """The address of at least so many floats, of any value."""
        if len(self.held) < floats:
            self.held = np.zeros(floats, dtype=np.float32)
            self.address = self.held.ctypes.data
        return self.address


_scratch = _Scratch()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads beside the calling one, where torch has none to give."""
    return ThreadPoolExecutor(threads - 1, "woodbury-runtime")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
