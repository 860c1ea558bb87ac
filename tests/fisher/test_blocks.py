"""Blocks of rows: two forms of one matrix, and groups that lie across parts."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import dense
from support.random import normal
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher
from woodbury.fisher.block_diagonal import BlockDiagonal
from woodbury.fisher.blocks_of_rows import dense_blocks, gathered, summed_blocks
from woodbury.fisher.dense import Dense
from woodbury.fisher.diagonal import Diagonal
from woodbury.fisher.kronecker.operator import Kronecker
from woodbury.fisher.lowrank import LowRank
from woodbury.limits import Limits
from woodbury.linalg.precision import wide_dtype
from woodbury.linalg.symmetric_blocks import SymmetricBlocks

DAMPING = 0.04


def both_forms(rows: Tensor, sizes: list[int], weights: Tensor | None) -> tuple[Fisher, Fisher]:
    primal = dense_blocks(rows, sizes, DAMPING, weights)
    assert isinstance(primal, Dense)  # short blocks
    return primal, BlockDiagonal(
        tuple(LowRank(part, DAMPING, weights) for part in rows.split(sizes, dim=1))
    )


@settings(deadline=None)  # a clock on a loaded machine finds no error
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    m=st.integers(1, 5),
    weighted=st.booleans(),
)
def test_primal_and_dual_are_the_same_matrix(sizes: list[int], m: int, weighted: bool) -> None:
    rows, weights = normal(m, sum(sizes)), normal(m, seed=1).abs() + 0.1 if weighted else None
    truth = dense.blocks_only(dense.low_rank(rows, DAMPING, weights), sizes)
    v, eye = normal(sum(sizes), seed=2), torch.eye(sum(sizes), dtype=torch.float64)
    for fisher in both_forms(rows, sizes, weights):
        torch.testing.assert_close(fisher @ eye, truth)
        torch.testing.assert_close(fisher.solve(v), torch.linalg.solve(truth, v))
        torch.testing.assert_close(fisher.inverse_diagonal(), torch.linalg.inv(truth).diagonal())


@pytest.mark.parametrize(
    ("m", "sizes", "form"),
    [
        (1000, (50,) * 4, Dense),  # WoodFisher's usual blocks
        (2, (200, 200), BlockDiagonal),  # few rows, long blocks
        (2, (128, 128), Dense),
        (400, (200, 200), Dense),
        (400, (512, 512), Dense),  # half of the seconds of the other form, a sixth of the bytes
        (400, (1024,), BlockDiagonal),
    ],
)
def test_the_cheaper_form_is_chosen(m: int, sizes: tuple[int, ...], form: type) -> None:
    assert isinstance(dense_blocks(normal(m, sum(sizes)), sizes, DAMPING), form)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("m", "sizes"), [(9, (3, 3, 2)), (2, (140, 140))])
def test_both_forms_return_the_dtype_of_the_rows(
    dtype: torch.dtype, m: int, sizes: tuple[int, ...]
) -> None:
    rows, wide = normal(m, sum(sizes)).to(dtype), wide_dtype(dtype)
    fisher = dense_blocks(rows, sizes, DAMPING)
    assert isinstance(fisher, Dense) == (m == 9)
    truth = dense.blocks_only(dense.low_rank(rows, DAMPING), sizes)
    keep, v = torch.arange(sum(sizes)) % 3 != 0, normal(sum(sizes), seed=2).to(wide)
    groups = torch.tensor([[0, 1]])
    for operator, matrix, w in (
        (fisher, truth, v),
        (fisher.restrict(keep), truth[keep][:, keep], v[keep]),
    ):
        results = [
            operator @ w,
            operator.solve(w),
            operator.diagonal(),
            operator.inverse_diagonal(),
            operator.inverse_blocks(groups),
        ]
        assert {result.dtype for result in results} == {operator.dtype} == {wide}
        torch.testing.assert_close(
            results[1].double(), torch.linalg.solve(matrix, w.double()), rtol=1e-4, atol=1e-4
        )
    assert (
        fisher.compensate(keep, v.masked_fill(keep, 0)).dtype
        == wide
        == fisher.with_damping(1.0).dtype
    )


def test_many_blocks_are_worked_on_a_few_at_a_time() -> None:
    sizes, rows = [3] * 1500 + [2] * 10, normal(4, 4520)  # more than one batch of blocks
    fisher, v = dense_blocks(rows, sizes, DAMPING), normal(4520, seed=1)
    dual = both_forms(rows, sizes, None)[1]
    torch.testing.assert_close(fisher.solve(v), dual.solve(v))
    torch.testing.assert_close(fisher.inverse_diagonal(), dual.inverse_diagonal())
    groups = torch.tensor([[0, 1], [4496, 4497], [4498, 4519], [0, 4500]])
    torch.testing.assert_close(fisher.inverse_blocks(groups), dual.inverse_blocks(groups))


@pytest.mark.parametrize("removed_part", [slice(0, 0), slice(0, 4095), slice(4095, None)])
def test_weights_are_removed_from_many_blocks_a_few_at_a_time(removed_part: slice) -> None:
    sizes, rows = [3] * 1500 + [2] * 10, normal(4, 4520)  # 1365 blocks of three in the first batch
    fisher, dual = both_forms(rows, sizes, None)
    keep, v = normal(4520, seed=1) > 0, normal(4520, seed=2)
    keep[removed_part] = False
    removed = v.masked_fill(keep, 0)
    torch.testing.assert_close(fisher.compensate(keep, removed), dual.compensate(keep, removed))
    torch.testing.assert_close(
        fisher.compensate(keep, removed, v), dual.compensate(keep, removed, v)
    )
    torch.testing.assert_close(fisher.conditional_curvature(keep), dual.conditional_curvature(keep))
    torch.testing.assert_close(
        fisher.restrict(keep).solve(v[keep]), dual.restrict(keep).solve(v[keep])
    )


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (
            lambda: dense_blocks(normal(3, 10), (5, 4), DAMPING),
            "Blocks of 9 weights in all cannot tile rows of 10",
        ),
        (lambda: dense_blocks(normal(3, 10), (5, 6), DAMPING), "cannot tile"),
        (lambda: dense_blocks(normal(3, 10), (5, 0, 5), DAMPING), "cannot tile"),
        (lambda: dense_blocks(normal(3, 10), (12, -2), DAMPING), "cannot tile"),
        (lambda: dense_blocks(normal(3, 10), (), DAMPING), "cannot tile"),
        (lambda: dense_blocks(normal(3, 10), (5, 5), 0.0), "damping is 0"),
        (lambda: dense_blocks(normal(2, 400), (200, 200), -1.0), "damping is -1"),
        (lambda: dense_blocks(normal(3, 10) / 0, (5, 5), DAMPING), "rows is not finite"),
        (lambda: dense_blocks(normal(3, 10), (5, 5), DAMPING, torch.ones(4)), r"must be \(3,\)"),
        (lambda: dense_blocks(normal(3, 10), (5, 5), DAMPING, -torch.ones(3)), "positive"),
        (lambda: BlockDiagonal(()), "no parts"),
        (
            lambda: BlockDiagonal(
                (Diagonal(torch.ones(2), 1), Diagonal(torch.ones(2).double(), 1))
            ),
            "differ in dtype",
        ),
    ],
)
def test_bad_input_is_named(act, says: str) -> None:
    with pytest.raises(WoodburyError, match=says):
        act()


@pytest.mark.parametrize("shape", [(0, 10), (10,)])
def test_rows_of_the_wrong_shape_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(WoodburyError, match="rows have shape"):
        dense_blocks(torch.zeros(shape), (5, 5), DAMPING)


def mixed() -> tuple[BlockDiagonal, Tensor]:
    left, right = (a @ a.mT for a in (normal(2, 2), normal(3, 3)))
    parts: list[Fisher] = [
        LowRank(normal(2, 4), DAMPING),
        Diagonal(normal(3).square(), 2 * DAMPING),
        Kronecker(left, right, DAMPING),
        Dense(torch.stack([left, left + 1]), DAMPING),
    ]
    matrix = torch.block_diag(*(part @ torch.eye(part.d, dtype=torch.float64) for part in parts))
    return BlockDiagonal(tuple(parts)), matrix


@pytest.mark.parametrize("size", [1, 2, 3])
def test_groups_may_lie_across_parts(size: int) -> None:
    fisher, matrix = mixed()
    groups = torch.tensor(list(combinations(range(len(matrix)), size)))
    groups = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(0))].flip(1)
    torch.testing.assert_close(fisher.inverse_blocks(groups), dense.inverse_blocks(matrix, groups))


def test_parts_of_which_nothing_is_kept_vanish() -> None:
    fisher, matrix = mixed()
    keep = torch.ones(fisher.d, dtype=torch.bool)
    keep[4:7] = False
    keep[0] = False
    smaller, v = fisher.restrict(keep), normal(fisher.d - 4)
    assert isinstance(smaller, BlockDiagonal)
    assert [part.d for part in smaller.parts] == [3, 6, 4]
    torch.testing.assert_close(smaller.solve(v), torch.linalg.solve(matrix[keep][:, keep], v))
    removed = normal(fisher.d).masked_fill(keep, 0)
    torch.testing.assert_close(
        fisher.compensate(keep, removed), dense.compensate(matrix, keep, removed)
    )


def test_damping_is_the_smallest_of_the_parts_and_is_set_for_all() -> None:
    fisher, matrix = mixed()
    assert fisher.damping == DAMPING
    shift = torch.full((fisher.d,), 0.5 - DAMPING, dtype=torch.float64)
    shift[4:7] -= DAMPING
    torch.testing.assert_close(fisher.with_damping(0.5).diagonal(), matrix.diagonal() + shift)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_worked_on_in_float32(dtype: torch.dtype) -> None:
    """1/1e-5 is beyond float16, and 1 + 1e-5 is 1 to both."""
    flat, v = torch.tensor([0.0, 1.0], dtype=dtype), torch.ones(2)
    for fisher in (
        Diagonal(flat, 1e-5),
        Dense(flat.diag(), 1e-5),
        Kronecker(torch.eye(1, dtype=dtype), flat.diag(), 1e-5),
    ):
        torch.testing.assert_close(fisher.inverse_diagonal(), torch.tensor([1e5, 1 / (1 + 1e-5)]))
        torch.testing.assert_close(
            fisher.diagonal(), torch.tensor([1e-5, 1 + 1e-5]), rtol=1e-6, atol=0
        )
        torch.testing.assert_close(fisher @ v, torch.tensor([1e-5, 1 + 1e-5]), rtol=1e-6, atol=0)
        torch.testing.assert_close(fisher.solve(v), torch.tensor([1e5, 1 / (1 + 1e-5)]))
        assert fisher.restrict(torch.tensor([True, False])).dtype == torch.float32


def test_the_joint_step_of_float32_blocks_keeps_the_digits_of_their_rows() -> None:
    """Rows that share a direction: a force rounded to float32 would cost half a percent."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(60, generator=generator) + 0.01 * torch.randn(40, 60, generator=generator)
    keep, removed = torch.rand(60, generator=generator) > 0.5, torch.randn(60, generator=generator)
    removed = removed.masked_fill(keep, 0)
    exact = dense.low_rank(rows.double(), 1e-5)
    truth = torch.linalg.solve(exact[keep][:, keep], (exact @ removed.double())[keep])
    result = dense_blocks(rows, [60], 1e-5).compensate(keep, removed)
    assert float((result - truth).norm() / truth.norm()) < 1e-6


@pytest.mark.parametrize(("share", "dtype"), [(1.0, torch.float32), (1e-4, torch.float64)])
def test_sums_are_in_float32_where_their_rounding_is_small_beside_the_damping(
    share: float, dtype: torch.dtype
) -> None:
    rows = normal(40, 120).float()
    sizes, damping = (50, 50, 20), share * 50
    fisher = summed_blocks(rows.split(7), sizes, damping)
    assert isinstance(fisher.curvature, SymmetricBlocks)
    assert fisher.curvature.dtype == dtype
    truth = dense.blocks_only(dense.low_rank(rows.double(), damping), list(sizes))
    v = normal(120, seed=1).float()
    expected = torch.linalg.solve(truth, v.double()).float()
    torch.testing.assert_close(fisher.solve(v), expected, rtol=1e-5, atol=1e-6)
    inverse = torch.linalg.inv(truth).diagonal().float()
    torch.testing.assert_close(fisher.inverse_diagonal(), inverse, rtol=1e-5, atol=0)
    assert {fisher.dtype, fisher.solve(v).dtype, fisher.logdet().__class__} == {
        torch.float32,
        float,
    }


def test_sums_are_in_float32_where_float64_has_no_room() -> None:
    rows = normal(40, 120).float()
    with Limits(memory=25_000):  # one block of 50 in float64 takes 15,000 bytes
        fisher = summed_blocks(rows.split(7), (50, 50, 20), 1e-6)
    assert isinstance(fisher.curvature, SymmetricBlocks)
    assert fisher.curvature.dtype == torch.float32


def test_sums_that_overflow_are_named() -> None:
    with pytest.raises(WoodburyError, match="sum of the blocks is not finite"):
        summed_blocks([torch.full((2, 3), 1e200, dtype=torch.float64)], (3,), 1.0)


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=8), count=st.integers(1, 6))
def test_gathered_rows_are_all_rows_in_their_order(lengths: list[int], count: int) -> None:
    rows = normal(sum(lengths), 2)
    chunks = list(gathered(rows.split(lengths), lambda first: count))
    assert torch.equal(torch.cat([torch.cat(several) for several in chunks]), rows)
    assert all(len(several) == 1 or sum(map(len, several)) <= count for several in chunks)
