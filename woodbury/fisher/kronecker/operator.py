"""Kronecker: left ⊗ right + damping·I, by the eigendecompositions of the two factors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from woodbury.limits import Limits
from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher, by_restriction
from woodbury.fisher.checks import (
    check_damping,
    check_finite,
    check_groups,
    check_keep,
    check_vector,
)
from woodbury.fisher.kronecker.restricted import Elements, Restricted, exact


@dataclass(frozen=True, eq=False)
class Basis:
    """The eigenvectors of left ⊗ right, float64: a matrix that has them is given by its eigenvalues, (o, i).

    left, right: eigenvectors (o, o), (i, i). values: eigenvalues of left ⊗ right, (o, i).
    """

    left: Tensor
    right: Tensor
    values: Tensor

    def apply(self, v: Tensor, spectrum: Tensor) -> Tensor:
        """The matrix times (d, k): U_l (U_lᵀ V U_r ∘ spectrum) U_rᵀ for each column V, as an (o, i) matrix."""
        inner = self.left.T @ v.T.reshape(-1, *spectrum.shape) @ self.right
        return (self.left @ (inner * spectrum) @ self.right.T).flatten(1).T

    def diagonal(self, spectrum: Tensor) -> Tensor:
        return (self.left.square() @ spectrum @ self.right.square().T).flatten()

    def columns(self, index: Tensor, spectrum: Tensor) -> Tensor:
        """Columns `index` (c,) of the matrix, as rows (c, d)."""
        rows, columns = self.left[index // len(self.right)], self.right[index % len(self.right)]
        return (
            self.left @ (rows[:, :, None] * columns[:, None, :] * spectrum) @ self.right.T
        ).flatten(1)

    def blocks(self, groups: Tensor, spectrum: Tensor) -> Tensor:
        """Its blocks on groups (g, s): cheap for a group inside one row or one column of the tensor, by columns else."""
        blocks = spectrum.new_empty(*groups.shape, groups.shape[1])
        rows, columns = groups // len(self.right), groups % len(self.right)
        in_row = (rows == rows[:, :1]).all(1)
        in_column = (columns == columns[:, :1]).all(1) & ~in_row
        blocks[in_row] = _on_lines(self.left, self.right, spectrum, rows[in_row], columns[in_row])
        blocks[in_column] = _on_lines(
            self.right, self.left, spectrum.T, columns[in_column], rows[in_column]
        )
        at_once = max(1, Limits.current().temporary // (spectrum.numel() * max(1, groups.shape[1])))
        for some in (~in_row & ~in_column).nonzero()[:, 0].split(at_once):
            found = self.columns(groups[some].flatten(), spectrum).view(
                *groups[some].shape, spectrum.numel()
            )
            blocks[some] = found.gather(2, groups[some][:, None, :].expand(-1, groups.shape[1], -1))
        return blocks


@dataclass(frozen=True, eq=False)
class Kronecker(Fisher):
    """F = left ⊗ right + damping·I on a row-major (o, i) tensor: its weight (r, c) has index r·i + c  (eq. 22).

    left (o, o), right (i, i): symmetric positive semidefinite. The damping is exact, the same number as in every other
    operator, unlike K-FAC's factored one (see `pi_corrected`); 0 is allowed if both factors are positive definite.
    All algebra is in float64, at O(o³ + i³) once; what the verbs return has the dtype of `left`, float32 for halves.
    elements: where the inverse elements of a part come from once weights are gone: `exactly`, by a dense factor, or
    `upper_bound`, a bound that costs nothing. eigen: the eigenvectors where they are known already.
    """

    left: Tensor
    right: Tensor
    damping: float
    elements: Elements = field(default=exact, repr=False)
    eigen: Basis | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.damping != 0:
            check_damping(self.damping)
        if self.eigen is None:  # else the factors were checked when it was made
            _check_factor(self.left, "left")
            _check_factor(self.right, "right")
        if self.damping == 0:
            smallest, largest = (float(bound) for bound in self.basis.values.aminmax())
            if smallest <= self.d * torch.finfo(torch.float64).eps * largest:
                raise WoodburyError(
                    "damping is 0 and a Kronecker factor is singular: give a positive damping."
                )

    @cached_property
    def basis(self) -> Basis:
        """The eigenvectors of F, whatever the damping."""
        if self.eigen is not None:
            return self.eigen
        (left, left_vectors), (right, right_vectors) = (
            _eigen(self.left, "left"),
            _eigen(self.right, "right"),
        )
        return Basis(left_vectors, right_vectors, torch.outer(left, right))

    @property
    def spectrum(self) -> Tensor:
        """The eigenvalues of F, (o, i) float64."""
        return self.basis.values + self.damping

    @property
    def d(self) -> int:
        return len(self.left) * len(self.right)

    @property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self.left.dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        return self.left.device

    def __matmul__(self, v: Tensor) -> Tensor:
        """F v = vec(left V rightᵀ) + damping·v: O(d (o + i)) per column."""
        return self._times(v, self.spectrum)

    def solve(self, v: Tensor) -> Tensor:
        """F⁻¹ v  (eq. 23), at the price of a product."""
        return self._times(v, 1 / self.spectrum)

    def _times(self, v: Tensor, spectrum: Tensor) -> Tensor:
        columns = check_vector(v, self.d).double().reshape(self.d, -1)
        return self.basis.apply(columns, spectrum).reshape(v.shape).to(self.dtype)

    def diagonal(self) -> Tensor:
        return self.basis.diagonal(self.spectrum).to(self.dtype)

    def inverse_diagonal(self) -> Tensor:
        """diag(F⁻¹) = vec(U_l² (1/spectrum) (U_r²)ᵀ): sums of positive numbers, nothing cancels."""
        return self.basis.diagonal(1 / self.spectrum).to(self.dtype)

    def inverse_blocks(self, groups: Tensor) -> Tensor:
        """[F⁻¹]_QQ: O(d + s² i) for a group inside one row (s² o in one column), O(s d (o + i)) for any other."""
        return self.basis.blocks(
            check_groups(groups, self.d).to(self.device), 1 / self.spectrum
        ).to(self.dtype)

    def restrict(self, keep: Tensor) -> Kronecker | Restricted:
        """F_KK: a `Restricted`, since a part of a Kronecker product has no closed form (all of it is the operator)."""
        return self if check_keep(keep, self.d).all() else Restricted(self, keep.to(self.device))

    def with_damping(self, damping: float) -> Kronecker:
        return replace(self, damping=damping, eigen=self.basis)

    def logdet(self) -> float:
        return float(self.spectrum.log().sum())

    def compensate(self, keep: Tensor, removed: Tensor, gradient: Tensor | None = None) -> Tensor:
        return by_restriction(self, keep, removed, gradient)


def pi_corrected(left: Tensor, right: Tensor, damping: float) -> Kronecker:
    """K-FAC's factored damping (Martens & Grosse 2015, §6.3): (left + √λ/π·I) ⊗ (right + π√λ·I), λ = damping  (eq. 24).

    π² = (tr(right)/i) / (tr(left)/o). This λ is a *different number*: beside λ·I it adds π√λ·left ⊗ I + √λ/π·I ⊗ right.
    The `damping` of the operator that comes back is 0, and its `with_damping` adds exact damping on top.
    """
    root = math.sqrt(check_damping(damping))
    _check_factor(left, "left")
    _check_factor(right, "right")
    means = float(left.diagonal().mean()), float(right.diagonal().mean())
    pi = math.sqrt(means[1] / means[0]) if min(means) > 0 else 1.0
    damped = left.clone(), right.clone()
    damped[0].diagonal().add_(root / pi)
    damped[1].diagonal().add_(root * pi)
    return Kronecker(*damped, 0.0)


def _check_factor(factor: Tensor, which: str) -> None:
    if factor.ndim != 2 or factor.shape[0] != factor.shape[1] or not len(factor):
        raise WoodburyError(
            f"The factor {which!r} has shape {tuple(factor.shape)}: give a square matrix."
        )
    check_finite(factor, f"The factor {which!r}")
    # A sum of a million outer products in float32 is symmetric to far better than this.
    if (factor - factor.T).abs().max() > torch.finfo(factor.dtype).eps ** 0.5 * factor.abs().max():
        raise WoodburyError(f"The factor {which!r} is not symmetric: give (1/m) Σ x xᵀ.")


def _eigen(factor: Tensor, which: str) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh((factor.double() + factor.double().T) / 2)
    if values[0] < -(torch.finfo(factor.dtype).eps ** 0.5) * values.abs().max():
        raise WoodburyError(
            f"The factor {which!r} has the eigenvalue {float(values[0]):.3g}: give (1/m) Σ x xᵀ."
        )
    return values.clamp(min=0), vectors


def _on_lines(
    along: Tensor, across: Tensor, spectrum: Tensor, line: Tensor, members: Tensor
) -> Tensor:
    """Blocks of weights that share the row `line` (g, s), each in the columns `members` (g, s) -> (g, s, s)."""
    at_once = max(1, Limits.current().temporary // (max(1, members.shape[1]) * max(spectrum.shape)))
    blocks = spectrum.new_empty(*members.shape, members.shape[1])
    for start in range(0, members.numel() and len(members), at_once):
        part = slice(start, start + at_once)
        vectors, middle = across[members[part]], along[line[part, 0]].square() @ spectrum
        blocks[part] = vectors * middle[:, None] @ vectors.mT
    return blocks
