"""merged_rows(): a weighted sum of low-rank operators as one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher
from woodbury.fisher.lowrank import LowRank


def merged_rows(terms: Iterable[tuple[Fisher, float]]) -> LowRank:
    """Σ s F of low-rank operators, as one whose rows are those of all, concatenated.

    Args:
        terms: Each operator and its s > 0.

    Returns:
        The operator; the damping is Σ s λ.

    Raises:
        WoodburyError: If an operator is no `LowRank` with its rows in memory.

    Example:
        >>> one = LowRank(torch.tensor([[1.0, 0.0]]), damping=1.0)
        >>> both = merged_rows([(one, 2.0), (one, 1.0)])
        >>> both @ torch.ones(2)
        tensor([6., 3.])
    """
    rows: list[Tensor] = []
    weights: list[Tensor] = []
    damping = 0.0
    for fisher, strength in terms:
        if not (isinstance(fisher, LowRank) and isinstance(fisher.rows, Tensor)):
            raise WoodburyError(
                f"A {type(fisher).__name__} cannot be merged: give a LowRank whose rows are in "
                "memory, as woodbury.mfac makes it, or add the penalties."
            )
        own = fisher.weights
        ones = torch.ones(fisher.m, dtype=torch.float64, device=fisher.device)
        rows.append(fisher.rows)
        weights.append((ones if own is None else own.double()) * strength / fisher.m)
        damping += strength * fisher.damping
    total = sum(len(part) for part in rows)
    return LowRank(torch.cat(rows), damping, total * torch.cat(weights))
