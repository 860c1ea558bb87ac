"""Products of packed matrices with tokens and images, by several threads."""

from __future__ import annotations

import importlib.util
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from woodbury.errors import MissingDependency, WoodburyError, reason
from woodbury.runtime.layouts import ROWS_AT_ONCE, Grid, Packed

RELU, RELU6, GELU = "relu", "relu6", "gelu"


class Work(NamedTuple):
    """What the kernel is called with, but for the ranges of a thread."""

    packed: Packed
    sources: np.ndarray | None
    source: Tensor
    target: Tensor
    images: int
    columns: int
    source_image: int
    target_image: int
    width: int
    grid: int
    activation: str | None


@cache
def kernels() -> ModuleType:
    """The compiled kernels; the first process of a machine compiles them, in some seconds.

    Raises:
        MissingDependency: If Numba is not installed.
        WoodburyError: If it cannot compile on this machine.
    """
    if importlib.util.find_spec("numba") is None:
        raise MissingDependency("Sparse layers need Numba: pip install 'woodbury[fast]'.")
    try:
        from woodbury.runtime import kernels as module
    except Exception as error:  # of LLVM, of a Numba that does not fit this NumPy, …
        raise WoodburyError(
            f"Numba cannot compile the sparse kernels: install one that fits. ({reason(error)})"
        ) from error
    return module


def times_tokens(packed: Packed, tokens: Tensor, activation: str | None = None) -> Tensor:
    """A packed matrix times tokens, i.e. a linear layer.

    Args:
        packed: The matrix, (outer, inner).
        tokens: (n, inner) float32, n at least 1.
        activation: "relu", "relu6", "gelu" or None.

    Returns:
        (n, outer) float32.
    """
    tokens = tokens.contiguous()
    count = len(tokens)
    target = torch.empty(count, packed.outer)
    _run(Work(packed, None, tokens, target, 1, count, 0, 0, count, count, activation))
    return target


def times_planes(
    packed: Packed, grid: Grid, source: Tensor, activation: str | None = None
) -> Tensor:
    """A packed matrix times the patches of images, i.e. a convolution.

    Args:
        packed: The matrix.
        grid: The grid.
        source: (b, …) what `planes` made of the images.
        activation: "relu", "relu6", "gelu" or None.

    Returns:
        (b, outer, h, w) float32.
    """
    high, wide = grid.output
    target = torch.empty(len(source), packed.outer, high, wide)
    line, width = (high * wide, high * wide) if grid.line == wide else (grid.line, wide)
    sources = grid.sources if packed.used is None else grid.sources[packed.used]
    work = Work(
        packed,
        sources.numpy().astype(np.int32),
        source,
        target,
        len(source),
        grid.columns,
        source[0].numel(),
        target[0].numel(),
        width,
        line,
        activation,
    )
    _run(work)
    return target


def _run(work: Work) -> None:
    """Run the kernel on all of the product, by as many threads as torch has."""
    most = work.packed.vectors * kernels().WIDTH
    units = work.images * -(-work.columns // most)
    threads = torch.get_num_threads()
    if threads == 1 or work.packed.outer == 0:
        _part(work, 0, units, 0, work.packed.outer)
        return
    parts = _shares(work.packed, units, threads)
    others = [_pool(threads).submit(_part, work, *part) for part in parts[1:]]
    _part(work, *parts[0])
    for other in others:
        other.result()


def _shares(packed: Packed, units: int, threads: int) -> list[tuple[int, int, int, int]]:
    """Units and rows of each thread: units where there are enough, else rows by non-zeros."""
    by_units = min(threads, units)
    by_rows = max(1, min(threads // by_units, packed.outer))
    edges = np.linspace(0, units, by_units + 1).astype(int)
    if by_rows == 1:
        rows = [0, packed.outer]
    else:
        nonzeros = np.diff(packed.starts.astype(np.int64)).reshape(-1, packed.outer).sum(0) + 1
        share = np.cumsum(nonzeros) / nonzeros.sum()
        inner = np.searchsorted(share, np.arange(1, by_rows) / by_rows)
        inner = (
            -(-inner // ROWS_AT_ONCE) * ROWS_AT_ONCE
        )  # only within such groups rows change places
        rows = [0, *inner.clip(max=packed.outer).tolist(), packed.outer]
    return [
        (int(a), int(b), top, bottom)
        for a, b in pairwise(edges)
        for top, bottom in pairwise(rows)
        if a < b and top < bottom
    ]


def _part(work: Work, first_unit: int, last_unit: int, first_row: int, last_row: int) -> None:
    module, packed = kernels(), work.packed
    room = (min(packed.block, packed.inner) + packed.outer) * packed.vectors * module.WIDTH
    module.multiply(
        work.source.data_ptr(),
        work.target.data_ptr(),
        packed.values.ctypes.data,
        packed.places.ctypes.data,
        packed.starts.ctypes.data,
        packed.order.ctypes.data,
        packed.begin.ctypes.data,
        0 if work.sources is None else work.sources.ctypes.data,
        _scratch.room(room).ctypes.data,
        packed.inner,
        packed.outer,
        packed.block,
        packed.vectors,
        work.images,
        work.columns,
        work.source_image,
        work.target_image,
        work.width,
        work.grid,
        first_unit,
        last_unit,
        first_row,
        last_row,
        {RELU: module.RELU, RELU6: module.RELU6, GELU: module.GELU}.get(work.activation or "", 0),
    )


class _Scratch(threading.local):
    """Room that a thread keeps, so that its pages are in place."""

    held = np.zeros(0, dtype=np.float32)

    def room(self, floats: int) -> np.ndarray:
        """At least so many floats, of any value."""
        if len(self.held) < floats:
            self.held = np.zeros(floats, dtype=np.float32)
        return self.held


_scratch = _Scratch()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads beside the calling one; the kernel runs without Python's lock."""
    return ThreadPoolExecutor(threads - 1, "woodbury-runtime")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
