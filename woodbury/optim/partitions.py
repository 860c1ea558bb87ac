"""Partitions: which weights of an optimizer share a window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from woodbury.argument_types import check_fields, checks_types
from woodbury.errors import check_whole_number

Partition = Callable[[Sequence[Sequence[int]]], Sequence[int]]
"""The sizes of all parameters, in one list per parameter group -> the sizes of the windows.

Windows follow each other in the order of the parameters, and their sizes add up to all weights.
"""


@checks_types
def whole(sizes: Sequence[Sequence[int]]) -> Sequence[int]:
    """One window over all weights: the Fisher has no blocks.

    Args:
        sizes: The number of weights of each parameter, in one list per parameter group.

    Returns:
        The number of weights of each window.

    Example:
        >>> import woodbury
        >>> woodbury.optim.whole([[20, 5], [15, 3]])
        [43]
    """
    return [sum(map(sum, sizes))]


@checks_types
def per_group(sizes: Sequence[Sequence[int]]) -> Sequence[int]:
    """One window for each parameter group, which may then have a damping of its own.

    Args:
        sizes: The number of weights of each parameter, in one list per parameter group.

    Returns:
        The number of weights of each window.

    Example:
        >>> import woodbury
        >>> woodbury.optim.per_group([[20, 5], [15, 3]])
        [25, 18]
    """
    return [sum(group) for group in sizes]


@checks_types
def per_parameter(sizes: Sequence[Sequence[int]]) -> Sequence[int]:
    """One window for each parameter: a Fisher in one block per tensor.

    Args:
        sizes: The number of weights of each parameter, in one list per parameter group.

    Returns:
        The number of weights of each window.

    Example:
        >>> import woodbury
        >>> woodbury.optim.per_parameter([[20, 5], [15, 3]])
        [20, 5, 15, 3]
    """
    return [size for group in sizes for size in group]


@dataclass(frozen=True)
class blocks:
    """Windows over `size` weights each, the last one over the remainder (blocked M-FAC).

    Args:
        size: Weights per window, across the borders of parameters.

    Raises:
        WrongType: If the size is no whole number.
        WoodburyError: If it is below 1.

    Example:
        >>> import woodbury
        >>> woodbury.optim.blocks(20)
        blocks(size=20)
        >>> woodbury.optim.blocks(20)([[20, 5], [15, 3]])
        [20, 20, 3]
    """

    size: int

    def __post_init__(self) -> None:
        check_fields(self)
        check_whole_number(self.size, "size", "the number of weights of a block")

    @checks_types
    def __call__(self, sizes: Sequence[Sequence[int]]) -> Sequence[int]:
        """The number of weights of each window, for parameters of these sizes."""
        (d,) = whole(sizes)
        return [min(self.size, d - start) for start in range(0, d, self.size)]
