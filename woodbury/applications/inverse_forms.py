"""InverseForms: products of a few vectors through the inverse of a Fisher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from woodbury.applications.inner_products import LEAST_FLOAT32_SHARE
from woodbury.applications.vector_groups import VectorGroups
from woodbury.fisher.base import Fisher
from woodbury.fisher.lowrank import LowRank
from woodbury.fisher.scaled_rows import ScaledRows
from woodbury.linalg.cholesky import damped_cholesky


class Dual(NamedTuple):
    """What products with the rows are taken in, and L with L Lᵀ = S G Gᵀ S + λI  (eq. 6)."""

    dtype: torch.dtype
    factor: Tensor


class Spectrum(NamedTuple):
    """What products with the rows are taken in, and S G Gᵀ S = V diag(e) Vᵀ  (eq. 6)."""

    dtype: torch.dtype
    values: Tensor
    basis: Tensor


@dataclass(frozen=True, eq=False)
class InverseForms:
    """J F⁻¹ Jᵀ for some vectors J at a time.

    Attributes:
        fisher: F, any operator.

    Example:
        >>> from woodbury.applications.vector_groups import DenseGroups
        >>> forms = InverseForms(LowRank(torch.tensor([[1.0, 0.0]]), damping=1.0))
        >>> forms.between(DenseGroups(torch.ones(1, 1, 2)))
        tensor([[[1.5000]]])
    """

    fisher: Fisher

    def between(self, vectors: VectorGroups) -> Tensor:
        """J F⁻¹ Jᵀ of each group.

        Args:
            vectors: b groups of k.

        Returns:
            (b, k, k), symmetric.
        """
        fisher = self.fisher
        b, k, d = vectors.shape
        if not isinstance(fisher, LowRank):
            dense = vectors.dense()
            solved = fisher.solve(dense.reshape(-1, d).mT).mT.reshape(b, k, d)
            form = dense @ solved.mT
            return (form + form.mT) / 2
        dtype, factor = self._dual
        seen = vectors.seen(ScaledRows(fisher.rows, fisher.weights, fisher.group), dtype)
        white = torch.linalg.solve_triangular(factor, seen, upper=False)
        white = white.view(-1, b, k).permute(1, 2, 0)
        left = vectors.squares(dtype) - white @ white.mT
        return (left / fisher.damping).to(fisher.dtype)

    @cached_property
    def _dual(self) -> Dual:
        fisher = self.fisher
        assert isinstance(fisher, LowRank)
        gram, dtype = resolving_gram(fisher, fisher.damping)
        return Dual(dtype, damped_cholesky(gram, fisher.damping))


@dataclass(frozen=True, eq=False)
class FormsByDamping:
    """J F⁻¹ Jᵀ for some vectors J and several dampings of F, by one product with its rows.

    Attributes:
        fisher: F, any operator; its own damping does not matter.
        dampings: λ of each result.

    Example:
        >>> from woodbury.applications.vector_groups import DenseGroups
        >>> fisher = LowRank(torch.tensor([[1.0, 0.0]]), damping=1.0)
        >>> list(FormsByDamping(fisher, (1.0, 3.0)).between(DenseGroups(torch.ones(1, 1, 2))))
        [tensor([[[1.5000]]]), tensor([[[0.5833]]])]
    """

    fisher: Fisher
    dampings: Sequence[float]

    def between(self, vectors: VectorGroups) -> Iterator[Tensor]:
        """J F⁻¹ Jᵀ of each group.

        Args:
            vectors: b groups of k.

        Returns:
            (b, k, k) for each damping, symmetric.
        """
        fisher = self.fisher
        if not isinstance(fisher, LowRank):
            for damping in self.dampings:
                yield InverseForms(fisher.with_damping(damping)).between(vectors)
            return
        dtype, values, basis = self._spectrum
        b, k, _ = vectors.shape
        rows = ScaledRows(fisher.rows, fisher.weights, fisher.group)
        seen = basis.mT @ vectors.seen(rows, dtype)  # (m, b·k)
        along = seen.view(-1, b, k).permute(1, 2, 0)
        own = vectors.squares(dtype)
        for damping in self.dampings:
            explained = along / (values + damping) @ along.mT
            yield ((own - explained) / damping).to(fisher.dtype)

    @cached_property
    def _spectrum(self) -> Spectrum:
        assert isinstance(self.fisher, LowRank)
        gram, dtype = resolving_gram(self.fisher, min(self.dampings))
        values, basis = torch.linalg.eigh(gram)
        return Spectrum(dtype, values.clamp_min(0), basis)


def resolving_gram(fisher: LowRank, damping: float) -> tuple[Tensor, torch.dtype]:
    """S G Gᵀ S, by products in float64 where those in float32 would lose the smallest forms.

    Args:
        fisher: With the rows G and their weights S.
        damping: λ that is added to it.

    Returns:
        (m, m) float64, and what products with the rows are to be taken in.
    """
    gram, dtype = fisher.gram, fisher.dtype
    largest = float(torch.linalg.eigvalsh(gram)[-1])
    if damping < LEAST_FLOAT32_SHARE * largest:
        dtype = torch.float64
        gram = ScaledRows(fisher.rows, fisher.weights, fisher.group).gram(dtype)
    return gram, dtype
