"""Products of packed matrices with tokens and images, by several threads."""

from __future__ import annotations

import importlib.util
from functools import cache
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from woodbury.errors import MissingDependency, WoodburyError, reason
from woodbury.runtime import buffers
from woodbury.runtime.jobs import MOST_JOBS, Geometry, job, run
from woodbury.runtime.layouts import Grid, Packed


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
    target = buffers.empty(count, packed.outer)
    _multiply(packed, None, Geometry(1, count, 0, 0, count, count, activation), tokens, target)
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
    (high, wide), images = grid.output, len(source)
    target = buffers.empty(images, packed.outer, high, wide)
    line, width = (high * wide, high * wide) if grid.line == wide else (grid.line, wide)
    of_images = source.numel() // images, target.numel() // images
    geometry = Geometry(images, grid.columns, *of_images, width, line, activation)
    _multiply(packed, grid, geometry, source, target)
    return target


def _multiply(
    packed: Packed, grid: Grid | None, geometry: Geometry, source: Tensor, target: Tensor
) -> None:
    """Run the kernel by as many threads as torch has."""
    module, threads = kernels(), torch.get_num_threads()
    key = (geometry, grid and grid.size, threads)
    ready = packed.jobs.get(key)
    if ready is None:
        if len(packed.jobs) >= MOST_JOBS:
            packed.jobs.clear()
        sources = None if grid is None else _sources(packed, grid)
        ready = packed.jobs[key] = job(module, packed, geometry, sources, threads)
    run(module, ready, source, target, threads)


def _sources(packed: Packed, grid: Grid) -> np.ndarray:
    """Where each row of a panel begins in the planes of an image."""
    sources = grid.sources if packed.used is None else grid.sources[packed.used]
    return sources.numpy().astype(np.int32)
