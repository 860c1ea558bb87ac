"""Numbers that a likelihood is made with: one, or one for each output."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from woodbury.errors import WoodburyError, WrongType


def checked_numbers(
    given: float | Sequence[float] | Tensor, name: str, *, least: float, above: bool = False
) -> tuple[float, ...]:
    """Numbers as a tuple, so that likelihoods can be compared and printed.

    Args:
        given: A number, or numbers in a row.
        name: What they are called, for the sentence.
        least: The smallest that will do.
        above: Whether that one will not.

    Returns:
        One number, or as many as were given.

    Raises:
        WrongType: If they are no numbers in a row.
        WoodburyError: If one is out of range or not finite.

    Example:
        >>> checked_numbers([1, 0.7], "weight", least=0.0)
        (1.0, 0.7)
    """
    try:
        # By NumPy, as torch would round Python's numbers to float32.
        tensor = given if isinstance(given, Tensor) else torch.as_tensor(np.asarray(given))
        tensor = tensor.detach().cpu().to_dense()
    except (TypeError, ValueError, RuntimeError) as error:
        raise WrongType(f"{name} is a {type(given).__name__}: give numbers.") from error
    if tensor.is_complex():
        raise WrongType(f"{name} is complex: give real numbers.")
    numbers = tensor.double()
    if numbers.ndim > 1 or not numbers.numel():
        raise WrongType(
            f"{name} has the shape {tuple(numbers.shape)}: give one number for each output."
        )
    found = tuple(numbers.reshape(-1).tolist())
    for number in found:
        if not math.isfinite(number) or number < least or (above and number == least):
            wanted = f"above {least:g}" if above else f"of at least {least:g}"
            raise WoodburyError(f"{name} holds {number}: give finite numbers {wanted}.")
    return found


def per_output(numbers: tuple[float, ...], output: Tensor, name: str) -> Tensor:
    """Numbers in a shape that broadcasts with an output.

    Args:
        numbers: One, or one for each output along dimension 1.
        output: (b, k, …), or (b,).
        name: What they are called, for the sentence.

    Returns:
        (), or (1, k, 1, …).

    Raises:
        WoodburyError: If there are neither one nor k.
    """
    tensor = output.new_tensor(numbers)
    if len(numbers) == 1:
        return tensor[0]
    if output.ndim < 2 or output.shape[1] != len(numbers):
        raise WoodburyError(
            f"{name} holds {len(numbers)} numbers and the output has the shape "
            f"{tuple(output.shape)}: give one number, or one for each output along dimension 1."
        )
    return tensor.view(1, -1, *([1] * (output.ndim - 2)))
