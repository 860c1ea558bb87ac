"""Triangles by halves against whole products in float64."""

from __future__ import annotations

import pytest
import torch
from support.limits import Limited
from support.random import normal

from woodbury.linalg import gram as module
from woodbury.linalg.gram import gram_of, squared_columns


@pytest.mark.parametrize("m", [1, 64, 65, 130, 301])
def test_halves_of_a_triangle_are_the_gram_matrix(m: int, limited: Limited) -> None:
    limited(row_columns=100)
    rows = normal(m, 250)
    torch.testing.assert_close(gram_of(rows, torch.float64), rows @ rows.mT)


@pytest.mark.parametrize("known", [1, 75, 300])
def test_products_that_are_known_are_left_out(known: int) -> None:
    rows = normal(300, 500)
    truth = rows @ rows.mT
    truth[:known, :known] = 0
    torch.testing.assert_close(gram_of(rows, torch.float64, known=known), truth)


@pytest.mark.parametrize("m", [1, 64, 65, 130, 301])
def test_squares_do_not_depend_on_halves_and_widths(
    m: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NUMBERS_ON_CPU", 100 * m)  # 100 columns at once, of 250
    whitener, chunk = normal(m, m).tril(), normal(m, 250, seed=1)
    truth = (whitener @ chunk).square().sum(0)
    torch.testing.assert_close(squared_columns(whitener, chunk), truth)
