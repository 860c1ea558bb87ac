"""The dtypes in which sums are taken: float32 at least."""

from __future__ import annotations

import torch
from torch import Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over `dtype` are taken: float32 at least.

    Args:
        dtype: A floating-point dtype.

    Returns:
        float32 for float16, bfloat16 and float32; float64 for float64.

    Example:
        >>> import torch
        >>> wide_dtype(torch.bfloat16), wide_dtype(torch.float64)
        (torch.float32, torch.float64)
    """
    if dtype in (torch.float32, torch.float64):  # asked often, and faster than promotion
        return dtype
    return torch.promote_types(dtype, torch.float32)


def is_wide(dtype: object) -> bool:
    """Whether something is one of the dtypes that sums are taken in.

    Args:
        dtype: Anything.

    Returns:
        True for torch.float32 and torch.float64.

    Example:
        >>> is_wide(torch.float32), is_wide("float32")
        (True, False)
    """
    return isinstance(dtype, torch.dtype) and dtype in (torch.float32, torch.float64)


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor` in its `wide_dtype`: sums of products of halves would lose their digits.

    Args:
        tensor: Any floating-point tensor.

    Returns:
        The tensor itself if it is float32 or float64 already, else a float32 copy.

    Example:
        >>> import torch
        >>> at_least_float32(torch.ones(2, dtype=torch.float16)).dtype
        torch.float32
    """
    return tensor.to(wide_dtype(tensor.dtype))


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype without its module, for sentences.

    Args:
        dtype: Any dtype.

    Returns:
        For example "float32".

    Example:
        >>> import torch
        >>> dtype_name(torch.float32)
        'float32'
    """
    return str(dtype).removeprefix("torch.")
