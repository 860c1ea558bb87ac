"""Products with rows by pieces: any width, any dtype."""

from __future__ import annotations

import pytest
import torch
from support.random import normal

from woodbury.linalg.row_products import (
    COLUMNS_PER_CONVERSION,
    COLUMNS_PER_PRODUCT,
    combination,
    products,
)


@pytest.mark.parametrize(
    "d", [3, COLUMNS_PER_PRODUCT - 1, COLUMNS_PER_PRODUCT + 1, COLUMNS_PER_CONVERSION + 5]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_products_and_combinations_by_pieces(d: int, dtype: torch.dtype) -> None:
    rows, v = normal(5, d, seed=1).to(dtype), normal(6, d, seed=1)[-1].to(dtype)
    truth, c = rows.double() @ v.double(), torch.arange(5.0).double()
    exact = float(rows.double().norm() * v.double().norm())
    for which, within in ((True, 1e-14), (False, 1e-14 if dtype == torch.float64 else 1e-6)):
        torch.testing.assert_close(products(rows, v, which), truth, rtol=0, atol=within * exact)
        combined = combination(rows, c, which)
        assert combined.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(combined.double(), rows.double().T @ c, rtol=1e-5, atol=1e-5)
