"""RidgeSearch: the damping at which the linearised model predicts best, by inner products alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from woodbury.applications.inner_products import InnerProducts
from woodbury.argument_types import check_fields
from woodbury.errors import WoodburyError
from woodbury.fisher.checks import check_damping
from woodbury.model.batches import Batch

SHARES = tuple(10 ** (-half / 2) for half in range(-2, 13))
"""The candidates, in units of the largest eigenvalue of the curvature: from 10 to 1e-6."""


@dataclass(frozen=True)
class RidgeSearch:
    """The damping at which the linearised model predicts the loss of unseen samples best (eq. 83).

    Attributes:
        held_out: Re-iterable batches of labelled data that the network was not trained on, and that
            no result is reported on. None chooses by generalized cross-validation on the training
            data (Golub, Heath & Wahba 1979), which needs rows by labels.
        dampings: Candidates, absolute; None for half decades from a millionth of the largest
            eigenvalue to ten times it.

    Raises:
        WoodburyError: If a candidate is not positive, there is none, or `held_out` can be read only
            once.

    Example:
        >>> RidgeSearch(dampings=(1e-3, 1e-2)).dampings
        (0.001, 0.01)
    """

    held_out: Iterable[Batch] | None = field(default=None, compare=False, repr=False)
    dampings: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.held_out, Iterator):
            raise WoodburyError(
                "held_out can be read only once: give a list or a DataLoader, not a generator."
            )
        if self.dampings is not None and not self.dampings:
            raise WoodburyError("dampings is empty: give at least one candidate.")
        for damping in self.dampings or ():
            check_damping(damping)

    def candidates(self, products: InnerProducts) -> tuple[float, ...]:
        """The dampings to try.

        Args:
            products: Of the rows.

        Returns:
            At least one.
        """
        if self.dampings is not None:
            return self.dampings
        largest = float(products.eigen.values[-1]) / products.m
        return tuple(share * largest for share in SHARES)


class Parts(NamedTuple):
    """Where the rows of a search lie among all.

    Attributes:
        train: Gradients of the training samples.
        held_out: Gradients of the held-out samples; empty for none.
        curvature: Curvature rows of the held-out samples.
        weights: The one row of the weights.
    """

    train: slice
    held_out: slice
    curvature: slice
    weights: slice


def best_damping(search: RidgeSearch, products: InnerProducts, parts: Parts) -> float:
    """The candidate of least predicted loss.

    Args:
        search: The candidates.
        products: Of all rows.
        parts: Where which rows lie.

    Returns:
        The damping.

    Raises:
        WoodburyError: If the predictions of all candidates are not finite.
    """
    has_held_out = parts.held_out.stop > parts.held_out.start
    measure = held_out_loss if has_held_out else cross_validated_loss
    losses = {damping: measure(products, parts, damping) for damping in search.candidates(products)}
    finite = {damping: loss for damping, loss in losses.items() if math.isfinite(loss)}
    if not finite:
        raise WoodburyError("No damping predicts a finite loss: give damping a number.")
    return min(finite, key=finite.__getitem__)


def held_out_loss(products: InnerProducts, parts: Parts, damping: float) -> float:
    """The quadratic model's loss of held-out samples at the ridge solution, less a constant.

    Args:
        products: Of all rows.
        parts: Where which rows lie.
        damping: λ.

    Returns:
        gᵥᵀδ + ½ δᵀCᵥδ, δ the way from the weights to the ridge solution  (eq. 83).
    """
    slope = _along_step(products, parts, parts.held_out, damping)
    bend = _along_step(products, parts, parts.curvature, damping)
    return float(slope.mean() + bend.square().mean() / 2)


def cross_validated_loss(products: InnerProducts, parts: Parts, damping: float) -> float:
    """Generalized cross-validation of the ridge regression on rows by labels.

    Args:
        products: Of all rows, J being the training gradients.
        parts: Where which rows lie.
        damping: λ.

    Returns:
        The mean squared residual over the squared share of degrees of freedom that is left.
    """
    values, vectors = products.eigen
    target = products.matrix[parts.train, parts.weights][:, 0] - 1
    left = products.m * damping / (values + products.m * damping)
    residual = left * (vectors.mT @ target)
    return float(residual.square().mean() / left.mean().square())


def _along_step(products: InnerProducts, parts: Parts, rows: slice, damping: float) -> Tensor:
    """X δ, δ = −F⁻¹(g + λ w): (x,)."""
    gradient = products.solved(rows, parts.train, damping).mean(1)
    return -gradient - damping * products.solved(rows, parts.weights, damping)[:, 0]
