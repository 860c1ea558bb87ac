"""Blocks of weights by compiled kernels, and by torch, against dense matrices in float64."""

from __future__ import annotations

import pytest
import torch
from support.random import normal
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher import Dense
from woodbury.fisher.blocks_of_rows import summed_blocks
from woodbury.kernels import loading
from woodbury.linalg.packed_blocks import PackedBlocks
from woodbury.linalg.symmetric_blocks import SymmetricBlocks

pytest.importorskip("numba", reason="the kernels need Numba")

DAMPING = 1e-2
SIZES = [(1,) * 9, (7,) * 11, (50, 50, 17, 50), (64,) * 9, (100, 3), (128,) * 3]


@pytest.fixture(params=[True, False], ids=["kernels", "torch"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param:
        monkeypatch.setattr(loading, "MIN_PRODUCTS", 0)
    return request.param


def truth(rows: Tensor, sizes: tuple[int, ...]) -> Tensor:
    rows = rows.double()
    blocks = [part.mT @ part / len(rows) for part in rows.split(sizes, dim=1)]
    return torch.block_diag(*blocks) + DAMPING * torch.eye(sum(sizes), dtype=torch.float64)


def assert_near(found: Tensor, expected: Tensor, within: float = 2e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=within, atol=within)


def made(rows: Tensor, sizes: tuple[int, ...], compiled: bool) -> Dense:
    """The blocks of rows that come 5 at a time."""
    fisher = summed_blocks(rows.split(5), sizes, DAMPING)
    assert isinstance(fisher.curvature, PackedBlocks if compiled else SymmetricBlocks)
    assert fisher.curvature.dtype == torch.float32
    return fisher


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: str(sizes[0]))
@pytest.mark.parametrize("m", [1, 37])
def test_blocks_are_those_of_a_dense_matrix(sizes: tuple[int, ...], m: int, compiled: bool) -> None:
    d = sum(sizes)
    rows = 0.3 * normal(m, d).float()
    fisher, matrix = made(rows, sizes, compiled), truth(rows, sizes)
    inverse = torch.linalg.inv(matrix)
    v = normal(d, seed=1).float()
    assert_near(fisher.diagonal().double(), matrix.diagonal())
    assert_near((fisher @ v).double(), matrix @ v.double())
    columns = normal(d, 3, seed=2).float()
    assert_near((fisher @ columns).double(), matrix @ columns.double())
    scale = float(inverse.diagonal().max())
    found = fisher.inverse_diagonal().double()
    assert_near(found / scale, inverse.diagonal() / scale)
    found = fisher.solve(v).double()
    assert_near(found / scale, inverse @ v.double() / scale)


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: str(sizes[0]))
@pytest.mark.parametrize("with_gradient", [False, True])
def test_updates_are_those_of_a_dense_matrix(
    sizes: tuple[int, ...], with_gradient: bool, compiled: bool
) -> None:
    d = sum(sizes)
    rows = 0.3 * normal(23, d).float()
    fisher, matrix = made(rows, sizes, compiled), truth(rows, sizes)
    keep = normal(d, seed=3) > 0
    keep[: sizes[0]] = False  # a block without kept weights
    removed = normal(d, seed=4).float().masked_fill(keep, 0)
    gradient = normal(d, seed=5).float() if with_gradient else None
    force = matrix[keep][:, ~keep] @ removed[~keep].double()
    if gradient is not None:
        force = force - gradient[keep].double()
    expected = torch.linalg.solve(matrix[keep][:, keep], force)
    found = fisher.compensate(keep, removed, gradient).double()
    scale = float(expected.abs().max()) or 1.0
    assert_near(found / scale, expected / scale)


def test_sums_of_scaled_rows_in_halves(compiled: bool) -> None:
    rows, scale = normal(6, 24).bfloat16(), torch.arange(1.0, 7.0)
    fisher = summed_blocks([rows], (8, 8, 8), DAMPING, scale)
    expected = truth(scale[:, None].double() * rows.double(), (8, 8, 8))
    assert_near(fisher.diagonal().double(), expected.diagonal())


def test_rows_that_are_not_contiguous(compiled: bool) -> None:
    rows = normal(24, 6).float().mT
    fisher = summed_blocks([rows], (8, 8, 8), DAMPING)
    expected = truth(rows, (8, 8, 8))
    assert_near(fisher.diagonal().double(), expected.diagonal())


def test_kernels_sum_as_torch_does_with_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "MIN_PRODUCTS", 0)
    monkeypatch.setattr("woodbury.fisher.block_layout.PACKED_COLUMNS_AT_ONCE", 100)
    rows = 0.3 * normal(40, 20 * 50).float()
    found = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        fisher = made(rows, (50,) * 20, True)
        found.append((fisher.inverse_diagonal(), fisher.solve(rows[0])))
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found for a, b in zip(found[0], other, strict=True))


def test_groups_of_weights_and_restrictions_of_packed_blocks(compiled: bool) -> None:
    sizes = (9, 9, 4)
    rows = normal(30, 22).float()
    fisher, matrix = made(rows, sizes, compiled), truth(rows, sizes)
    groups = torch.tensor([[0, 1], [8, 9], [20, 21]])
    inverse = torch.linalg.inv(matrix)
    expected = inverse[groups[:, :, None], groups[:, None, :]]
    assert_near(fisher.inverse_blocks(groups).double(), expected, 1e-3)
    keep = normal(22, seed=1) > 0
    expected = torch.linalg.inv(matrix[keep][:, keep]).diagonal()
    found = fisher.restrict(keep).inverse_diagonal().double()
    assert_near(found, expected, 1e-3)


def test_a_damping_that_is_lost_in_rounding_is_refused(compiled: bool) -> None:
    rows = 1e8 * torch.ones(1, 20)
    fisher = summed_blocks([rows], (10, 10), 1e-12)
    with pytest.raises(WoodburyError, match="lost in rounding"):
        fisher.inverse_diagonal()
    with pytest.raises(WoodburyError, match="lost in rounding"):
        fisher.compensate(torch.arange(20) > 3, torch.zeros(20))


def test_blocks_that_rounding_made_indefinite_are_factored_by_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "MIN_PRODUCTS", 0)
    triangles = torch.zeros(12, 6)
    triangles[:, [0, 2, 5]] = 1.0
    triangles[5] = torch.tensor([1.0, 1.0 + 1e-3, 1.0, 0.0, 0.0, 1.0])  # eigenvalue −1e-3
    blocks = PackedBlocks(triangles, 3)
    fisher = Dense(blocks, 1e-4)
    assert blocks.inverse_diagonals(slice(0, 12), 1e-4, 1e-14) is None
    found = fisher.inverse_diagonal().view(12, 3)
    assert_near(found[0], torch.full((3,), 1 / (1 + 1e-4)))
    assert bool((found[5, :2] > 1e3).all())
