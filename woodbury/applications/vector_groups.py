"""VectorGroups: vectors of all weights in groups of k, written out or as outer products."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from woodbury.fisher.scaled_rows import ScaledRows
from woodbury.linalg.factored_rows import FactoredRows


class VectorGroups(ABC):
    """Vectors J of b groups of k, such as the gradients of k outputs of b samples."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(b, k, d)."""

    @abstractmethod
    def dense(self) -> Tensor:
        """(b, k, d)."""

    @abstractmethod
    def squares(self, dtype: torch.dtype) -> Tensor:
        """J Jᵀ of each group, (b, k, k) float64, from products in a dtype."""

    @abstractmethod
    def seen(self, rows: ScaledRows, dtype: torch.dtype) -> Tensor:
        """S G Jᵀ, (m, b·k) float64, from products in a dtype."""


@dataclass(frozen=True, eq=False)
class DenseGroups(VectorGroups):
    """Vectors that are written out.

    Attributes:
        vectors: (b, k, d).
    """

    vectors: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """(b, k, d)."""
        b, k, d = self.vectors.shape
        return b, k, d

    def dense(self) -> Tensor:
        """(b, k, d)."""
        return self.vectors

    def squares(self, dtype: torch.dtype) -> Tensor:
        """J Jᵀ of each group, (b, k, k) float64."""
        vectors = self.vectors.to(dtype)
        return (vectors @ vectors.mT).double()

    def seen(self, rows: ScaledRows, dtype: torch.dtype) -> Tensor:
        """S G Jᵀ, (m, b·k) float64."""
        return rows.times(self.vectors.flatten(0, 1).mT.to(dtype))


@dataclass(frozen=True, eq=False)
class OuterGroups(VectorGroups):
    """Gradients of linear layers; those of a group share the layers' inputs.

    Attributes:
        vectors: b·k of them, the groups one after the other.
        k: Vectors in a group.
        dtype: Of the vectors when they are written out.
    """

    vectors: FactoredRows
    k: int
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        """(b, k, d)."""
        return self.vectors.m // self.k, self.k, self.vectors.d

    def dense(self) -> Tensor:
        """(b, k, d)."""
        return self.vectors.dense().to(self.dtype).view(self.shape)

    def squares(self, dtype: torch.dtype) -> Tensor:
        """J Jᵀ of each group, (b, k, k), in float64 always."""
        return self.vectors.grams_of_groups(self.k)

    def seen(self, rows: ScaledRows, dtype: torch.dtype) -> Tensor:
        """S G Jᵀ, (m, b·k) float64; the vectors are written out where the rows are on a disk."""
        if not isinstance(rows.rows, Tensor) or rows.group is not None:
            return DenseGroups(self.dense()).seen(rows, dtype)
        return rows.scale[:, None] * self.vectors.times_transposed(rows.rows, self.k, dtype)
