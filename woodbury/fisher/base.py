"""Fisher: the one abstract operator, its verbs, their shapes and their errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.checks import check_keep, check_vector


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
        return LinearOperator(
            (self.d, self.d), matvec=apply, rmatvec=apply, matmat=apply, dtype=dtype
        )  # type: ignore[call-arg]


def by_restriction(
    fisher: Fisher, keep: Tensor, removed: Tensor, gradient: Tensor | None
) -> Tensor:
    """`compensate` for an operator without a better way: one product, one restricted solve."""
    check_keep(keep, fisher.d)
    force = fisher @ removed
    if gradient is not None:
        force = force - check_vector(gradient, fisher.d)
    return fisher.restrict(keep).solve(force[keep])
