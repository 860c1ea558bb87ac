"""Fisher: the one abstract operator, its verbs, their shapes and their errors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from woodbury.errors import WoodburyError

PIECE = 1 << 20
"""Entries that are checked at once."""


class Fisher(ABC):
    """A damped, symmetric positive definite matrix F on d weights: F = curvature + damping·I  (eq. 1).

    Implementations are final frozen dataclasses. They know tensors only, never a model, hold `damping` apart from the
    curvature, and raise `WoodburyError` where a vector, a mask or a group does not fit.
    """

    damping: float

    @property
    @abstractmethod
    def d(self) -> int:
        """The number of weights."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of what the verbs return."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the verbs compute and return."""

    @abstractmethod
    def __matmul__(self, v: Tensor) -> Tensor:
        """F v: (d,) or (d, k) -> the same shape."""

    @abstractmethod
    def solve(self, v: Tensor) -> Tensor:
        """F⁻¹ v, the inverse-Hessian-vector product (IHVP): (d,) or (d, k) -> the same shape."""

    @abstractmethod
    def diagonal(self) -> Tensor:
        """diag(F), damping included: (d,)."""

    @abstractmethod
    def inverse_diagonal(self) -> Tensor:
        """diag(F⁻¹): (d,), positive."""

    @abstractmethod
    def inverse_blocks(self, groups: Tensor) -> Tensor:
        """[F⁻¹]_QQ for each row Q of `groups`: int64 (g, s) -> (g, s, s)."""

    @abstractmethod
    def restrict(self, keep: Tensor) -> Fisher:
        """F_KK, the Fisher of the weights that stay: bool (d,) -> an operator on keep.sum() weights."""

    @abstractmethod
    def with_damping(self, damping: float) -> Fisher:
        """The same curvature under another damping; whatever does not depend on the damping is reused."""

    @abstractmethod
    def logdet(self) -> float:
        """log det F."""

    @abstractmethod
    def compensate(self, keep: Tensor, removed: Tensor, gradient: Tensor | None = None) -> Tensor:
        """The step of the weights that stay when others are set to zero: F_KK⁻¹ (F_KQ w_Q − g_K)  (eq. 9, 12).

        keep (d,) bool; removed (d,), the values that vanish and 0 elsewhere; gradient (d,) or None -> (keep.sum(),).
        """

    def conditional(self, keep: Tensor) -> Tensor:
        """The curvature along each weight when those that stay are free to follow, the others fixed: keep (d,) bool -> (d,).

        1/[F_KK⁻¹]_qq for a weight that stays, F_qq − F_qK F_KK⁻¹ F_Kq for another: what leaving or coming back is worth
        per half square  (eq. 57).
        """
        stays, found = self.restrict(keep), self.diagonal()
        found[keep] = 1 / stays.inverse_diagonal()
        for some in (~keep).nonzero()[:, 0].split(256):
            unit = torch.zeros(self.d, len(some), dtype=self.dtype, device=self.device)
            unit[some, torch.arange(len(some), device=self.device)] = 1
            coupled = (self @ unit)[keep]
            found[some] -= (coupled * stays.solve(coupled)).sum(0)
        return found

    def scipy(self) -> Any:
        """F as a `scipy.sparse.linalg.LinearOperator`, for Lanczos and its relatives."""
        try:
            from scipy.sparse.linalg import LinearOperator
        except ImportError as error:
            raise WoodburyError("scipy() needs SciPy: pip install 'woodbury[scipy]'.") from error

        def apply(v: Any) -> Any:
            return (self @ torch.as_tensor(v, dtype=self.dtype, device=self.device)).cpu().numpy()

        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        return LinearOperator((self.d, self.d), matvec=apply, rmatvec=apply, matmat=apply, dtype=dtype)  # type: ignore[call-arg]


def by_restriction(fisher: Fisher, keep: Tensor, removed: Tensor, gradient: Tensor | None) -> Tensor:
    """`compensate` for an operator without a better way: one product, one restricted solve."""
    check_keep(keep, fisher.d)
    force = fisher @ removed
    if gradient is not None:
        force = force - check_vector(gradient, fisher.d)
    return fisher.restrict(keep).solve(force[keep])


def check_damping(damping: float) -> float:
    """`damping`, or an error unless it is positive and finite."""
    if not (math.isfinite(damping) and damping > 0):
        raise WoodburyError(f"damping is {damping}: it is added to the diagonal of F and must be positive and finite.")
    return float(damping)


def check_vector(v: Tensor, d: int) -> Tensor:
    """`v`, or an error unless its shape is (d,) or (d, k)."""
    if v.ndim not in (1, 2) or v.shape[0] != d:
        raise WoodburyError(f"A vector of shape {tuple(v.shape)} met a Fisher on {d} weights: give ({d},) or ({d}, k).")
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
        raise WoodburyError(f"groups names weight {int(groups.max())} or below 0: indices must lie in [0, {d}).")
    return groups


def check_finite(tensor: Tensor, what: str) -> Tensor:
    """`tensor`, or an error that names the first row (or entry) that is NaN or infinite."""
    if not tensor.is_floating_point():
        raise WoodburyError(f"{what} has dtype {str(tensor.dtype)[6:]}: give real floating-point numbers.")
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
