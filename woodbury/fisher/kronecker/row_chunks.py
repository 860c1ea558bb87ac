"""Rows of a tensor, some at a time, with the places that their small matrices are made of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RowChunk(NamedTuple):
    """Some of the rows, with the places that a batch of small matrices is made of.

    Attributes:
        rows: (c,) int64, which rows.
        places: (c, k) int64, the places in each row; beyond the row's own count they mean nothing.
        valid: (c, k) bool, False where a place means nothing.
    """

    rows: Tensor
    places: Tensor
    valid: Tensor


def chosen_places(rows: Tensor, chosen: Tensor, count: int) -> RowChunk:
    """The chosen places (c, s) bool of some rows, `count` at most in each."""
    places = chosen.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
    valid = torch.arange(count, device=rows.device) < chosen.sum(1)[:, None]
    return RowChunk(rows, places, valid)


def submatrices(matrices: Tensor, chunk: RowChunk) -> Tensor:
    """(c, s, s) -> (c, k, k) on the chunk's places; the identity where not valid."""
    at = torch.arange(len(chunk.rows), device=matrices.device)[:, None, None]
    result = matrices[at, chunk.places[:, :, None], chunk.places[:, None, :]]
    result = result * (chunk.valid[:, :, None] & chunk.valid[:, None, :])
    result.diagonal(dim1=1, dim2=2).add_((~chunk.valid).to(result.dtype))
    return result


def columns_of(matrices: Tensor, chunk: RowChunk) -> Tensor:
    """(c, s, s) -> (c, s, k): the columns at the chunk's places, zeros where not valid."""
    places = chunk.places[:, None, :].expand(-1, matrices.shape[1], -1)
    return matrices.gather(2, places) * chunk.valid[:, None, :]


def taken(values: Tensor, chunk: RowChunk) -> Tensor:
    """(o·b, s, k') -> (c, k, k') at the chunk's places, zeros where not valid."""
    return taken_local(values[chunk.rows], chunk)


def taken_local(values: Tensor, chunk: RowChunk) -> Tensor:
    """(c, s, k') -> (c, k, k'): `taken` of values of the chunk's own rows."""
    places = chunk.places[..., None].expand(-1, -1, values.shape[2])
    return values.gather(1, places) * chunk.valid[..., None]


def put(result: Tensor, chunk: RowChunk, values: Tensor) -> None:
    """Write values (c, k, …) at the chunk's places of result (o·b, s, …)."""
    rows = chunk.rows[:, None].expand(chunk.places.shape)[chunk.valid]
    result[rows, chunk.places[chunk.valid]] = values[chunk.valid]
