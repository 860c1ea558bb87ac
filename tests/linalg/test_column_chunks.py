"""Chunks of columns, one after the other or in lanes: the same columns, and the same sums."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from support.limits import Limited
from support.random import normal
from torch import Tensor

from woodbury.linalg import column_chunks as module
from woodbury.linalg.column_chunks import column_chunks, each_chunk
from woodbury.linalg.gram import gram_of
from woodbury.linalg.paged_rows import restricted

M, D = 5, 1003


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("lanes", [1, 3, 8])
@pytest.mark.parametrize("masked", ["all", "index", "keep", "both"])
def test_lanes_read_each_column_once_and_in_order(
    lanes: int, masked: str, threads: int, limited: Limited, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(row_columns=7)
    monkeypatch.setattr(module, "COLUMNS_PER_INDEX", 100)
    rows = normal(M, D)
    kept = torch.arange(D) % 3 > 0
    truth, read, keep = rows, rows, None
    if masked in ("index", "both"):
        read, truth = restricted(rows, kept), rows[:, kept]
    if masked in ("keep", "both"):
        keep = torch.arange(truth.shape[1]) % 5 > 1
        truth = truth[:, keep]
    result = torch.full_like(truth, torch.nan)
    orders: dict[int, list[int]] = {}

    def copy(lane: int, part: slice, chunk: Tensor) -> None:
        result[:, part] = chunk
        orders.setdefault(lane, []).append(part.start)

    each_chunk(read, rows.dtype, copy, keep, lanes)
    assert torch.equal(result, truth)
    assert sorted(orders) == list(range(lanes))
    assert all(order == sorted(order) for order in orders.values())
    chunks = [chunk for _, chunk in column_chunks(read, rows.dtype, keep)]
    assert torch.equal(torch.cat(chunks, 1), truth)


def test_a_gram_matrix_has_the_same_bits_with_any_number_of_threads(limited: Limited) -> None:
    limited(row_columns=16)
    rows = normal(70, 5000).float()
    before = torch.get_num_threads()
    grams = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        grams.append(gram_of(rows, torch.float32))
    torch.set_num_threads(before)
    assert torch.equal(grams[0], grams[1]) and torch.equal(grams[0], grams[2])
    torch.testing.assert_close(grams[0], rows.double() @ rows.double().T, rtol=1e-6, atol=1e-4)
