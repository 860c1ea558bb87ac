"""The second-order model of the loss around the present weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from woodbury.argument_types import check_fields
from woodbury.errors import WoodburyError, WrongType
from woodbury.fisher.base import Fisher
from woodbury.fisher.checks import check_keep, check_mask
from woodbury.fisher.own_columns import OwnColumns
from woodbury.limits import Limits


@dataclass(frozen=True, eq=False)
class Quadratic:
    """The local model of the loss: increase(δ) = gᵀδ + ½ δᵀFδ  (eq. 14).

    Attributes:
        weights: w (d,), where the model is expanded.
        fisher: F (d, d); None where no curvature is needed, as for magnitude pruning.
        gradient: g (d,) of the mean loss; None takes the network as converged, g = 0.

    Raises:
        WoodburyError: If a weight is not finite, or the Fisher is on another number of weights.

    Example:
        >>> import torch
        >>> from woodbury.fisher import Diagonal
        >>> quadratic = Quadratic(torch.tensor([1.0, 2.0]), Diagonal(torch.tensor([3.0, 4.0]), 1.0))
        >>> quadratic.increase(torch.tensor([-1.0, 0.0]))
        2.0
    """

    weights: Tensor
    fisher: Fisher | None = None
    gradient: Tensor | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not isinstance(self.weights, Tensor):
            raise WrongType(f"weights is a {type(self.weights).__name__}: give a tensor (d,).")
        if not bool(torch.isfinite(self.weights).all()):
            raise WoodburyError("A weight is NaN or infinite: load a sound checkpoint.")
        if self.fisher is not None and self.fisher.d != len(self.weights):
            raise WoodburyError(
                f"The Fisher is on {self.fisher.d} weights, the model on {len(self.weights)}: "
                "estimate it on the space that is pruned."
            )

    def curvature(self, why: str) -> Fisher:
        """The Fisher, where one is needed.

        Args:
            why: Who needs it, the subject of the error's sentence.

        Returns:
            The Fisher.

        Raises:
            WoodburyError: If there is none.
        """
        if self.fisher is None:
            raise WoodburyError(f"{why} needs a Fisher: give the Pruner a recipe such as mfac().")
        return self.fisher

    def slope(self, why: str) -> Tensor:
        """The gradient, where one is needed.

        Args:
            why: Who needs it, the subject of the error's sentence.

        Returns:
            g (d,).

        Raises:
            WoodburyError: If there is none.
        """
        if self.gradient is None:
            raise WoodburyError(f"{why} needs the gradient: set first_order=True.")
        return self.gradient

    @cached_property
    def from_minimum(self) -> Tensor:
        """The free minimum of the quadratic, (d,): w − F⁻¹g  (eq. 17).

        Entry q is also how far weight q lies from the minimum when it is set to zero. Without a
        gradient it is w.

        Raises:
            WoodburyError: If there is no Fisher.
        """
        fisher = self.curvature("The free minimum")
        weights = self.weights.to(fisher.dtype)
        if self.gradient is None:
            return weights
        return weights - fisher.solve(self.gradient.to(fisher.dtype))

    def checked(self, keep: Tensor) -> Tensor:
        """A mask of kept weights that fits.

        Args:
            keep: (d,) bool, True = kept; a rank's own columns may keep none.

        Returns:
            The mask.

        Raises:
            WoodburyError: If it does not fit, or nothing is kept.
        """
        if isinstance(self.fisher, OwnColumns):
            return check_mask(keep, self.weights.shape)
        return check_keep(keep, len(self.weights))

    def restrict(self, keep: Tensor) -> Quadratic:
        """The quadratic of the kept weights at their optimum without the others  (eq. 9, 12).

        Args:
            keep: (d,) bool, True = kept.

        Returns:
            A quadratic on the k kept weights, whose gradient is zero if this one has a gradient.
            Without a Fisher the weights stay where they are.

        Raises:
            WoodburyError: If the mask does not fit, or nothing is kept.
        """
        keep = check_keep(keep, len(self.weights))
        weights = self.weights[keep]
        if self.fisher is None:
            return Quadratic(weights)
        removed = self.weights.to(self.fisher.dtype).masked_fill(keep, 0)
        gradient = None if self.gradient is None else self.gradient.to(self.fisher.dtype)
        step = self.fisher.compensate(keep, removed, gradient)
        return self.at_optimum(keep, weights + step.to(weights.dtype))

    def at_optimum(self, keep: Tensor, weights: Tensor) -> Quadratic:
        """The quadratic of the kept weights around their optimum without the others.

        Args:
            keep: (d,) bool, True = kept.
            weights: (k,), the optimum.

        Returns:
            A quadratic on the k kept weights. Its gradient is zero if this one has a gradient.
        """
        fisher = None if self.fisher is None else self.fisher.restrict(keep)
        gradient = None if self.gradient is None else torch.zeros_like(weights)
        return Quadratic(weights, fisher, gradient)

    def slope_at(self, delta: Tensor) -> Tensor:
        """The gradient of the quadratic after a step: Fδ + g.

        Args:
            delta: δ (d,), the step from `weights`.

        Returns:
            (d,), in the dtype of the Fisher.

        Raises:
            WoodburyError: If there is no Fisher.
        """
        fisher = self.curvature("A slope")
        product = fisher @ delta.to(fisher.dtype)
        return product if self.gradient is None else product + self.gradient.to(fisher.dtype)

    def increase(self, delta: Tensor, slope: Tensor | None = None) -> float:
        """The predicted increase of the loss by a step: ½ δᵀ(Fδ + 2g)  (eq. 14).

        Args:
            delta: δ (d,), the step from `weights`.
            slope: (d,), what `slope_at(delta)` gave; None computes it.

        Returns:
            The increase, in the unit of the loss.

        Raises:
            WoodburyError: If there is no Fisher.
        """
        if slope is None:
            fisher = self.curvature("The increase")
            linear = 0.0 if self.gradient is None else double_dot(delta, self.gradient)
            return linear + 0.5 * fisher.quadratic_form(delta.to(fisher.dtype))
        # The slope Fδ + g holds one of the two gradients in Fδ + 2g.
        total = double_dot(delta, slope)
        if self.gradient is not None:
            total += double_dot(delta, self.gradient)
        return 0.5 * total


def double_dot(a: Tensor, b: Tensor) -> float:
    """The inner product in float64, without a float64 copy of either.

    Args:
        a: (d,).
        b: (d,).
    """
    at_once = Limits.current().temporary
    pieces = zip(a.split(at_once), b.split(at_once), strict=True)
    return sum(float(x.double().dot(y.double())) for x, y in pieces)
