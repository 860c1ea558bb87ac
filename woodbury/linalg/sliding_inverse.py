"""SlidingInverse: the inverse of a small damped matrix whose rows are replaced one by one."""

from __future__ import annotations

import torch
from torch import Tensor

from woodbury.linalg.cholesky import damped_cholesky

REBUILD_EVERY = 256
"""Replacements after which the inverse is rebuilt, so that rounding cannot add up."""


MAX_RESIDUAL = 1e-4
"""Relative residual of a solve above which the inverse is rebuilt at once."""


MIN_SCHUR_SHARE = 0.5
"""A Schur complement below this share of the shift, its lower bound, is rounding."""


class SlidingInverse:
    """M⁻¹ for M = A + shift·I, A (m, m) symmetric positive semidefinite, in float64  (eq. 13).

    Replacing a row and column of A changes M⁻¹ by rank two, O(m²), where a factor costs O(m³). It
    is built from scratch when it is needed first, when the shift has changed, and when it is too
    old or too inexact.

    Attributes:
        matrix: (m, m) float64, M⁻¹; None before the first solve.
        shift: What was added to the diagonal of A.
        updates: Replacements since it was built; -1 where it is not the inverse of the present A.

    Example:
        >>> import torch
        >>> inverse = SlidingInverse()
        >>> gram = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> inverse.solve(gram, 1.0, torch.ones(2).double())
        tensor([0.2500, 0.5000], dtype=torch.float64)
        >>> gram[1, 1] = 3.0
        >>> inverse.replace(1, gram[1])
        >>> inverse.solve(gram, 1.0, torch.ones(2).double())
        tensor([0.2500, 0.2500], dtype=torch.float64)
    """

    def __init__(self) -> None:
        self.matrix: Tensor | None = None
        self.shift = 0.0
        self.updates = -1

    def invalidate(self) -> None:
        """A changed in more than one row: rebuild the inverse when it is needed."""
        self.updates = -1

    def solve(self, gram: Tensor, shift: float, c: Tensor) -> Tensor:
        """M⁻¹c, as exact as by a factor.

        Args:
            gram: A (m, m) float64, with all replacements.
            shift: Positive.
            c: (m,) float64.

        Returns:
            (m,) float64.
        """
        if not 0 <= self.updates <= REBUILD_EVERY or self.shift != shift:
            self._build(gram, shift)
        assert self.matrix is not None
        solution = self.matrix @ c
        residual = c - gram @ solution - shift * solution
        # Not `>`: a NaN must rebuild too. A fresh inverse is as good as it gets.
        if self.updates and not bool(residual.norm() <= MAX_RESIDUAL * c.norm()):
            self._build(gram, shift)
            return self.solve(gram, shift, c)
        return solution + self.matrix @ residual  # one step of iterative refinement

    def _build(self, gram: Tensor, shift: float) -> None:
        self.matrix = torch.cholesky_inverse(damped_cholesky(gram, shift))
        self.shift = shift
        self.updates = 0

    def replace(self, row: int, products: Tensor) -> None:
        """Follow the replacement of one row and column of A, if there is an inverse to update.

        Args:
            row: r, the one that is replaced.
            products: (m,) float64, the new row of A.
        """
        if self.updates < 0:
            return
        assert self.matrix is not None
        inverse = self.matrix
        # 1. Without the old row: B = M⁻¹ − b bᵀ/b_r with b = M⁻¹e_r; row and column r of B are 0.
        old = inverse[row] / inverse[row, row].sqrt()
        # 2. w = Bk, k the new column without its own place; then u = w − e_r.
        others = products.clone()
        others[row] = 0
        direction = inverse @ others - old * (old @ others)
        direction[row] = -1
        # 3. The Schur complement s = M_rr − kᵀw ≥ shift. If it is less, rounding has won: rebuild.
        schur = products[row] + self.shift - others @ direction
        if not bool(schur >= MIN_SCHUR_SHARE * self.shift):
            self.invalidate()
            return
        # 4. With the new row: M⁻¹ = B + u uᵀ/s. Both rank-one changes by one product.
        new = direction / schur.sqrt()
        inverse.addmm_(torch.stack([new, -old], 1), torch.stack([new, old]))
        # 5. Row r is u u_r/s exactly, as that of B is 0: write it, and keep the matrix symmetric.
        inverse[row] = new * new[row]
        inverse[:, row] = inverse[row]
        self.updates += 1
