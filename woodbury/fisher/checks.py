"""What every operator asks of its arguments, and the sentences for what it does not get."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from woodbury.errors import WoodburyError, WrongType
from woodbury.linalg.conversion import as_tensor as as_tensor
from woodbury.linalg.paged_rows import KeptColumns, PagedRows, Rows
from woodbury.linalg.precision import dtype_name, wide_dtype

ELEMENTS_PER_CHECK = 1 << 20
"""Elements that are checked at once."""


NEGLIGIBLE_DAMPING = 1e-30
"""A damping that leaves the diagonal to the curvature; no curvature that is there is as small."""


RESOLVED_SHARE = 64 * torch.finfo(torch.float64).eps
"""The least share of the curvature that float64 tells apart from its own rounding, to a percent."""


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
        number = math.nan if isinstance(damping, (str, bool)) else float(damping)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise WrongType(f"damping is {damping!r}: give a positive, finite number.") from error
    if not (math.isfinite(number) and number > 0):
        kind = WrongType if isinstance(damping, (str, bool)) else WoodburyError
        raise kind(
            f"damping is {damping!r}: it is added to the diagonal of F "
            "and must be a positive, finite number."
        )
    return number


def check_damping_or_zero(damping: float) -> float:
    """The damping of an operator that may do without.

    Args:
        damping: λ, positive and finite, or 0.

    Returns:
        `damping` as a float.

    Raises:
        WoodburyError: If it is negative or not finite.
        WrongType: If it is no number.
    """
    if isinstance(damping, (int, float)) and not isinstance(damping, bool) and damping == 0:
        return 0.0
    return check_damping(damping)


def check_resolved(damping: float, curvature: float) -> None:
    """Raise if float64 cannot hold a damping beside the curvature that it is added to.

    Args:
        damping: λ.
        curvature: The largest eigenvalue of the curvature, or a bound of it.

    Raises:
        WoodburyError: If the damping is lost in rounding; the sentence gives one that is not.
    """
    least = RESOLVED_SHARE * curvature
    if damping < least:
        raise WoodburyError(
            f"damping is {damping:.3g}, which is lost in rounding beside a curvature of "
            f"{curvature:.3g}: give at least {1.1 * least:.1e}."
        )


def check_vector(v: Tensor, d: int, *, columns: bool = True) -> Tensor:
    """A vector or columns of vectors on d weights.

    Args:
        v: (d,) or (d, k).
        d: The number of weights.
        columns: Whether it may be (d, k).

    Returns:
        `v` itself.

    Raises:
        WoodburyError: If the shape is another, or an entry not finite.
        WrongType: If it is no tensor of real numbers.
    """
    return check_columns(v, d, f"A Fisher on d = {d} weights got a vector", columns=columns)


def check_columns(v: Any, length: int, subject: str, *, columns: bool = True) -> Tensor:
    """A vector or columns of vectors, of finite real numbers.

    Args:
        v: (length,) or (length, k): a tensor, an array or a list.
        length: As it should be.
        subject: What the sentence begins with; "of shape …" follows.
        columns: Whether it may be (length, k).

    Returns:
        `v` as a tensor.

    Raises:
        WoodburyError: If the shape is another, or an entry not finite.
        WrongType: If it is no tensor of real numbers.
    """
    v = as_tensor(v, "The vector")
    if v.ndim not in ((1, 2) if columns else (1,)) or v.shape[0] != length or 0 in v.shape[1:]:
        wanted = f"({length},) or ({length}, k)" if columns else f"({length},)"
        raise WoodburyError(f"{subject} of shape {tuple(v.shape)}: give {wanted}.")
    if v.is_complex():
        raise WrongType(
            "The vector is complex and a Fisher is real: give real and imaginary parts as columns."
        )
    if not (v.is_floating_point() and length):  # of ranks, one may have no weight left
        return v
    return check_finite(v, "The vector")


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
    keep = check_mask(keep, (d,))
    if not keep.any():
        raise WoodburyError("keep is False everywhere: at least one weight must be kept.")
    return keep


def check_mask(keep: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A mask of kept weights, of which there may be none.

    Args:
        keep: Bool, True = kept.
        shape: As it should be.

    Returns:
        `keep` itself.

    Raises:
        WoodburyError: If the shape is another.
        WrongType: If the dtype is not bool.
    """
    keep = as_tensor(keep, "keep")
    if keep.dtype != torch.bool or keep.shape != shape:
        kind = WoodburyError if keep.dtype == torch.bool else WrongType
        raise kind(
            f"keep is {dtype_name(keep.dtype)} of shape {tuple(keep.shape)}: "
            f"give a bool mask of shape {shape}, True = kept."
        )
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
    groups = as_tensor(groups, "groups")
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
        `rows` as a tensor, or the pages themselves.

    Raises:
        WoodburyError: If the shape is another.
        WrongType: If it is no matrix of numbers.
    """
    if not isinstance(rows, (PagedRows, KeptColumns)):
        rows = as_tensor(rows, "The matrix of rows")
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
    weights = as_tensor(weights, "The vector of row weights")
    if weights.is_complex() or weights.shape != (m,) or not _all_positive(weights):
        raise WoodburyError(
            f"The row weights must be ({m},), positive and finite: leave out rows of weight 0."
        )
    return weights


def check_held(result: Tensor, what: str, *, positive: bool = False) -> Tensor:
    """A result, if its dtype holds it.

    Args:
        result: (d,) or (d, k), or blocks.
        what: Its name, the subject of the sentence.
        positive: Whether it consists of positive numbers, of which none may have vanished.

    Returns:
        `result` itself.

    Raises:
        WoodburyError: If an entry has overflowed, or vanished.
    """
    if not result.numel():
        return result
    at_once = max(1, ELEMENTS_PER_CHECK // max(1, result[:1].numel()))
    least = torch.finfo(result.dtype).tiny if positive else -math.inf
    for part in result.split(at_once):
        smallest, largest = (float(bound) for bound in part.aminmax())  # NaN if there is one
        if not (least <= smallest and abs(smallest) < math.inf and abs(largest) < math.inf):
            raise WoodburyError(
                f"{what} is beyond what {dtype_name(result.dtype)} holds: "
                "rescale the curvature and the damping, or give float64."
            )
    return result


def _all_positive(tensor: Tensor) -> bool:
    return bool((tensor > 0).all() & tensor.isfinite().all())


def check_sizes(sizes: Iterable[int], d: int) -> list[int]:
    """The sizes of consecutive blocks.

    Args:
        sizes: Whole numbers of at least 1.
        d: What they add up to.

    Returns:
        The sizes.

    Raises:
        WoodburyError: If they do not add up.
        WrongType: If they are no whole numbers.
    """
    try:
        given = [operator.index(size) for size in sizes]
    except (TypeError, RuntimeError) as error:
        raise WrongType(
            f"sizes is {sizes!r}: give the whole numbers of weights of the blocks."
        ) from error
    if sum(given) != d or min(given, default=0) < 1:
        raise WoodburyError(
            f"Blocks of {sum(given)} weights in all cannot tile rows of {d} weights: "
            "give positive sizes that sum to d."
        )
    return given


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
