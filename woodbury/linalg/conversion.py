"""Tensors of what people give as tensors: arrays, lists, and the tensors that are none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from woodbury.errors import WrongType, check_whole_number
from woodbury.linalg.precision import dtype_name


def seeded(seed: int, device: torch.device) -> torch.Generator:
    """A generator of random numbers.

    Args:
        seed: A whole number of at most 63 bits.
        device: Where the numbers are drawn.

    Returns:
        A generator of its own, so that torch's is left alone.

    Raises:
        WrongType: If the seed is no whole number.
        WoodburyError: If it is too large.
    """
    check_whole_number(seed, "seed", "of the random numbers", least=-(2**63), most=2**63 - 1)
    return torch.Generator(device).manual_seed(int(seed))


def as_tensor(value: Any, what: str) -> Tensor:
    """What was given as a tensor, an array, or a list of numbers, as a tensor outside autograd.

    Args:
        value: Anything. Decimals in a list become float64.
        what: Its name, the subject of the sentence.

    Returns:
        The same memory where it is a tensor.

    Raises:
        WrongType: If it is none of these, or a sparse, quantized or 8-bit tensor, or has no values.

    Example:
        >>> as_tensor([0.5, 1.0], "A vector")
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    tensor = value
    if not isinstance(value, Tensor):
        try:
            value = plain_array(value)
            tensor = torch.as_tensor(value)
            if tensor.dtype == torch.float32 and isinstance(value, (list, tuple)):
                tensor = torch.as_tensor(value, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise WrongType(f"{what} is a {type(value).__name__}: give a tensor.") from error
    kind = _unusable_kind(tensor)
    if kind:
        raise WrongType(f"{what} is {kind}: give a dense tensor of numbers.")
    return tensor.detach()


def plain_array(value: Any) -> Any:
    """An array that torch takes, of one that is read-only, backwards, or in another byte order.

    Args:
        value: Anything.

    Returns:
        A copy of such an array; anything else as it is.

    Example:
        >>> import numpy
        >>> torch.as_tensor(plain_array(numpy.arange(3)[::-1]))
        tensor([2, 1, 0])
    """
    flags, dtype = getattr(value, "flags", None), getattr(value, "dtype", None)
    if flags is None or dtype is None:
        return value
    if not getattr(dtype, "isnative", True):
        return value.astype(dtype.newbyteorder("="))
    is_backwards = any(step < 0 for step in getattr(value, "strides", ()) or ())
    is_fixed = not getattr(flags, "writeable", True)
    return value.copy() if is_backwards or is_fixed else value


def _unusable_kind(tensor: Tensor) -> str:
    """What keeps a tensor from being computed with; empty where nothing does."""
    if tensor.is_meta:
        return "on the device meta, where tensors have no values"
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_quantized or (tensor.is_floating_point() and tensor.itemsize < 2):
        return f"quantized ({dtype_name(tensor.dtype)})"
    return ""
