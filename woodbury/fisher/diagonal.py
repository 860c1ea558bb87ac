"""Diagonal: curvature without interactions between weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher, compensate_by_restriction
from woodbury.fisher.checks import (
    as_tensor,
    check_damping,
    check_finite,
    check_groups,
    check_held,
    check_keep,
    check_vector,
)
from woodbury.linalg.precision import wide_dtype


@dataclass(frozen=True, eq=False, repr=False)
class Diagonal(Fisher):
    """F = diag(curvature) + damping·I  (eq. 3), as in Optimal Brain Damage (LeCun et al. 1989).

    Attributes:
        curvature: (d,), any float dtype, no entry negative.
        damping: λ > 0, added to every entry.

    Raises:
        WoodburyError: If an entry is negative or not finite, or the damping is not positive.

    Example:
        >>> import torch
        >>> import woodbury
        >>> fisher = woodbury.fisher.Diagonal(torch.tensor([1.0, 3.0]), damping=1.0)
        >>> fisher.inverse_diagonal()
        tensor([0.5000, 0.2500])
    """

    curvature: Tensor
    damping: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "damping", check_damping(self.damping))
        object.__setattr__(self, "curvature", as_tensor(self.curvature, "The diagonal curvature"))
        if self.curvature.ndim != 1 or not len(self.curvature):
            raise WoodburyError(
                f"A diagonal curvature has shape {tuple(self.curvature.shape)}: give (d,)."
            )
        if bool((check_finite(self.curvature, "The diagonal curvature") < 0).any()):
            raise WoodburyError(
                "The diagonal curvature is negative somewhere: a Fisher is positive semidefinite."
            )

    @property
    def d(self) -> int:
        """The number of weights."""
        return len(self.curvature)

    @property
    def dtype(self) -> torch.dtype:
        """That of the curvature, float32 for halves."""
        return wide_dtype(self.curvature.dtype)

    @property
    def device(self) -> torch.device:
        """That of the curvature."""
        return self.curvature.device

    def __matmul__(self, v: Tensor) -> Tensor:
        """F v, O(d)."""
        v = check_vector(v, self.d)
        return check_held(self._column_for(v) * v.to(self.dtype), "F v")

    def solve(self, v: Tensor) -> Tensor:
        """F⁻¹ v, O(d)."""
        v = check_vector(v, self.d)
        return check_held(v.to(self.dtype) / self._column_for(v), "F⁻¹v")

    def _column_for(self, v: Tensor) -> Tensor:
        """diag(F) as (d,) or (d, 1), so that it multiplies the rows of v."""
        return self.diagonal() if v.ndim == 1 else self.diagonal()[:, None]

    def diagonal(self) -> Tensor:
        """diag(F)."""
        return self.curvature.to(self.dtype) + self.damping

    def inverse_diagonal(self) -> Tensor:
        """diag(F⁻¹) = 1/diag(F)."""
        return check_held(1 / self.diagonal(), "The inverse diagonal", positive=True)

    def inverse_blocks(self, groups: Tensor) -> Tensor:
        """[F⁻¹]_QQ, diagonal matrices (g, s, s)."""
        groups = check_groups(groups, self.d)
        same = groups[:, :, None] == groups[:, None, :]  # a group may repeat a weight
        return self.inverse_diagonal()[groups][:, :, None] * same

    def restrict(self, keep: Tensor) -> Diagonal:
        """F_KK, the kept entries."""
        return replace(self, curvature=self.curvature[check_keep(keep, self.d)])

    def conditional_curvature(self, keep: Tensor) -> Tensor:
        """diag(F), as no weight depends on another."""
        check_keep(keep, self.d)
        return self.diagonal()

    def with_damping(self, damping: float) -> Diagonal:
        """The same curvature under another damping."""
        return replace(self, damping=damping)

    def logdet(self) -> float:
        """Σ log F_qq, in float64."""
        return float(self.diagonal().double().log().sum())

    def compensate(self, keep: Tensor, removed: Tensor, gradient: Tensor | None = None) -> Tensor:
        """−g_K/F_KK: without a gradient 0, as nothing couples the weights."""
        return compensate_by_restriction(self, keep, removed, gradient)
