"""Metric: what measures a step in place of its length, so that damping weighs weights unequally."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Metric:
    """M (d, d), symmetric positive definite: blocks on runs of the weights, else the identity.

    With δ = L⁻ᵀη and M = LLᵀ the length of η is √(δᵀMδ). So the rows G L⁻ᵀ with damping λI stand
    for the rows G with damping λM  (eq. 65). It is no Fisher: nobody asks for its inverse elements.

    Attributes:
        factors: For each block where it lies, a slice of s weights, and its lower Cholesky factor
            L (s, s) in the dtype of the rows.

    Example:
        >>> import torch
        >>> metric = Metric(((slice(0, 1), torch.tensor([[2.0]])),))
        >>> metric.whitened(torch.tensor([2.0, 3.0])), metric.coloured(torch.tensor([2.0, 3.0]))
        (tensor([1., 3.]), tensor([1., 3.]))
    """

    factors: tuple[tuple[slice, Tensor], ...]

    def runs(self, d: int) -> list[int]:
        """The lengths of the blocks, and 1 for each of the d weights that is in none."""
        lengths: list[int] = []
        end = 0
        for where, _ in sorted(self.factors, key=lambda factor: factor[0].start):
            lengths += [1] * (where.start - end)
            lengths.append(where.stop - where.start)
            end = where.stop
        return lengths + [1] * (d - end)

    def within(self, part: slice) -> Metric:
        """The blocks that lie in a part of the weights, as a metric on it.

        Args:
            part: Which weights; no block reaches out of it.
        """
        first, last = part.start, part.stop
        inside = [each for each in self.factors if first <= each[0].start < last]
        shifted = ((slice(w.start - first, w.stop - first), factor) for w, factor in inside)
        return Metric(tuple(shifted))

    def whiten(self, rows: Tensor) -> Tensor:
        """G L⁻ᵀ, in place, as the rows are what fills the memory.

        Args:
            rows: G (m, d); overwritten.

        Returns:
            The same tensor.
        """
        for where, factor in self.factors:
            solved = torch.linalg.solve_triangular(factor, rows[:, where].mT, upper=False)
            rows[:, where] = solved.mT
        return rows

    def whitened(self, v: Tensor) -> Tensor:
        """L⁻¹v: the gradient by η of one by δ.

        Args:
            v: (d,).

        Returns:
            (d,), a new tensor.
        """
        return self.whiten(v[None].clone())[0]

    def solved(self, v: Tensor) -> Tensor:
        """M⁻¹v.

        Args:
            v: (d,).

        Returns:
            (d,), a new tensor.
        """
        solution = v.clone()
        for where, factor in self.factors:
            solution[where] = torch.cholesky_solve(v[where, None], factor)[:, 0]
        return solution

    def coloured(self, v: Tensor) -> Tensor:
        """L⁻ᵀv: the step δ of an η.

        Args:
            v: (d,).

        Returns:
            (d,), a new tensor.
        """
        step = v.clone()
        for where, factor in self.factors:
            solved = torch.linalg.solve_triangular(factor.mT, v[where, None], upper=True)
            step[where] = solved[:, 0]
        return step
