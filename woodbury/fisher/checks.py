"""Fisher: the one abstract operator, its verbs, their shapes and their errors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from woodbury.errors import WoodburyError

PIECE = 1 << 20
"""Entries that are checked at once."""


def check_damping(damping: float) -> float:
    """`damping`, or an error unless it is positive and finite."""
    if not (math.isfinite(damping) and damping > 0):
        raise WoodburyError(
            f"damping is {damping}: it is added to the diagonal of F and must be positive and finite."
        )
    return float(damping)


def check_vector(v: Tensor, d: int) -> Tensor:
    """`v`, or an error unless its shape is (d,) or (d, k)."""
    if v.ndim not in (1, 2) or v.shape[0] != d:
        raise WoodburyError(
            f"A vector of shape {tuple(v.shape)} met a Fisher on {d} weights: give ({d},) or ({d}, k)."
        )
    return v


def check_keep(keep: Tensor, d: int) -> Tensor:
    """`keep`, or an error unless it is a bool mask of shape (d,) that keeps something."""
    if keep.dtype != torch.bool or keep.shape != (d,):
        raise WoodburyError(
            f"keep is {str(keep.dtype)[6:]} of shape {tuple(keep.shape)}: give a bool mask of shape ({d},), True = stays."
        )
    if not keep.any():
        raise WoodburyError("keep is False everywhere: at least one weight must stay.")
    return keep


def check_groups(groups: Tensor, d: int) -> Tensor:
    """`groups`, or an error unless it is int64 of shape (g, s) with indices in [0, d)."""
    if groups.dtype != torch.int64 or groups.ndim != 2:
        raise WoodburyError(
            f"groups is {str(groups.dtype)[6:]} of shape {tuple(groups.shape)}: give int64 indices of shape (g, s)."
        )
    if groups.numel() and not (int(groups.min()) >= 0 and int(groups.max()) < d):
        raise WoodburyError(
            f"groups names weight {int(groups.max())} or below 0: indices must lie in [0, {d})."
        )
    return groups


def check_finite(tensor: Tensor, what: str) -> Tensor:
    """`tensor`, or an error that names the first row (or entry) that is NaN or infinite."""
    if not tensor.is_floating_point():
        raise WoodburyError(
            f"{what} has dtype {str(tensor.dtype)[6:]}: give real floating-point numbers."
        )
    # A sum is finite unless an entry is not, or it overflows. By pieces: a sum in float64 first copies what it sums.
    at_once = max(1, PIECE // max(1, tensor[:1].numel()))
    for start in range(0, len(tensor), at_once):
        piece = tensor[start : start + at_once]
        if math.isfinite(float(piece.sum(dtype=torch.float64))):
            continue
        bad = (~torch.isfinite(piece)).nonzero()
        if len(bad):
            first, *rest = bad[0].tolist()
            raise WoodburyError(
                f"{what} is not finite at index {(start + first, *rest)}: look for NaN or overflow there."
            )
    return tensor
