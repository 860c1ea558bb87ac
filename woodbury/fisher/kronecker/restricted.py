"""Restricted: the part of a Kronecker operator on the weights that stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher, by_restriction
from woodbury.fisher.checks import check_groups, check_keep, check_vector
from woodbury.limits import Limits
from woodbury.linalg.cholesky import damped_cholesky, inverse_diagonal
from woodbury.linalg.iterative_solvers import conjugate_gradients

if TYPE_CHECKING:
    from woodbury.fisher.kronecker.operator import Kronecker








TOLERANCE = 1e-12


Elements = Callable[["Restricted", "Tensor | None"], Tensor]
"""(part, groups (g, s), or None for the diagonal) -> float64 inverse elements, (g, s, s) or (|K|,)."""


@dataclass(frozen=True, eq=False)
class Restricted(Fisher):
    """F_KK of F = left ⊗ right + damping·I: keep (d,) bool over the weights of `whole`, K stay and R went  (eq. 25).

    A product costs one of `whole`. `solve` factors a dense matrix of n = min(|K|, |R|) rows while n ≤ 2,048; above, it
    runs conjugate gradients preconditioned by [F⁻¹]_KK, which leaves at most n eigenvalues that are not 1. logdet needs
    the dense factor, O(n³) once; inverse elements come from the `elements` of `whole`.
    """

    whole: Kronecker
    keep: Tensor

    def __post_init__(self) -> None:
        check_keep(self.keep, self.whole.d)

    @property
    def damping(self) -> float:  # type: ignore[override]
        return self.whole.damping

    @property
    def d(self) -> int:
        return len(self.kept)

    @property
    def dtype(self) -> torch.dtype:
        return self.whole.dtype

    @property
    def device(self) -> torch.device:
        return self.whole.device

    @cached_property
    def kept(self) -> Tensor:
        """(|K|,): the indices of the weights that stay, in `whole`."""
        return self.keep.nonzero()[:, 0]

    @cached_property
    def gone(self) -> Tensor:
        """(|R|,): the indices of those that went."""
        return (~self.keep).nonzero()[:, 0]

    @property
    def few_stay(self) -> bool:
        """Whether the dense factor is that of what stays."""
        return len(self.kept) <= len(self.gone)

    def __matmul__(self, v: Tensor) -> Tensor:
        return self._restore(self._product(self._double(v), self.whole.spectrum), v)

    def solve(self, v: Tensor) -> Tensor:
        """F_KK⁻¹ v. Raises WoodburyError when conjugate gradients do not converge: more damping helps."""
        columns, spectrum = self._double(v), self.whole.spectrum
        if min(len(self.kept), len(self.gone)) <= Limits.current().direct_size or "factor" in vars(self):
            return self._restore(self._direct(columns), v)
        found, left = conjugate_gradients(
            lambda x: self._product(x, spectrum),
            columns,
            Limits.current().cg_steps,
            TOLERANCE,
            lambda x: self._product(x, 1 / spectrum),
        )
        if not left <= 1.01 * TOLERANCE:  # rounding included, NaN not
            raise WoodburyError(
                f"Conjugate gradients on the weights that stay of a Kronecker Fisher stand at a relative residual of {left:.1e} "
                f"after {Limits.current().cg_steps} steps: raise the damping."
            )
        return self._restore(found, v)

    def diagonal(self) -> Tensor:
        return self.whole.diagonal()[self.keep]

    def inverse_diagonal(self) -> Tensor:
        return self.whole.elements(self, None).to(self.dtype)

    def inverse_blocks(self, groups: Tensor) -> Tensor:
        return self.whole.elements(self, check_groups(groups, self.d).to(self.device)).to(
            self.dtype
        )

    def restrict(self, keep: Tensor) -> Fisher:
        both = self.keep.clone()
        both[self.keep] = check_keep(keep, self.d).to(both.device)
        return self.whole.restrict(both)

    def with_damping(self, damping: float) -> Restricted:
        return Restricted(self.whole.with_damping(damping), self.keep)

    def logdet(self) -> float:
        """log det F_KK; where most weights stay, log det F + log det [F⁻¹]_RR."""
        own = 2 * float(self.factor.diagonal().log().sum())
        return own if self.few_stay else self.whole.logdet() + own

    def compensate(self, keep: Tensor, removed: Tensor, gradient: Tensor | None = None) -> Tensor:
        return by_restriction(self, keep, removed, gradient)

    @cached_property
    def factor(self) -> Tensor:
        """Lower triangular L: L Lᵀ is F_KK where few weights stay, and [F⁻¹]_RR where few went."""
        index = self.kept if self.few_stay else self.gone
        if len(index) > Limits.current().dense_factor:
            raise WoodburyError(
                f"{self.d} of the {self.whole.d} weights of a Kronecker Fisher stay: its inverse elements and logdet need "
                f"a dense factor of {len(index)} rows, more than {Limits.current().dense_factor}: take elements=upper_bound, or another structure for "
                "tensors of this size."
            )
        spectrum = self.whole.spectrum if self.few_stay else 1 / self.whole.spectrum
        least = float(spectrum.min())  # no eigenvalue of a part lies below those of the whole
        matrix = spectrum.new_empty(len(index), len(index))
        at_once = max(1, Limits.current().temporary // self.whole.d)
        for start in range(0, len(index), at_once):
            part = slice(start, start + at_once)
            matrix[part] = self.whole.basis.columns(index[part], spectrum - least)[:, index]
        return damped_cholesky(matrix, least)

    def _double(self, v: Tensor) -> Tensor:
        return check_vector(v, self.d).double().reshape(self.d, -1)

    def _restore(self, found: Tensor, v: Tensor) -> Tensor:
        return found.reshape(v.shape).to(self.dtype)

    def _expand(self, v: Tensor, index: Tensor) -> Tensor:
        return v.new_zeros(self.whole.d, v.shape[1]).index_copy_(0, index, v)

    def _product(self, v: Tensor, spectrum: Tensor) -> Tensor:
        """[M]_KK v of the matrix M that has these eigenvalues."""
        return self.whole.basis.apply(self._expand(v, self.kept), spectrum)[self.kept]

    def _direct(self, v: Tensor) -> Tensor:
        if self.few_stay:
            return torch.cholesky_solve(v, self.factor)
        basis, inverse = self.whole.basis, 1 / self.whole.spectrum
        free = basis.apply(self._expand(v, self.kept), inverse)
        force = torch.cholesky_solve(
            free[self.gone], self.factor
        )  # what holds the removed weights at 0
        return (free - basis.apply(self._expand(force, self.gone), inverse))[self.kept]


def exact(part: Restricted, groups: Tensor | None) -> Tensor:
    """[F_KK⁻¹]_QQ (g, s, s), for None its diagonal (|K|,), by a dense factor of n rows: O(n³) once.

    Where most weights stay, F_KK⁻¹ = [F⁻¹]_KK − [F⁻¹]_KR ([F⁻¹]_RR)⁻¹ [F⁻¹]_RK  (eq. 26), at O(n² + d (o + i)) for each weight.
    """
    factor = part.factor
    if part.few_stay and groups is None:
        return inverse_diagonal(factor)
    index = part.kept[:, None] if groups is None else part.kept[groups]
    basis, inverse = part.whole.basis, 1 / part.whole.spectrum
    blocks = (
        inverse.new_zeros(*index.shape, index.shape[1])
        if part.few_stay
        else basis.blocks(index, inverse)
    )
    at_once = max(1, Limits.current().temporary // (part.whole.d * max(1, index.shape[1])))
    for start in range(0, len(index), at_once):
        some = index[start : start + at_once]
        if part.few_stay:
            sides = (part.kept[:, None] == some.flatten()).double()
        else:
            sides = basis.columns(some.flatten(), inverse)[:, part.gone].T
        half = torch.linalg.solve_triangular(factor, sides, upper=False).T.view(
            *some.shape, len(factor)
        )
        blocks[start : start + at_once] += half @ half.mT if part.few_stay else -half @ half.mT
    return blocks.flatten() if groups is None else blocks


def upper_bound(part: Restricted, groups: Tensor | None) -> Tensor:
    """[F⁻¹]_QQ of the whole product, which [F_KK⁻¹]_QQ cannot exceed: no dense factor, O(d (o + i)) in all  (eq. 34).

    It takes the removed weights to be free, and saliencies come out too low, by a factor of at most F_qq [F⁻¹]_qq: the
    more damping, the closer. Solves stay exact.
    """
    basis, inverse = part.whole.basis, 1 / part.whole.spectrum
    return (
        basis.diagonal(inverse)[part.kept]
        if groups is None
        else basis.blocks(part.kept[groups], inverse)
    )
