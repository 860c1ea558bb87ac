"""Damped least-squares steps, each damping by one orthogonal factorization."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

REDUCED_FROM = 4
"""Rows per column from which the Jacobian is reduced to a triangle before any damping is tried."""


@dataclass(frozen=True, eq=False)
class DampedSteps:
    """argmin |Jδ + r|² + λ|Dδ|² for any λ  (eq. 88).

    Attributes:
        rows: J D⁻¹ (m, d).
        scales: The diagonal of D (d,), positive.
        factored: Householder vectors and their factors of J D⁻¹ where m is several times d: then a
            damping is a matter of its triangle.

    Example:
        >>> rows = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
        >>> steps = DampedSteps.of(rows, torch.ones(2, dtype=torch.float64))
        >>> steps.at(damping=1.0).solve(torch.tensor([2.0, 2.0, 5.0], dtype=torch.float64))
        tensor([-0.8000, -1.0000], dtype=torch.float64)
    """

    rows: Tensor
    scales: Tensor
    factored: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, rows: Tensor, scales: Tensor) -> DampedSteps:
        """The steps of a Jacobian.

        Args:
            rows: J (m, d), float64.
            scales: (d,), positive.
        """
        scaled = rows / scales
        m, d = scaled.shape
        return cls(scaled, scales, torch.geqrf(scaled) if m >= REDUCED_FROM * d else None)

    def at(self, damping: float) -> DampedStep:
        """The step of one damping, for any residuals.

        Args:
            damping: λ > 0.
        """
        root = math.sqrt(damping)
        m, d = self.rows.shape
        if self.factored is not None:
            top = self.factored[0][:d].triu()
        else:
            top = self.rows if m >= d else self.rows.mT
        vectors, factors = torch.geqrf(torch.cat([top, _scaled_identity(root, top)]))
        return DampedStep(self, vectors, factors)


@dataclass(frozen=True, eq=False)
class DampedStep:
    """argmin |Jδ + r|² + λ|Dδ|² for one λ and any r  (eq. 88).

    With k = min(m, d), [J D⁻¹; √λ I] or, where m < d, [D⁻¹Jᵀ; √λ I] is Q R by Householder
    reflections, so that no condition number is squared.

    Attributes:
        steps: J and D.
        vectors: Householder vectors of Q below R, of k columns.
        factors: Of the reflections (k,).
    """

    steps: DampedSteps
    vectors: Tensor
    factors: Tensor

    def solve(self, residuals: Tensor) -> Tensor:
        """δ.

        Args:
            residuals: r (m,).

        Returns:
            (d,).
        """
        m, d = self.steps.rows.shape
        k = min(m, d)
        triangle = self.vectors[:k].triu()
        right = self._padded(self._reduced(residuals) if m >= d else _solved(triangle, residuals))
        turned = torch.ormqr(self.vectors, self.factors, right[:, None], True, m >= d)[:, 0]
        if m < d:  # the shortest solution of [J D⁻¹, √λ I] x = r, of which δ is a part
            return -turned[:d] / self.steps.scales
        step = torch.linalg.solve_triangular(triangle, turned[:k, None], upper=True)
        return -step[:, 0] / self.steps.scales

    def _reduced(self, residuals: Tensor) -> Tensor:
        """R turned into the columns of the triangle, where the Jacobian was reduced to it."""
        factored = self.steps.factored
        if factored is None:
            return residuals
        turned = torch.ormqr(*factored, residuals[:, None], True, True)
        return turned[: self.steps.rows.shape[1], 0]

    def _padded(self, vector: Tensor) -> Tensor:
        return torch.cat([vector, vector.new_zeros(len(self.vectors) - len(vector))])


def _scaled_identity(root: float, like: Tensor) -> Tensor:
    return root * torch.eye(like.shape[1], dtype=like.dtype, device=like.device)


def _solved(triangle: Tensor, right: Tensor) -> Tensor:
    """R⁻ᵀ b."""
    return torch.linalg.solve_triangular(triangle.mT, right[:, None], upper=False)[:, 0]
