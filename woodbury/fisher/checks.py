"""What every operator asks of its arguments, and the sentences for what it does not get."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from woodbury.errors import WoodburyError, WrongType
from woodbury.linalg.paged_rows import Rows
from woodbury.linalg.precision import dtype_name, wide_dtype

ELEMENTS_PER_CHECK = 1 << 20
"""Elements that are checked at once."""


def check_damping(damping: float) -> float:
    """The damping, if it can be added to the diagonal of a Fisher.

    Args:
        damping: λ, positive and finite.

    Returns:
        `damping` as a float.

    Raises:
        WoodburyError: If it is not positive or not finite.
        WrongType: If it is no number.
    """
    try:
        valid = math.isfinite(damping) and damping > 0
    except TypeError as error:
        raise WrongType(f"damping is {damping!r}: give a positive, finite number.") from error
    if not valid:
        raise WoodburyError(
            f"damping is {damping}: it is added to the diagonal of F "
            "and must be positive and finite."
        )
    return float(damping)


def check_vector(v: Tensor, d: int) -> Tensor:
    """A vector or columns of vectors on d weights.

    Args:
        v: (d,) or (d, k).
        d: The number of weights.

    Returns:
        `v` itself.

    Raises:
        WoodburyError: If the shape is another.
    """
    if v.ndim not in (1, 2) or v.shape[0] != d:
        raise WoodburyError(
            f"A Fisher on d = {d} weights got a vector of shape {tuple(v.shape)}: "
            f"give ({d},) or ({d}, k)."
        )
    return v


def check_keep(keep: Tensor, d: int) -> Tensor:
    """A mask of the kept weights.

    Args:
        keep: (d,) bool, True = kept.
        d: The number of weights.

    Returns:
        `keep` itself.

    Raises:
        WoodburyError: If the shape is another, or nothing is kept.
        WrongType: If the dtype is not bool.
    """
    if keep.dtype != torch.bool or keep.shape != (d,):
        kind = WoodburyError if keep.dtype == torch.bool else WrongType
        raise kind(
            f"keep is {dtype_name(keep.dtype)} of shape {tuple(keep.shape)}: "
            f"give a bool mask of shape ({d},), True = kept."
        )
    if not keep.any():
        raise WoodburyError("keep is False everywhere: at least one weight must be kept.")
    return keep


def check_groups(groups: Tensor, d: int) -> Tensor:
    """Groups of weights by their indices.

    Args:
        groups: (g, s) int64, each row the indices of one group, in [0, d).
        d: The number of weights.

    Returns:
        `groups` itself.

    Raises:
        WoodburyError: If the shape is another, or an index lies outside.
        WrongType: If the dtype is not int64.
    """
    if groups.dtype != torch.int64 or groups.ndim != 2:
        kind = WoodburyError if groups.dtype == torch.int64 else WrongType
        raise kind(
            f"groups is {dtype_name(groups.dtype)} of shape {tuple(groups.shape)}: "
            "give int64 indices of shape (g, s)."
        )
    if groups.numel():
        smallest, largest = int(groups.min()), int(groups.max())
        if smallest < 0 or largest >= d:
            raise WoodburyError(
                f"groups has indices from {smallest} to {largest}: they must lie in [0, {d})."
            )
    return groups


def check_rows(rows: Rows) -> Rows:
    """A matrix of gradient rows.

    Args:
        rows: (m, d), at least one row of at least one weight.

    Returns:
        `rows` itself.

    Raises:
        WoodburyError: If the shape is another.
    """
    if len(rows.shape) != 2 or 0 in rows.shape:
        raise WoodburyError(
            f"The rows have shape {tuple(rows.shape)}: give (m, d) with at least one row."
        )
    return rows


def check_weights(weights: Tensor, m: int) -> Tensor:
    """The weights of m rows.

    Args:
        weights: (m,), positive and finite.
        m: The number of rows.

    Returns:
        `weights` itself.

    Raises:
        WoodburyError: If they are others.
    """
    if weights.shape != (m,) or not bool((weights > 0).all() & weights.isfinite().all()):
        raise WoodburyError(
            f"The row weights must be ({m},), positive and finite: leave out rows of weight 0."
        )
    return weights


def check_finite(tensor: Tensor, what: str) -> Tensor:
    """A tensor without NaN and infinity.

    Args:
        tensor: Any floating-point tensor of at least one dimension.
        what: Its name, the subject of the sentence.

    Returns:
        `tensor` itself.

    Raises:
        WoodburyError: If an entry is not finite; the sentence gives the index of the first.
        WrongType: If the dtype is no real floating-point one.
    """
    if not tensor.is_floating_point():
        raise WrongType(
            f"{what} has dtype {dtype_name(tensor.dtype)}: give real floating-point numbers."
        )
    at_once = max(1, ELEMENTS_PER_CHECK // max(1, tensor[:1].numel()))
    for start in range(0, len(tensor), at_once):
        chunk = tensor[start : start + at_once]
        # One number tells: a sum is finite unless an entry is not. Else look, as it may overflow.
        if math.isfinite(float(chunk.sum(dtype=wide_dtype(chunk.dtype)))):
            continue
        bad = (~torch.isfinite(chunk)).nonzero()
        if len(bad):
            first, *rest = bad[0].tolist()
            raise WoodburyError(
                f"{what} is not finite at index {(start + first, *rest)}: "
                "look for NaN or overflow there."
            )
    return tensor
