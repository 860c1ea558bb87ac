"""Diagonal and Dense: curvature that is written out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher, by_restriction
from woodbury.fisher.checks import (
    check_damping,
    check_finite,
    check_groups,
    check_keep,
    check_vector,
)
from woodbury.fisher.dense import _across


@dataclass(frozen=True, eq=False)
class Diagonal(Fisher):
    """F = diag(curvature) + damping·I  (eq. 3). curvature: (d,), not negative."""

    curvature: Tensor
    damping: float

    def __post_init__(self) -> None:
        check_damping(self.damping)
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
        return len(self.curvature)

    @property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self.curvature.dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        return self.curvature.device

    def __matmul__(self, v: Tensor) -> Tensor:
        return _across(self.diagonal(), check_vector(v, self.d)) * v.to(self.dtype)

    def solve(self, v: Tensor) -> Tensor:
        return v.to(self.dtype) / _across(self.diagonal(), check_vector(v, self.d))

    def diagonal(self) -> Tensor:
        return self.curvature.to(self.dtype) + self.damping

    def inverse_diagonal(self) -> Tensor:
        return 1 / self.diagonal()

    def inverse_blocks(self, groups: Tensor) -> Tensor:
        return self.inverse_diagonal()[check_groups(groups, self.d)].diag_embed()

    def restrict(self, keep: Tensor) -> Diagonal:
        return replace(self, curvature=self.curvature[check_keep(keep, self.d)])

    def conditional(self, keep: Tensor) -> Tensor:
        check_keep(keep, self.d)
        return self.diagonal()

    def with_damping(self, damping: float) -> Diagonal:
        return replace(self, damping=damping)

    def logdet(self) -> float:
        return float(self.diagonal().double().log().sum())

    def compensate(self, keep: Tensor, removed: Tensor, gradient: Tensor | None = None) -> Tensor:
        return by_restriction(self, keep, removed, gradient)
