"""LowRank beyond the contract: float32 under hard conditioning, chunks, panels, halves."""

from __future__ import annotations

import pytest
import torch
from support import dense
from support.limits import Limited
from support.random import normal
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher import scaled_rows
from woodbury.fisher.lowrank import LowRank
from woodbury.linalg.gram import gram_of


def relative(result: Tensor, truth: Tensor) -> float:
    return float((result.double() - truth).norm() / truth.norm())


def rows_like_gradients(kind: str, m: int, d: int) -> Tensor:
    """float32 rows that share directions, as gradients of one network do."""
    if kind == "one shared direction":
        return (normal(1, d) + 0.1 * normal(m, d, seed=1)).float()
    if kind == "a shared offset, weights of all scales":
        return (normal(m, d) * torch.logspace(0, -3, d, dtype=torch.float64) + 0.5).float()
    spectrum = torch.logspace(0, -4, m, dtype=torch.float64)[:, None]
    return (normal(m, m) @ (spectrum * normal(m, d, seed=1))).float()


@pytest.mark.parametrize(
    ("kind", "bound"),
    [
        ("one shared direction", 1e-6),
        ("a shared offset, weights of all scales", 1e-4),
        ("a spectrum down to the damping", 1e-6),
    ],
)
def test_range_form_holds_in_float32_where_subtraction_fails(kind: str, bound: float) -> None:
    rows = rows_like_gradients(kind, 200, 4000)
    gram = rows.double() @ rows.double().mT / len(rows)
    damping = 1e-7 * float(torch.linalg.eigvalsh(gram)[-1])
    c = normal(len(rows))
    eye = torch.eye(len(rows), dtype=torch.float64)
    truth = rows.double().mT @ torch.linalg.solve(gram + damping * eye, c)
    fisher = LowRank(rows, damping)
    error = relative(fisher.solve_range(c), truth)
    assert error < bound
    assert (
        relative(fisher.solve((rows.double().mT @ c).float()), truth) > 100 * error
    )  # v itself is only float32


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("share", [1e-7, 1e-9, 1e-11])
def test_float32_rows_carry_the_joint_step_at_any_damping(
    share: float, with_gradient: bool
) -> None:
    """The increase of the loss decides: here a step off by a thousandth can cost thousands."""
    d, m = 600, 300
    rows, weights = (
        rows_like_gradients("a spectrum down to the damping", m, d),
        normal(d, seed=2).float(),
    )
    gradient = rows.mT @ normal(m, seed=4).float() / m if with_gradient else None
    damping = share * float(torch.linalg.eigvalsh(rows.double() @ rows.double().mT / m)[-1])
    fisher, matrix, keep = (
        LowRank(rows, damping),
        dense.low_rank(rows, damping),
        torch.arange(d) % 5 < 2,
    )
    removed = weights.masked_fill(keep, 0)
    slope = None if gradient is None else gradient.double()
    truth = dense.compensate(matrix, keep, removed.double(), slope)
    result = fisher.compensate(keep, removed, gradient)
    assert result.dtype == torch.float32

    def increase(step: Tensor) -> float:
        delta = -removed.double()
        delta[keep] = step.double()
        return float(0.5 * delta @ matrix @ delta + (0 if slope is None else slope @ delta))

    assert increase(result) == pytest.approx(increase(truth), rel=1e-3)
    v = normal(d, seed=3).float()
    assert relative(fisher.solve(v), torch.linalg.solve(matrix, v.double())) < 1e-4


def test_float32_inverse_diagonal_is_positive_where_the_data_determine_a_weight() -> None:
    rows = normal(60, 12).float() * 1e3
    matrix = dense.low_rank(rows, 1e-4)
    result = LowRank(rows, 1e-4).inverse_diagonal()
    assert bool((result > 0).all())
    torch.testing.assert_close(
        result.double(), torch.linalg.inv(matrix).diagonal(), rtol=1e-3, atol=0
    )


def test_column_chunks_and_row_panels_do_not_matter(limited: Limited) -> None:
    rows, v = normal(150, 40), normal(40, 2, seed=4)
    whole = LowRank(rows, 0.1)
    limited(row_columns=7)
    limited(thread_elements=1)
    chunked = LowRank(rows, 0.1)
    torch.testing.assert_close(chunked.gram, whole.gram)
    torch.testing.assert_close(chunked.inverse_diagonal(), whole.inverse_diagonal())
    torch.testing.assert_close(chunked.solve(v), whole.solve(v))
    groups = torch.arange(40).view(10, 4)
    torch.testing.assert_close(chunked.inverse_blocks(groups), whole.inverse_blocks(groups))


@pytest.mark.parametrize(("twin", "wasted"), [(3, 0), (399, 1)])
def test_rows_that_float32_cannot_tell_apart_are_found_early(
    twin: int, wasted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, asked = normal(400, 900).float(), []
    rows[twin] = rows[0]  # within the first quarter, or beyond

    def recorded(
        rows: Tensor, dtype: torch.dtype, keep: Tensor | None = None, known: int = 0
    ) -> Tensor:
        asked.append((len(rows), known, dtype))
        return gram_of(rows, dtype, keep, known)

    monkeypatch.setattr(scaled_rows, "gram_of", recorded)
    result = LowRank(rows, 1e-6).inverse_diagonal().double()
    float32 = [(100, 0, torch.float32), *[(400, 100, torch.float32)] * wasted]
    assert asked == [*float32, (400, 0, torch.float64)]
    torch.testing.assert_close(
        result, torch.linalg.inv(dense.low_rank(rows, 1e-6)).diagonal(), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rows_are_worked_on_in_float32(dtype: torch.dtype) -> None:
    rows = normal(20, 50).to(dtype)
    fisher, v = LowRank(rows, 0.1), normal(50)
    assert fisher.dtype == torch.float32
    assert (
        relative(fisher.solve(v.float()), torch.linalg.solve(dense.low_rank(rows, 0.1), v)) < 1e-4
    )


def test_range_form_is_solve_of_a_combination_of_rows() -> None:
    rows, weights, c = normal(8, 30), torch.linspace(0.5, 2, 8), normal(8, 3, seed=2)
    fisher = LowRank(rows, 0.2, weights)
    torch.testing.assert_close(fisher.solve_range(c), fisher.solve(rows.mT @ c))


def test_large_damping_is_the_identity_scaled() -> None:
    fisher, v = LowRank(normal(5, 9), 1e9), normal(9)
    torch.testing.assert_close(fisher.solve(v) * 1e9, v, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: LowRank(torch.ones(3), 0.1), r"shape \(3,\)"),
        (lambda: LowRank(torch.ones(0, 3), 0.1), "at least one row"),
        (lambda: LowRank(torch.ones(2, 3), 0.0), "damping is 0"),
        (lambda: LowRank(torch.ones(2, 3), float("inf")), "damping is inf"),
        (lambda: LowRank(torch.tensor([[1.0, 2.0], [3.0, float("nan")]]), 0.1), r"index \(1, 1\)"),
        (lambda: LowRank(torch.ones(2, 3, dtype=torch.int64), 0.1), "floating-point"),
        (lambda: LowRank(torch.ones(2, 3), 0.1, torch.tensor([1.0, 0.0])), "positive and finite"),
        (lambda: LowRank(torch.ones(2, 3), 0.1, torch.ones(3)), r"must be \(2,\)"),
        (lambda: LowRank(torch.ones(2, 3), 0.1).solve_range(torch.ones(3)), "2 rows"),
    ],
)
def test_bad_input_is_named(build, says: str) -> None:
    with pytest.raises(WoodburyError, match=says):
        build()


def test_rows_larger_than_float32_can_sum_are_still_finite() -> None:
    rows = torch.full((4, 4), 1e38)
    assert LowRank(rows, 1.0).d == 4


@pytest.mark.parametrize("big", [1e2, 1e3, 1e4])
def test_a_restriction_keeps_its_digits_when_the_removed_columns_carry_the_rows(
    big: float,
) -> None:
    rows = normal(20, 100).float()
    rows[:, :30] *= big
    keep, c = torch.arange(100) >= 30, normal(20).float()
    fisher = LowRank(rows, 0.1)
    fisher.logdet()  # the Gram matrix is known from here on
    matrix = dense.low_rank(rows[:, keep].double(), 0.1)
    result = fisher.restrict(keep).solve_range(c)
    assert (
        relative(result, torch.linalg.solve(matrix, rows[:, keep].double().mT @ c.double())) < 1e-5
    )


def test_restrictions_of_restrictions_do_not_pile_up_rounding() -> None:
    """What is subtracted step by step is as exact as what remains of the first sum."""
    rows = (normal(8, 8192) * torch.logspace(0, -6, 8192).double()).float()
    fisher, d = LowRank(rows, 1e-12), 8192
    while d > 64:
        fisher.logdet()  # the Gram matrix is known from here on
        keep = torch.arange(d) >= d // 4
        fisher, rows, d = fisher.restrict(keep), rows[:, keep], int(keep.sum())
    c, fresh = normal(8).float(), LowRank(rows, 1e-12)
    truth = torch.linalg.solve(dense.low_rank(rows.double(), 1e-12), rows.double().mT @ c.double())
    assert relative(fresh.solve_range(c), truth) < 1e-5
    assert relative(fisher.solve_range(c), truth) < 1e-5
