"""Quadratic: the loss as the Fisher sees it from where the weights are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher


@dataclass(frozen=True, eq=False)
class Quadratic:
    """The local model of the loss: increase(δ) = gᵀδ + ½ δᵀFδ  (eq. 14).

    weights (d,); fisher on d weights, None where none is needed; gradient (d,), None to take the net as converged.
    """

    weights: Tensor
    fisher: Fisher | None = None
    gradient: Tensor | None = None

    def __post_init__(self) -> None:
        if not bool(torch.isfinite(self.weights).all()):
            raise WoodburyError("A weight is NaN or infinite: load a sound checkpoint.")
        if self.fisher is not None and self.fisher.d != len(self.weights):
            raise WoodburyError(
                f"The Fisher is on {self.fisher.d} weights, the model on {len(self.weights)}."
            )

    def curvature(self, why: str) -> Fisher:
        """The Fisher, or an error that says who needs it."""
        if self.fisher is None:
            raise WoodburyError(f"{why} needs a Fisher: give the Pruner a recipe such as mfac().")
        return self.fisher

    def slope(self, why: str) -> Tensor:
        """The gradient, or an error that says who needs it."""
        if self.gradient is None:
            raise WoodburyError(f"{why} needs the gradient: set first_order=True.")
        return self.gradient

    @cached_property
    def from_minimum(self) -> Tensor:
        """(d,): how far each weight at zero lies from the free minimum, w − F⁻¹g, which is w without a gradient  (eq. 17)."""
        fisher = self.curvature("The free minimum")
        weights = self.weights.to(fisher.dtype)
        return (
            weights
            if self.gradient is None
            else weights - fisher.solve(self.gradient.to(fisher.dtype))
        )

    def restrict(self, keep: Tensor) -> Quadratic:
        """The quadratic of the weights that stay, keep (d,) bool, moved to where it is least without the others  (eq. 9, 12)."""
        weights = self.weights[keep]
        if self.fisher is None:
            return Quadratic(weights)
        removed = self.weights.to(self.fisher.dtype).masked_fill(keep, 0)
        gradient = None if self.gradient is None else self.gradient.to(self.fisher.dtype)
        return self.at_optimum(
            keep, weights + self.fisher.compensate(keep, removed, gradient).to(weights.dtype)
        )

    def at_optimum(self, keep: Tensor, weights: Tensor) -> Quadratic:
        """The quadratic of the weights that stay, at `weights` (k,), its optimum without the others; keep (d,) bool."""
        fisher = None if self.fisher is None else self.fisher.restrict(keep)
        return Quadratic(
            weights, fisher, None if self.gradient is None else torch.zeros_like(weights)
        )

    def slope_at(self, delta: Tensor) -> Tensor:
        """The quadratic's gradient when the weights have moved by delta (d,): F δ + g, (d,)."""
        fisher = self.curvature("A slope")
        found = fisher @ delta.to(fisher.dtype)
        return found if self.gradient is None else found + self.gradient.to(fisher.dtype)

    def increase(self, delta: Tensor, slope: Tensor | None = None) -> float:
        """The predicted increase of the loss when the weights move by delta (d,); slope (d,): that of `slope_at`, if known.

        ½ δᵀ(Fδ + 2g)  (eq. 14).
        """
        twice = (self.slope_at(delta) if slope is None else slope).double()
        twice = twice if self.gradient is None else twice + self.gradient.double()
        return 0.5 * float((delta.double() * twice).sum())
