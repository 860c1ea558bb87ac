"""Kronecker: left ⊗ right + damping·I, by the eigendecompositions of the two factors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from woodbury.argument_types import check_fields
from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher, compensate_by_restriction
from woodbury.fisher.checks import (
    as_tensor,
    check_damping,
    check_damping_or_zero,
    check_finite,
    check_groups,
    check_held,
    check_keep,
    check_vector,
)
from woodbury.fisher.kronecker.eigenbasis import Eigenbasis
from woodbury.fisher.kronecker.elements import Elements, exact
from woodbury.fisher.kronecker.restricted import Restricted
from woodbury.fisher.kronecker.submatrix import Submatrix
from woodbury.linalg.precision import wide_dtype


@dataclass(frozen=True, eq=False, repr=False)
class Kronecker(Fisher):
    """F = left ⊗ right + damping·I on a row-major (o, i) tensor  (eq. 22), the structure of K-FAC.

    Weight (r, c) of the tensor has index r·i + c. The damping is exact, the same number as in
    every other operator, unlike K-FAC's factored one (see `pi_corrected`). All algebra is in
    float64, at O(o³ + i³) once.

    Attributes:
        left: (o, o), symmetric positive semidefinite, from the output gradients in K-FAC.
        right: (i, i), symmetric positive semidefinite, from the inputs.
        damping: λ > 0; 0 is allowed if both factors are positive definite.
        elements: Where inverse elements come from once weights are removed: `exact`, by a dense
            factor, or `upper_bound`, a bound that costs nothing.
        eigen: The eigenvectors where they are known already; None to compute them when needed.

    Raises:
        WoodburyError: If a factor is not square, finite and symmetric, or has a negative
            eigenvalue, or the damping does not fit.

    Example:
        >>> import torch
        >>> import woodbury
        >>> left, right = torch.eye(1), torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> fisher = woodbury.fisher.Kronecker(left, right, damping=1.0)
        >>> fisher @ torch.tensor([1.0, 0.0])
        tensor([3., 1.])
        >>> fisher.inverse_diagonal()
        tensor([0.3750, 0.3750])
    """

    left: Tensor
    right: Tensor
    damping: float
    elements: Elements = field(default=exact, repr=False)
    eigen: Eigenbasis | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "damping", check_damping_or_zero(self.damping))
        check_fields(self)
        if self.eigen is None:  # else the factors were checked when it was made
            object.__setattr__(self, "left", _checked_factor(self.left, "left"))
            object.__setattr__(self, "right", _checked_factor(self.right, "right"))
        if self.damping == 0:
            self.basis.check_damping(0)

    @cached_property
    def basis(self) -> Eigenbasis:
        """The eigenvectors of F, whatever the damping."""
        if self.eigen is not None:
            return self.eigen
        left = _eigen(self.left, "left")
        right = _eigen(self.right, "right")
        return Eigenbasis(left.vectors, right.vectors, torch.outer(left.values, right.values))

    @property
    def spectrum(self) -> Tensor:
        """The eigenvalues of F, (o, i) float64."""
        return self.basis.values + self.damping

    @property
    def _inverse_spectrum(self) -> Tensor:
        """The eigenvalues of F⁻¹, (o, i) float64; an error where rounding decides them."""
        return self.basis.inverse_spectrum(self.damping)

    @property
    def d(self) -> int:
        """The number of weights, o·i."""
        return len(self.left) * len(self.right)

    @property
    def dtype(self) -> torch.dtype:
        """That of `left`, float32 for halves."""
        return wide_dtype(self.left.dtype)

    @property
    def device(self) -> torch.device:
        """That of `left`."""
        return self.left.device

    def __matmul__(self, v: Tensor) -> Tensor:
        """F v = vec(left V rightᵀ) + damping·v, O(d (o + i)) for each column."""
        return self._times(v, self.spectrum)

    def solve(self, v: Tensor) -> Tensor:
        """F⁻¹ v  (eq. 23), at the price of a product."""
        return self._times(v, self._inverse_spectrum)

    def _times(self, v: Tensor, spectrum: Tensor) -> Tensor:
        """The matrix with these eigenvalues times v."""
        v = check_vector(v, self.d)
        columns = v.double().reshape(self.d, -1)
        product = self.basis.apply(columns, spectrum).reshape(v.shape)
        return check_held(product.to(self.dtype), "The product")

    def diagonal(self) -> Tensor:
        """diag(F), damping included."""
        return self.basis.diagonal(self.spectrum).to(self.dtype)

    def inverse_diagonal(self) -> Tensor:
        """diag(F⁻¹): sums of positive numbers, so that nothing cancels."""
        diagonal = self.basis.diagonal(self._inverse_spectrum).to(self.dtype)
        return check_held(diagonal, "The inverse diagonal", positive=True)

    def inverse_blocks(self, groups: Tensor) -> Tensor:
        """[F⁻¹]_QQ: cheap for groups inside one row or column of the tensor."""
        index = check_groups(groups, self.d).to(self.device)
        return self.basis.blocks(index, self._inverse_spectrum).to(self.dtype)

    def restrict(self, keep: Tensor) -> Kronecker | Restricted:
        """F_KK: a `Restricted`, as a part of a Kronecker product is no Kronecker product.

        Args:
            keep: (d,) bool, True = kept.

        Returns:
            An operator on keep.sum() weights; this one if all are kept.

        Raises:
            WoodburyError: If nothing is kept, or the mask does not fit.
        """
        keep = check_keep(keep, self.d)
        if keep.all():
            return self
        part = Submatrix(self.basis, self.damping, keep.to(self.device))
        return Restricted(part, self.dtype, self.elements)

    def with_damping(self, damping: float) -> Kronecker:
        """The same factors and eigenvectors under another damping."""
        return replace(self, damping=damping, eigen=self.basis)

    def logdet(self) -> float:
        """The sum of the logarithms of the eigenvalues."""
        return float(self.spectrum.log().sum())

    def compensate(self, keep: Tensor, removed: Tensor, gradient: Tensor | None = None) -> Tensor:
        """The OBS update of the kept weights."""
        return compensate_by_restriction(self, keep, removed, gradient)


def pi_corrected(left: Tensor, right: Tensor, damping: float) -> Kronecker:
    """K-FAC's factored damping: (left + √λ/π·I) ⊗ (right + π√λ·I), λ = damping  (eq. 24).

    π² = (tr(right)/i) / (tr(left)/o) (Martens & Grosse 2015, §6.3). This λ is a *different number*
    from that of the other operators: beside λ·I it adds π√λ·left ⊗ I + √λ/π·I ⊗ right.

    Args:
        left: (o, o), symmetric positive semidefinite.
        right: (i, i), symmetric positive semidefinite.
        damping: λ > 0 of the factored damping.

    Returns:
        An operator whose own `damping` is 0; its `with_damping` adds exact damping on top.

    Raises:
        WoodburyError: If a factor or the damping does not fit.

    Example:
        >>> import torch
        >>> import woodbury
        >>> fisher = woodbury.fisher.pi_corrected(torch.eye(1), torch.eye(2), damping=1.0)
        >>> fisher.diagonal(), fisher.damping
        (tensor([4., 4.]), 0.0)
    """
    root = math.sqrt(check_damping(damping))
    left = _checked_factor(left, "left")
    right = _checked_factor(right, "right")
    mean_left = float(left.diagonal().mean())
    mean_right = float(right.diagonal().mean())
    # A layer that saw nothing has no ratio of traces: both factors get √λ.
    pi = math.sqrt(mean_right / mean_left) if min(mean_left, mean_right) > 0 else 1.0
    damped_left = left.clone()
    damped_left.diagonal().add_(root / pi)
    damped_right = right.clone()
    damped_right.diagonal().add_(root * pi)
    return Kronecker(damped_left, damped_right, 0.0)


class _Eigen(NamedTuple):
    values: Tensor
    vectors: Tensor


def _eigen(factor: Tensor, name: str) -> _Eigen:
    """Eigenvalues, not below 0, and eigenvectors of a factor in float64."""
    exact_factor = factor.double()
    values, vectors = torch.linalg.eigh((exact_factor + exact_factor.T) / 2)
    if values[0] < -(torch.finfo(factor.dtype).eps ** 0.5) * values.abs().max():
        raise WoodburyError(
            f"The factor {name!r} has the eigenvalue {float(values[0]):.3g}: give (1/m) Σ x xᵀ."
        )
    return _Eigen(values.clamp(min=0), vectors)


def _checked_factor(factor: Tensor, name: str) -> Tensor:
    factor = as_tensor(factor, f"The factor {name!r}")
    if factor.ndim != 2 or factor.shape[0] != factor.shape[1] or not len(factor):
        raise WoodburyError(
            f"The factor {name!r} has shape {tuple(factor.shape)}: give a square matrix."
        )
    check_finite(factor, f"The factor {name!r}")
    # A sum of a million outer products in float32 is symmetric to far better than this.
    allowed = torch.finfo(factor.dtype).eps ** 0.5
    if (factor - factor.T).abs().max() > allowed * factor.abs().max():
        raise WoodburyError(f"The factor {name!r} is not symmetric: give (1/m) Σ x xᵀ.")
    return factor
