"""Compiled triangles against products in float64, and the code that they are made of."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from support.random import normal

from woodbury.fisher import LowRank
from woodbury.kernels import loading
from woodbury.linalg import gram as module
from woodbury.linalg.gram import gram_of

pytest.importorskip("numba", reason="the kernels need Numba")

from woodbury.kernels import triangles

COUNTS = [1, 5, 6, 7, 96, 97, 130]
COLUMNS = [1, 16, 63, 65, 1024, 1100]


@pytest.fixture
def always_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MIN_PRODUCTS", 0)


@pytest.mark.parametrize("m", COUNTS)
@pytest.mark.parametrize("columns", COLUMNS)
def test_squares_of_a_triangle(m: int, columns: int) -> None:
    triangle, chunk = normal(m, m).tril() / m**0.5, normal(m, columns + 3, seed=1)[:, 1:-2]
    truth = (triangle @ chunk).square().sum(0)
    squares = triangles.Triangle(triangle.float()).squared_columns(chunk.float())
    torch.testing.assert_close(squares.double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("m", COUNTS)
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_gram_matrix_but_for_what_is_known(m: int, columns: int, share: float) -> None:
    known = int(m * share)
    chunk = normal(m, columns + 3)[:, 1:-2] / columns**0.5
    truth = chunk @ chunk.mT
    truth[:known, :known] = 0
    sums = torch.zeros(2 * [triangles.gram_rows(m)], dtype=torch.float64)
    triangles.add_gram(chunk.float(), sums, known)
    torch.testing.assert_close(sums[:m, :m].tril(), truth.tril(), rtol=1e-5, atol=1e-5)


def test_columns_side_by_side_are_not_needed() -> None:
    chunk, sums = normal(50, 9).float().mT, torch.zeros(2 * [triangles.gram_rows(9)]).double()
    triangles.add_gram(chunk, sums)
    truth = chunk.double() @ chunk.double().mT
    torch.testing.assert_close(sums[:9, :9].tril(), truth.tril(), rtol=1e-5, atol=1e-5)
    squares = triangles.Triangle(torch.eye(9)).squared_columns(chunk)
    torch.testing.assert_close(squares, chunk.square().sum(0))


@pytest.mark.usefixtures("always_compiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fisher_with_kernels(dtype: torch.dtype) -> None:
    rows, v = normal(70, 5000).to(dtype), normal(5000, seed=1).float()
    fisher, truth = LowRank(rows, 0.5), LowRank(rows.double(), 0.5)
    torch.testing.assert_close(fisher.gram, truth.gram, rtol=1e-5, atol=1e-5)
    diagonal = truth.inverse_diagonal()
    torch.testing.assert_close(fisher.inverse_diagonal().double(), diagonal, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        fisher.solve(v).double(), truth.solve(v.double()), rtol=1e-5, atol=1e-5
    )
    keep = normal(5000, seed=2) > 0
    found, right = fisher.conditional_curvature(keep), truth.conditional_curvature(keep)
    torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("always_compiled")
def test_sums_do_not_depend_on_threads() -> None:
    rows, threads, found = normal(80, 30_000).float(), torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(gram_of(rows, torch.float32))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def loaded(device: str = "cpu", dtype: torch.dtype = torch.float32, work: float = 1e12) -> Any:
    return loading.triangle_kernels(torch.device(device), dtype, work)


def test_kernels_are_for_much_work_in_float32_on_a_cpu() -> None:
    assert loaded() is triangles
    assert loaded("cuda") is loaded(dtype=torch.float64) is loaded(work=1e3) is None


@pytest.mark.parametrize("missing", ["numba", "woodbury.kernels.triangles"])
def test_torch_does_the_work_without_numba(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loading._imported.cache_clear()
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delattr(sys.modules["woodbury.kernels"], "triangles")
    if missing == "numba":
        monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(loading, "MIN_PRODUCTS", 0)
    rows = normal(70, 300)
    found = module.gram_of(rows.float(), torch.float32)
    loading._imported.cache_clear()
    torch.testing.assert_close(found, rows @ rows.mT, rtol=1e-5, atol=1e-5)
