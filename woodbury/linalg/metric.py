"""Metric: what a step is measured by in place of its length, so that damping need not hold every weight alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Metric:
    """M (d, d), symmetric and positive definite: blocks on runs of the weights, the identity on all others.

    factors: (where a block lies, its lower factor L (s, s) in the dtype of the rows), M = LLᵀ. With δ = L⁻ᵀη the length of
    η is √(δᵀMδ), so that rows G L⁻ᵀ and damping λI stand for rows G and damping λM  (eq. 65).
    """

    factors: tuple[tuple[slice, Tensor], ...]

    def whiten(self, rows: Tensor) -> Tensor:
        """G L⁻ᵀ: (m, d), in place, as the rows are what fills the memory."""
        for where, factor in self.factors:
            rows[:, where] = torch.linalg.solve_triangular(
                factor, rows[:, where].mT, upper=False
            ).mT
        return rows

    def whitened(self, v: Tensor) -> Tensor:
        """L⁻¹v: (d,) -> (d,), the gradient by η of one by δ."""
        return self.whiten(v[None].clone())[0]

    def coloured(self, v: Tensor) -> Tensor:
        """L⁻ᵀv: (d,) -> (d,), the δ of an η."""
        found = v.clone()
        for where, factor in self.factors:
            found[where] = torch.linalg.solve_triangular(factor.mT, v[where, None], upper=True)[
                :, 0
            ]
        return found
