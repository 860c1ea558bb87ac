"""Damped least-squares steps from one factorization, for any damping."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DampedSteps:
    """argmin |Jδ + r|² + λ|Dδ|² for any λ, from one factorization  (eq. 88).

    J D⁻¹ = Q R is factored by Householder reflections and R = U S Vᵀ by its singular values, so
    that no condition number is squared. With fewer rows than columns the transpose is factored.

    Attributes:
        left: (m, k), orthonormal columns, with k = min(m, d).
        values: S (k,).
        right: (d, k), orthonormal columns.
        scales: The diagonal of D (d,), positive.

    Example:
        >>> rows = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
        >>> steps = DampedSteps.of(rows, torch.ones(2, dtype=torch.float64))
        >>> steps.solve(torch.tensor([2.0, 2.0, 5.0], dtype=torch.float64), damping=1.0)
        tensor([-0.8000, -1.0000], dtype=torch.float64)
    """

    left: Tensor
    values: Tensor
    right: Tensor
    scales: Tensor

    @classmethod
    def of(cls, rows: Tensor, scales: Tensor) -> DampedSteps:
        """The factorization of a Jacobian.

        Args:
            rows: J (m, d), float64.
            scales: (d,), positive.
        """
        scaled = rows / scales
        m, d = scaled.shape
        if m >= d:
            orthogonal, triangle = torch.linalg.qr(scaled)
            u, values, vh = torch.linalg.svd(triangle)
            return cls(orthogonal @ u, values, vh.mT, scales)
        orthogonal, triangle = torch.linalg.qr(scaled.mT)
        u, values, vh = torch.linalg.svd(triangle)
        return cls(vh.mT, values, orthogonal @ u, scales)

    def solve(self, residuals: Tensor, damping: float) -> Tensor:
        """δ for one damping.

        Args:
            residuals: r (m,).
            damping: λ > 0.

        Returns:
            (d,).
        """
        filtered = self.values / (self.values.square() + damping) * (self.left.mT @ residuals)
        return -(self.right @ filtered) / self.scales
