"""Symmetric blocks as panels: the same matrices as whole ones, in less memory."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support.random import normal

from woodbury.linalg.symmetric_blocks import SymmetricBlocks, block_bytes


@pytest.mark.parametrize(
    ("size", "panels"), [(1, 1), (30, 1), (50, 2), (77, 3), (101, 4), (200, 4)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_panels_are_the_whole_blocks(size: int, panels: int, dtype: torch.dtype) -> None:
    columns = normal(9, 3, size)
    truth = torch.einsum("mci,mcj->cij", columns, columns)
    blocks = SymmetricBlocks.zeros(3, size, dtype)
    blocks.add_products(slice(0, 2), columns[:, :2].to(dtype))
    blocks.add_products(slice(2, 3), columns[:, 2:].to(dtype))
    assert (len(blocks), blocks.size, blocks.dtype, len(blocks.panels)) == (3, size, dtype, panels)
    assert block_bytes(3, size, dtype) == sum(
        panel.numel() * dtype.itemsize for panel in blocks.panels
    )
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    for which in (slice(0, 3), slice(1, 2), torch.tensor([2, 0])):
        close(blocks.matrices(which, torch.float64), truth[which])
    diagonal = truth.diagonal(dim1=1, dim2=2).to(dtype)
    close(blocks.diagonal(), diagonal)
    copy = SymmetricBlocks.zeros(3, size, dtype)
    copy.set(slice(0, 3), blocks.matrices(slice(0, 3), dtype))
    whole = copy.scale_(0.5).matrices(slice(0, 3), torch.float64)
    close(whole, truth / 2)


def test_products_may_be_of_another_dtype_than_the_sums() -> None:
    blocks = SymmetricBlocks.zeros(1, 60, torch.float64)
    columns = normal(5, 1, 60).float()
    blocks.add_products(slice(0, 1), columns)
    truth = columns[:, 0].double().mT @ columns[:, 0].double()
    found = blocks.matrices(slice(0, 1), torch.float64)[0]
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5)


def test_one_panel_is_no_copy() -> None:
    matrices = torch.eye(3)[None]
    found = SymmetricBlocks.of(matrices).matrices(slice(0, 1), torch.float32)
    assert found.data_ptr() == matrices.data_ptr()
