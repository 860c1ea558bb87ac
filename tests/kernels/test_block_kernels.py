"""Kernels for small blocks against matrices in float64, with their sums in float32."""

from __future__ import annotations

import sys

import pytest
import torch
from support.random import normal
from torch import Tensor

from woodbury.fisher.blocks_of_rows import summed_blocks
from woodbury.kernels import loading
from woodbury.linalg.packed_blocks import PackedBlocks
from woodbury.linalg.symmetric_blocks import SymmetricBlocks

pytest.importorskip("numba", reason="the kernels need Numba")

from woodbury.kernels import block_sums, small_blocks
from woodbury.kernels.lanes import LANES

SIZES = [1, 2, 3, 7, 16, 50, 64, 100, 128]
BLOCKS = [1, LANES, LANES + 3]
SHARE = 1e-14


def packed(matrices: Tensor) -> Tensor:
    rows, columns = torch.tril_indices(*matrices.shape[1:])
    return matrices[:, rows, columns]


def definite(count: int, size: int) -> Tensor:
    rows = normal(count, size, size + 2) / size**0.5
    return (rows @ rows.mT).float()


def damped(matrices: Tensor) -> Tensor:
    return matrices.double() + 0.1 * torch.eye(matrices.shape[1], dtype=torch.float64)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("chunks", [(1,), (2, 3), (24,)])
def test_products_are_added_to_the_triangles_of_their_blocks(
    size: int, chunks: tuple[int, ...]
) -> None:
    count, first, m = 5, 11, sum(chunks)
    rows = normal(m, first + count * size + 3).float()
    before, scale = normal(count, size * (size + 1) // 2, seed=1).float(), normal(m, seed=2).float()
    # Others lie around the triangles, which no kernel may touch.
    room = torch.full((count + 2, before.shape[1]), torch.nan)
    room[1:-1] = before
    block_sums.add_products(list(rows.split(chunks)), first, size, room[1:-1], scale)
    columns = scale[:, None, None] * rows[:, first : first + count * size].view(m, count, size)
    truth = torch.einsum("mbi,mbj->bij", columns.double(), columns.double())
    assert room[0].isnan().all()
    assert room[-1].isnan().all()
    allowed = 1e-5 * (1 + m)
    torch.testing.assert_close(room[1:-1].double(), before + packed(truth), rtol=0, atol=allowed)


@pytest.mark.parametrize("length", [1, 6, 33])
def test_shorter_blocks_leave_the_other_rows_of_their_triangles_alone(length: int) -> None:
    rows, triangles = normal(3, 2 * length).float(), torch.zeros(2, 50 * 51 // 2)
    block_sums.add_products([rows], 0, length, triangles)
    columns = rows.view(3, 2, length)
    inside = length * (length + 1) // 2
    truth = packed(torch.einsum("mbi,mbj->bij", columns, columns))
    torch.testing.assert_close(triangles[:, :inside], truth)
    assert not triangles[:, inside:].any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_inverse_diagonals_and_products(size: int, blocks: int) -> None:
    matrices, vectors = definite(blocks, size), normal(blocks, size, seed=1)
    triangles = packed(matrices)
    truth = torch.linalg.inv(damped(matrices)).diagonal(dim1=1, dim2=2)
    found = small_blocks.inverse_diagonals(triangles, size, 0.1, SHARE)
    assert found is not None
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=0)
    truth = (matrices.double() @ vectors[..., None])[..., 0]
    found = small_blocks.products(triangles, size, vectors)
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("sloped", [False, True])
def test_solves_of_kept_weights(size: int, blocks: int, sloped: bool) -> None:
    matrices, keep = definite(blocks, size), normal(blocks, size, seed=1) > 0
    removed = normal(blocks, size, seed=2).masked_fill(keep, 0)
    slopes = normal(blocks, size, seed=3) if sloped else None
    found = small_blocks.compensated(packed(matrices), size, 0.1, SHARE, keep, removed, slopes)
    assert found is not None
    assert not found[~keep].any()
    whole = damped(matrices)
    force = (whole @ removed[..., None])[..., 0] - (0 if slopes is None else slopes)
    for block in range(blocks):
        kept = keep[block]
        truth = torch.linalg.solve(whole[block][kept][:, kept], force[block][kept])
        torch.testing.assert_close(found[block][kept], truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("which", [0, LANES, LANES + 2])
def test_a_pivot_that_is_not_resolved_is_told(which: int) -> None:
    triangles = packed(torch.eye(5).expand(LANES + 3, 5, 5)).clone()
    assert small_blocks.inverse_diagonals(triangles, 5, 1e-20, SHARE) is not None
    triangles[which, 1] = 1  # the first two rows are equal
    assert small_blocks.inverse_diagonals(triangles, 5, 1e-20, SHARE) is None
    keep, removed = torch.ones(LANES + 3, 5) > 0, torch.zeros(LANES + 3, 5)
    assert small_blocks.compensated(triangles, 5, 1e-20, SHARE, keep, removed) is None
    keep[which, 0] = False  # what is left is resolved
    assert small_blocks.compensated(triangles, 5, 1e-20, SHARE, keep, removed) is not None


def test_packed_blocks_give_their_matrices() -> None:
    matrices = definite(4, 9)
    blocks = PackedBlocks(packed(matrices), 9)
    assert torch.equal(blocks.matrices(slice(1, 3), torch.float64), matrices[1:3].double())
    some = torch.tensor([3, 0])
    assert torch.equal(blocks.matrices(some, torch.float32), matrices[some])
    assert torch.equal(blocks.diagonal(), matrices.diagonal(dim1=1, dim2=2))


@pytest.mark.parametrize("missing", ["numba", "woodbury.kernels.small_blocks"])
def test_torch_sums_blocks_without_numba(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loading._imported.cache_clear()
    monkeypatch.setitem(sys.modules, missing, None)
    if missing == "numba":
        monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(loading, "MIN_PRODUCTS", 0)
    fisher = summed_blocks([normal(3, 8).float()], (4, 4), 0.1)
    loading._imported.cache_clear()
    assert isinstance(fisher.curvature, SymmetricBlocks)


def test_little_work_loads_no_kernels() -> None:
    fisher = summed_blocks([normal(3, 100).float()], (50, 50), 0.1)
    assert isinstance(fisher.curvature, SymmetricBlocks)
