"""Fisher: the one abstract operator, its operations and their shapes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from woodbury.errors import MissingDependency
from woodbury.fisher.checks import check_keep, check_vector

COLUMNS_AT_ONCE = 256
"""Unit vectors that `conditional_curvature` multiplies by at once."""


class Fisher(ABC):
    """A damped, symmetric positive definite matrix F = curvature + damping·I  (eq. 1).

    Implementations are final frozen dataclasses. They know tensors only, never a model, hold
    `damping` apart from the curvature, and raise `WoodburyError` where a vector, a mask or a group
    does not fit. Vectors, masks and groups may be arrays or lists too; autograd records nothing.

    Attributes:
        damping: λ > 0, absolute, the same number in every operator.

    Example:
        >>> import torch
        >>> import woodbury
        >>> fisher = woodbury.fisher.Diagonal(torch.tensor([1.0, 3.0]), damping=1.0)
        >>> isinstance(fisher, woodbury.fisher.Fisher), fisher.d
        (True, 2)
        >>> fisher.solve(torch.tensor([2.0, 2.0]))
        tensor([1.0000, 0.5000])
    """

    damping: float

    def __repr__(self) -> str:
        """One line, without the numbers."""
        return f"{type(self).__name__}(d={self.d}, damping={self.damping:g})"

    @property
    @abstractmethod
    def d(self) -> int:
        """The number of weights."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of what the operations return: float32 at least."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the operations compute and return."""

    @abstractmethod
    def __matmul__(self, v: Tensor) -> Tensor:
        """The product F v.

        Args:
            v: (d,) or (d, k).

        Returns:
            The same shape.

        Raises:
            WoodburyError: If the shape does not fit.
        """

    @abstractmethod
    def solve(self, v: Tensor) -> Tensor:
        """F⁻¹ v, the inverse-Hessian-vector product (IHVP).

        Args:
            v: (d,) or (d, k).

        Returns:
            The same shape.

        Raises:
            WoodburyError: If the shape does not fit.
        """

    def quadratic_form(self, v: Tensor) -> float:
        """The quadratic form vᵀFv.

        Args:
            v: (d,).

        Returns:
            A number that is not negative but for rounding.

        Raises:
            WoodburyError: If the shape does not fit.
        """
        v = check_vector(v, self.d, columns=False)
        return float(v.double() @ (self @ v).double())

    @abstractmethod
    def diagonal(self) -> Tensor:
        """diag(F), damping included.

        Returns:
            (d,), positive; a new tensor.
        """

    @abstractmethod
    def inverse_diagonal(self) -> Tensor:
        """diag(F⁻¹).

        Returns:
            (d,), positive.
        """

    @abstractmethod
    def inverse_blocks(self, groups: Tensor) -> Tensor:
        """[F⁻¹]_QQ for each group Q of weights.

        Args:
            groups: (g, s) int64, each row the indices of one group.

        Returns:
            (g, s, s).

        Raises:
            WoodburyError: If an index lies outside [0, d).
        """

    @abstractmethod
    def restrict(self, keep: Tensor) -> Fisher:
        """F_KK, the Fisher of the kept weights K.

        Args:
            keep: (d,) bool, True = kept.

        Returns:
            An operator on keep.sum() weights.

        Raises:
            WoodburyError: If nothing is kept, or the mask does not fit.
        """

    @abstractmethod
    def with_damping(self, damping: float) -> Fisher:
        """The same curvature under another damping; what does not depend on it is reused.

        Args:
            damping: The new λ.

        Returns:
            Another operator; this one is not changed.

        Raises:
            WoodburyError: If the damping is not positive and finite.
        """

    @abstractmethod
    def logdet(self) -> float:
        """The logarithm of the determinant, log det F.

        Returns:
            The natural logarithm; finite, as F is positive definite.
        """

    @abstractmethod
    def compensate(self, keep: Tensor, removed: Tensor, gradient: Tensor | None = None) -> Tensor:
        """The OBS update of the kept weights: F_KK⁻¹ (F_KQ w_Q − g_K)  (eq. 9, 12).

        It minimises the quadratic once the weights Q are set to zero.

        Args:
            keep: (d,) bool, True = kept (K), False = removed (Q).
            removed: (d,), the values of the removed weights, 0 elsewhere.
            gradient: (d,), g of the first-order term; None for none.

        Returns:
            (keep.sum(),), the step of the kept weights.

        Raises:
            WoodburyError: If nothing is kept, or a shape does not fit.
        """

    def conditional_curvature(self, keep: Tensor) -> Tensor:
        """The curvature along each weight when the kept weights are free to move  (eq. 57).

        1/[F_KK⁻¹]_qq for a kept weight, the Schur complement F_qq − F_qK F_KK⁻¹ F_Kq for a removed
        one. Half of it times a square is what removing or restoring the weight costs.

        Args:
            keep: (d,) bool, True = kept.

        Returns:
            (d,), positive.

        Raises:
            WoodburyError: If nothing is kept, or the mask does not fit.
        """
        keep = check_keep(keep, self.d)
        kept = self.restrict(keep)
        curvature = self.diagonal()
        curvature[keep] = 1 / kept.inverse_diagonal()
        if bool(keep.all()):
            return curvature
        for chunk in (~keep).nonzero()[:, 0].split(COLUMNS_AT_ONCE):
            # The columns F_Kq of some removed weights, by products with unit vectors.
            units = torch.zeros(self.d, len(chunk), dtype=self.dtype, device=self.device)
            units[chunk, torch.arange(len(chunk), device=self.device)] = 1
            coupling = (self @ units)[keep]
            curvature[chunk] -= (coupling * kept.solve(coupling)).sum(0)
        return curvature

    def scipy(self) -> Any:
        """F as a `scipy.sparse.linalg.LinearOperator`, for Lanczos and its relatives.

        Returns:
            An operator of shape (d, d) on NumPy vectors.

        Raises:
            MissingDependency: If SciPy is not installed.

        Example:
            >>> import torch
            >>> import woodbury
            >>> fisher = woodbury.fisher.Diagonal(torch.tensor([1.0, 3.0]), damping=1.0)
            >>> (fisher.scipy() @ [1.0, 1.0]).tolist()
            [2.0, 4.0]
        """
        try:
            from scipy.sparse.linalg import LinearOperator
        except ImportError as error:
            raise MissingDependency(
                "scipy() needs SciPy: pip install 'woodbury[scipy]'."
            ) from error

        def apply(v: Any) -> Any:
            v = check_vector(v, self.d)
            return (self @ v.to(self.device, self.dtype)).cpu().numpy()

        shape = (self.d, self.d)
        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        operations = {"matvec": apply, "rmatvec": apply, "matmat": apply}
        return LinearOperator(shape, dtype=dtype, **operations)  # type: ignore[call-arg]


def compensate_by_restriction(
    fisher: Fisher, keep: Tensor, removed: Tensor, gradient: Tensor | None
) -> Tensor:
    """`Fisher.compensate` where the structure allows no better way: a product, a restricted solve.

    Args:
        fisher: The operator on d weights.
        keep: (d,) bool, True = kept.
        removed: (d,), the values of the removed weights, 0 elsewhere.
        gradient: (d,) or None.

    Returns:
        (keep.sum(),).

    Raises:
        WoodburyError: If nothing is kept, or a shape does not fit.
    """
    keep = check_keep(keep, fisher.d)
    force = fisher @ check_vector(removed, fisher.d, columns=False)
    if gradient is not None:
        force = force - check_vector(gradient, fisher.d, columns=False).to(force)
    return fisher.restrict(keep).solve(force[keep])
