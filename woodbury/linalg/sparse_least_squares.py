"""Least squares with few non-zeros: which weights to keep by ADMM, then the optimum on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from woodbury.argument_types import check_fields
from woodbury.errors import WoodburyError, check_whole_number
from woodbury.linalg.masked_solves import masked_conjugate_gradients

FIRST_PENALTY = 0.03
"""ρ of the first steps, beside a diagonal of 1; larger ones fit worse (docs/log)."""

PATIENCE = 3
"""Steps between two looks at how much of the support has changed."""

LEAST_STEPS = 60
"""Steps before the support may be called settled."""

GROWTH = ((0.1, 1.1), (0.005, 1.07), (0.0, 1.05))
"""Share of the kept weights that has changed -> what ρ is multiplied by; the first one passed."""

SMALLEST_MOMENT = 1e-12
"""Of an input, as a share of the largest: inputs that are always 0 are not divided by it."""

RESIDUAL, MOST_PRODUCTS = 1e-6, 200
"""Where the conjugate gradients on the kept weights end."""


class SparseWeights(NamedTuple):
    """The weights of some rows, most of them removed.

    Attributes:
        weights: (g, r, i) float64, exactly 0 where removed.
        keep: (g, r, i) bool, True = kept.
    """

    weights: Tensor
    keep: Tensor


@dataclass(frozen=True)
class SparseLeastSquares:
    """The rows of a layer's weight that fit its goal best with k weights in all  (eq. 93).

    Which ones are kept is chosen by ADMM (ALPS: Meng, Behdin, Wang & Mazumder 2024): the weights
    have a dense and a sparse copy, and a penalty ρ that grows until both have the same support.
    Inputs are scaled to one second moment each. Conjugate gradients then solve on the kept weights.

    Attributes:
        ridge: λ, added to the scaled second moments, whose diagonal is 1; it holds the weights near
            where they start.
        steps: Of ADMM at most; 0 keeps the largest weights of the start.

    Raises:
        WoodburyError: If the ridge is not positive.

    Example:
        >>> moments, goal = torch.eye(3)[None], torch.tensor([[[3.0, -2.0, 1.0]]])
        >>> SparseLeastSquares(ridge=1e-6)(moments, goal, goal, 2).weights.round()
        tensor([[[ 3., -2.,  0.]]], dtype=torch.float64)
    """

    ridge: float = 1e-2
    steps: int = 300

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.ridge < math.inf:
            raise WoodburyError(f"ridge is {self.ridge}: give a positive, finite share.")
        check_whole_number(self.steps, "steps", "the steps of ADMM", least=0)

    def __call__(
        self, moments: Tensor, cross: Tensor, start: Tensor, k: int, allowed: Tensor | None = None
    ) -> SparseWeights:
        """The weights that fit best, and which are kept.

        Args:
            moments: S (g, i, i), the second moments of the inputs of each of g groups of rows.
            cross: C (g, r, i), the moments of their goals with these inputs.
            start: (g, r, i), the weights that the ridge holds them near.
            k: How many are kept at most, of all groups together.
            allowed: (g, r, i) bool, those that may be kept; None for all.

        Returns:
            The weights; as many as k are kept, or all that may be.
        """
        moments, cross, start = moments.double(), cross.double(), start.double()
        diagonal = moments.diagonal(dim1=1, dim2=2)
        least = SMALLEST_MOMENT * float(diagonal.max())
        scale = diagonal.clamp_min(least or 1.0).rsqrt()
        curvature = scale[:, :, None] * moments * scale[:, None, :]
        curvature.diagonal(dim1=1, dim2=2).add_(self.ridge)
        scaled = start / scale[:, None, :]
        linear = cross * scale[:, None, :] + self.ridge * scaled
        if allowed is None:
            allowed = torch.ones_like(start, dtype=torch.bool)
        if k >= int(allowed.sum()):
            return SparseWeights(_optimum(curvature, linear, allowed) * scale[:, None, :], allowed)
        by_size = _largest(scaled, k, allowed)
        supports = [by_size]
        if self.steps:  # which float32 is enough to choose
            narrow = (curvature.float(), linear.float(), scaled.float())
            supports.insert(0, self._support(*narrow, k, allowed))
        found = [(_optimum(curvature, linear, keep), keep) for keep in supports]
        best, keep = min(found, key=lambda pair: _loss(curvature, linear, pair[0]))
        return SparseWeights(best * scale[:, None, :], keep)

    def _support(
        self, curvature: Tensor, linear: Tensor, start: Tensor, k: int, allowed: Tensor
    ) -> Tensor:
        """Where the k weights lie, bool like `start`."""
        values, vectors = torch.linalg.eigh(curvature)
        values = values[:, None, :]
        rho, dual = FIRST_PENALTY, torch.zeros_like(start)
        keep = _largest(start, k, allowed)
        sparse = torch.where(keep, start, 0)
        looked_at = keep
        for step in range(1, self.steps + 1):
            wanted = linear + rho * sparse - dual
            dense = ((wanted @ vectors) / (values + rho)) @ vectors.mT
            free = dense + dual / rho
            keep = _largest(free, k, allowed)
            sparse = torch.where(keep, free, 0)
            dual += rho * (dense - sparse)
            if step % PATIENCE:
                continue
            changed = int((keep & ~looked_at).sum()) / max(k, 1)
            if not changed and step > LEAST_STEPS:
                break
            rho *= next(factor for share, factor in GROWTH if changed > share or not share)
            looked_at = keep
        return keep


def _optimum(curvature: Tensor, linear: Tensor, keep: Tensor) -> Tensor:
    """The best weights on a support."""
    inverse_diagonal = 1 / curvature.diagonal(dim1=1, dim2=2)[:, None, :]
    return masked_conjugate_gradients(
        curvature,
        keep.to(curvature.dtype),
        linear,
        lambda v: v * inverse_diagonal,
        RESIDUAL,
        MOST_PRODUCTS,
    ).x


def _loss(curvature: Tensor, linear: Tensor, weights: Tensor) -> float:
    """What (93) minimises."""
    return float((0.5 * (weights @ curvature) * weights - linear * weights).sum())


def _largest(values: Tensor, k: int, allowed: Tensor) -> Tensor:
    """Bool, True for the k of the largest magnitude among those allowed."""
    sizes = torch.where(allowed, values.abs(), -1).flatten()
    found = torch.zeros_like(sizes, dtype=torch.bool)
    found[sizes.topk(k).indices] = True
    return found.view(values.shape)
