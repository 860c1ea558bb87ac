"""FactoredRows: rows that are outer products, whose Gram matrix needs no row written out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from woodbury.linalg.row_products import full_precision

PANEL = 512
"""Rows of the lower triangle that are multiplied at once."""

DENSE_PANEL = 128
"""Dense rows that are multiplied at once."""


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

    def dense(self) -> Tensor:
        """G (m, d), in the dtype of the factors."""
        rows = self.parts[0].left.new_zeros(self.m, self.d)
        for part in self.parts:
            outer = part.left[:, :, None] * part.right[:, None, :]
            rows[:, part.columns] = outer.flatten(1)
        return rows

    def grams_of_groups(self, k: int) -> Tensor:
        """The Gram matrix of every k rows, one group after the other.

        Args:
            k: Rows of a group.

        Returns:
            (m/k, k, k) float64.
        """
        grams = self.parts[0].left.new_zeros(self.m // k, k, k, dtype=torch.float64)
        with full_precision(grams.device):
            for part in self.parts:
                left = part.left.double().unflatten(0, (-1, k))
                right = part.right.double().unflatten(0, (-1, k))
                grams += (left @ left.mT) * (right @ right.mT)
        return grams

    def times_transposed(self, rows: Tensor, k: int, dtype: torch.dtype) -> Tensor:
        """R Gᵀ for dense rows R, where every k rows of G have equal right factors.

        A right factor is multiplied by R once for all k of them.

        Args:
            rows: R (n, d).
            k: As gradients of k outputs of one sample have them.
            dtype: What the products are taken in.

        Returns:
            (n, m) float64.

        Example:
            >>> part = OuterProducts(slice(0, 2), torch.tensor([[2.0]]), torch.tensor([[1.0, 3.0]]))
            >>> FactoredRows((part,), 2).times_transposed(torch.eye(2), 1, torch.float64)
            tensor([[2.],
                    [6.]], dtype=torch.float64)
        """
        found = rows.new_empty(len(rows), self.m, dtype=torch.float64)
        with full_precision(rows.device):
            for start in range(0, len(rows), DENSE_PANEL):
                panel = rows[start : start + DENSE_PANEL].to(dtype)
                products = [_transposed(part, panel, k) for part in self.parts]
                found[start : start + len(panel)] = torch.stack(products).double().sum(0)
        return found


def _transposed(part: OuterProducts, rows: Tensor, k: int) -> Tensor:
    """The products of rows with one part: (n, m)."""
    left = part.left.to(rows.dtype).unflatten(0, (-1, k))  # (b, k, o)
    right = part.right[::k].to(rows.dtype)  # (b, i)
    matrices = rows[:, part.columns].unflatten(1, (left.shape[2], right.shape[1]))
    along = matrices @ right.mT  # (n, o, b)
    return torch.bmm(along.permute(2, 0, 1), left.mT).transpose(0, 1).flatten(1)
