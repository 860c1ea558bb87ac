"""Products of which one triangle is enough: half the work of a full one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from woodbury.linalg.row_products import chunks, full_precision


def _panels(m: int) -> Iterator[tuple[int, int]]:
    """Row panels of a lower triangle: narrow enough to skip most of the upper half, wide enough for full speed."""
    height = min(max(m // 8, 64), 512)
    yield from ((start, min(start + height, m)) for start in range(0, m, height))


def gram_of(rows: Tensor, dtype: torch.dtype, columns: Tensor | None = None) -> Tensor:
    """G Gᵀ (m, m) in float64, half of it computed."""
    m = rows.shape[0]
    gram = torch.zeros(m, m, dtype=torch.float64, device=rows.device)
    with full_precision(rows.device):
        for _, chunk in chunks(rows, dtype, columns):
            for start, end in _panels(m):
                gram[start:end, :end] += chunk[start:end] @ chunk[:end].mT
    return gram.tril() + gram.tril(-1).mT


def squared_columns(whitener: Tensor, chunk: Tensor) -> Tensor:
    """The column sums of (whitener @ chunk)², the lower triangle alone, without storing the product."""
    sums = torch.zeros(chunk.shape[1], dtype=chunk.dtype, device=chunk.device)
    for start, end in _panels(chunk.shape[0]):
        sums += torch.linalg.vector_norm(
            chunk[:end].mT @ whitener[start:end, :end].mT, dim=1
        ).square_()
    return sums
