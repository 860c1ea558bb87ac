"""Whether there are kernels for some work, and where."""

from __future__ import annotations

import importlib.util
from functools import cache
from types import ModuleType

import torch

MIN_PRODUCTS = 1e10
"""Multiplications, a fifth of a second of a core, from which on kernels are loaded.

It depends on nothing that happened before, so that the same work has the same digits.
"""


def row_kernels(
    device: torch.device, dtype: torch.dtype, multiplications: float
) -> ModuleType | None:
    """The kernels for products of rows, where they pay.

    Args:
        device: Where the rows are.
        dtype: What the products are taken in.
        multiplications: Of all the work.

    Returns:
        `woodbury.kernels.triangles`; None where torch does the work: on a GPU, in another dtype
        than float32, for little work, and without a Numba that can compile.

    Example:
        >>> row_kernels(torch.device("cpu"), torch.float32, 1e3) is None
        True
    """
    if device.type != "cpu" or dtype != torch.float32 or multiplications < MIN_PRODUCTS:
        return None
    return _triangles()


def block_kernels(device: torch.device, dtype: torch.dtype, multiplications: float) -> bool:
    """Whether there are kernels for many small blocks, and they pay.

    Args:
        device: Where the blocks are.
        dtype: What they are summed in.
        multiplications: Of all the work.

    Returns:
        As for `row_kernels`.

    Example:
        >>> block_kernels(torch.device("cpu"), torch.float64, 1e12)
        False
    """
    if device.type != "cpu" or dtype != torch.float32 or multiplications < MIN_PRODUCTS:
        return False
    return _blocks()


@cache
def _triangles() -> ModuleType | None:
    return _imported("triangles")


@cache
def _blocks() -> bool:
    return _imported("small_blocks") is not None and _imported("block_sums") is not None


def _imported(name: str) -> ModuleType | None:
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        return importlib.import_module(f"woodbury.kernels.{name}")
    except Exception:  # of LLVM, of a Numba that does not fit this NumPy, …: torch is slower
        return None
