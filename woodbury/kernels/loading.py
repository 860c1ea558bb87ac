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


def triangle_kernels(
    device: torch.device, dtype: torch.dtype, multiplications: float
) -> ModuleType | None:
    """The kernels for Gram matrices and triangular products of rows, where they pay.

    Args:
        device: Where the rows are.
        dtype: What the products are taken in.
        multiplications: Of all the work.

    Returns:
        `woodbury.kernels.triangles`; None where torch does the work: on a GPU, in another dtype
        than float32, for little work, and without a Numba that can compile.

    Example:
        >>> triangle_kernels(torch.device("cpu"), torch.float32, 1e3) is None
        True
    """
    return _imported("triangles") if _pays(device, dtype, multiplications) else None


def vector_kernels(
    device: torch.device, dtype: torch.dtype, multiplications: float
) -> ModuleType | None:
    """The kernels for products of rows with one vector, where they pay.

    Args:
        device: Where the rows are.
        dtype: Of rows and vector.
        multiplications: Of the Gram matrix of the rows, as one product alone is little work.

    Returns:
        `woodbury.kernels.vector_products`, or None as for `triangle_kernels`.

    Example:
        >>> vector_kernels(torch.device("cpu"), torch.float64, 1e12) is None
        True
    """
    return _imported("vector_products") if _pays(device, dtype, multiplications) else None


def block_kernels(device: torch.device, dtype: torch.dtype, multiplications: float) -> bool:
    """Whether there are kernels for many small blocks, and they pay.

    Args:
        device: Where the blocks are.
        dtype: What they are summed in.
        multiplications: Of all the work.

    Returns:
        True where `triangle_kernels` gives any.

    Example:
        >>> block_kernels(torch.device("cpu"), torch.float64, 1e12)
        False
    """
    modules = ("small_blocks", "block_sums")
    return _pays(device, dtype, multiplications) and all(map(_imported, modules))


def _pays(device: torch.device, dtype: torch.dtype, multiplications: float) -> bool:
    return device.type == "cpu" and dtype == torch.float32 and multiplications >= MIN_PRODUCTS


@cache
def _imported(name: str) -> ModuleType | None:
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        return importlib.import_module(f"woodbury.kernels.{name}")
    except Exception:  # of LLVM, of a Numba that does not fit this NumPy, …: torch is slower
        return None
