"""Metric: what a step is measured by in place of its length, so that damping need not hold every weight alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from woodbury.errors import WoodburyError


@dataclass(frozen=True, eq=False)
class Metric:
    """M (d, d), symmetric and positive definite: blocks on runs of the weights, the identity on all others.

    factors: (where, lower L (s, s) with LLᵀ the block). With δ = L⁻ᵀη the length of η is √(δᵀMδ), so that rows G L⁻ᵀ and
    damping λI stand for rows G and damping λM  (eq. 65).
    """

    factors: tuple[tuple[slice, Tensor], ...]

    @classmethod
    def of(cls, blocks: Iterable[tuple[slice, Tensor]], dtype: torch.dtype) -> Metric:
        """From the blocks (s, s), each where it lies; factored as they are, and kept in the dtype of the rows.

        Raises WoodburyError for one that is not positive definite.
        """
        factors = []
        for where, block in blocks:
            factor, failed = torch.linalg.cholesky_ex(block)
            if bool(failed) or not bool(torch.isfinite(factor).all()):
                raise WoodburyError(f"The metric of weights {where.start} to {where.stop} is not positive definite.")
            factors.append((where, factor.to(dtype)))
        return cls(tuple(factors))

    def whiten(self, rows: Tensor) -> Tensor:
        """G L⁻ᵀ: (m, d), in place, as the rows are what fills the memory."""
        for where, factor in self.factors:
            rows[:, where] = torch.linalg.solve_triangular(factor, rows[:, where].mT, upper=False).mT
        return rows

    def whitened(self, v: Tensor) -> Tensor:
        """L⁻¹v: (d,) -> (d,), the gradient by η of one by δ."""
        return self.whiten(v[None].clone())[0]

    def coloured(self, v: Tensor) -> Tensor:
        """L⁻ᵀv: (d,) -> (d,), the δ of an η."""
        found = v.clone()
        for where, factor in self.factors:
            found[where] = torch.linalg.solve_triangular(factor.mT, v[where, None], upper=True)[:, 0]
        return found
