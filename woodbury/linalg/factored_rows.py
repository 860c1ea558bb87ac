"""FactoredRows: rows that are outer products, whose Gram matrix needs no row written out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from woodbury.linalg.row_products import full_precision

PANEL = 512
"""Rows of the lower triangle that are multiplied at once."""


@dataclass(frozen=True, eq=False)
class OuterProducts:
    """Some columns of the rows: those of row n are left[n] right[n]ᵀ, flattened.

    Attributes:
        columns: Where they lie among the d columns.
        left: (m, o).
        right: (m, i).
    """

    columns: slice
    left: Tensor
    right: Tensor


@dataclass(frozen=True, eq=False)
class FactoredRows:
    """Rows G (m, d) that are outer products, such as gradients of linear layers  (eq. 27).

    Attributes:
        parts: Of all d columns.
        d: Columns.

    Example:
        >>> part = OuterProducts(slice(0, 2), torch.tensor([[2.0]]), torch.tensor([[1.0, 3.0]]))
        >>> rows = FactoredRows((part,), 2)  # [[2, 6]]
        >>> rows.gram(), rows.times(torch.tensor([1.0, 1.0]))
        (tensor([[40.]], dtype=torch.float64), tensor([8.], dtype=torch.float64))
    """

    parts: tuple[OuterProducts, ...]
    d: int

    @property
    def m(self) -> int:
        """How many rows."""
        return len(self.parts[0].left)

    def gram(self) -> Tensor:
        """G Gᵀ: (m, m) float64, the sum over the parts of (L Lᵀ) ∘ (R Rᵀ)  (eq. 81)."""
        left = self.parts[0].left
        gram = torch.zeros(self.m, self.m, dtype=torch.float64, device=left.device)
        with full_precision(left.device):
            for part in self.parts:
                left, right = part.left.double(), part.right.double()
                for start in range(0, self.m, PANEL):
                    end = min(start + PANEL, self.m)
                    outputs = left[start:end] @ left[:end].mT
                    gram[start:end, :end] += outputs.mul_(right[start:end] @ right[:end].mT)
        return gram.tril() + gram.tril(-1).mT

    def times(self, v: Tensor) -> Tensor:
        """G v.

        Args:
            v: (d,).

        Returns:
            (m,) float64.
        """
        product = v.new_zeros(self.m, dtype=torch.float64)
        for part in self.parts:
            left, right = part.left.double(), part.right.double()
            matrix = v[part.columns].double().view(left.shape[1], right.shape[1])
            product += ((left @ matrix) * right).sum(1)
        return product
