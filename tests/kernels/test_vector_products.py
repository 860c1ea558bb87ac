"""Compiled products with one vector against products in float64."""

from __future__ import annotations

import pytest
import torch
from support.random import normal

from woodbury.fisher import LowRank
from woodbury.kernels import loading
from woodbury.linalg import row_products

pytest.importorskip("numba", reason="the kernels need Numba")

from woodbury.kernels import vector_products

COUNTS = [1, 3, 4, 5, 66]
COLUMNS = [1, 31, 32, 33, 500]


@pytest.fixture(autouse=True)
def always_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MIN_PRODUCTS", 0)
    monkeypatch.setattr(vector_products, "COLUMNS_AT_ONCE", 100)


@pytest.mark.parametrize("m", COUNTS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_both_products(m: int, columns: int) -> None:
    rows = normal(m, columns + 3)[:, 1:-2].float()
    v, c = normal(columns, seed=1).float(), normal(m, seed=2).float()
    times = row_products._chunked_times(rows, v)
    torch.testing.assert_close(times, rows.double() @ v.double(), rtol=1e-5, atol=1e-4)
    combined = row_products.combine(rows, c).double()
    torch.testing.assert_close(combined, rows.double().mT @ c.double(), rtol=1e-5, atol=1e-4)


def test_a_vector_with_gaps() -> None:
    rows, v = normal(5, 200).float(), normal(400).float()[::2]
    truth = rows.double() @ v.double()
    torch.testing.assert_close(row_products.times(rows, v), truth, rtol=1e-5, atol=1e-4)
    c = normal(10).float()[::2]
    truth = rows.double().mT @ c.double()
    torch.testing.assert_close(row_products.combine(rows, c).double(), truth, rtol=1e-5, atol=1e-4)


def test_rows_with_gaps_are_torchs() -> None:
    rows, v = normal(200, 5).float().mT, normal(200).float()
    assert row_products._kernels(rows, v) is None
    torch.testing.assert_close(row_products.times(rows, v), (rows @ v).double())


def test_gradients_go_through_torch() -> None:
    rows, v = normal(5, 200).float(), normal(200).float().requires_grad_()
    row_products.times(rows, v).sum().backward()
    torch.testing.assert_close(v.grad, rows.sum(0))


def test_products_do_not_depend_on_threads() -> None:
    rows, v = normal(80, 150_000).float(), normal(150_000, seed=1).float()
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            fisher = LowRank(rows, 0.5)
            found.append(torch.cat([fisher.solve(v), fisher @ v]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)
