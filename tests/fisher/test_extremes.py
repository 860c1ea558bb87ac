"""Operators at the ends of their arithmetic, and with arguments that are none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support import dense
from support.cases import CASES, Case
from support.random import normal
from torch import Tensor

from woodbury.errors import WoodburyError, WrongType
from woodbury.fisher import Dense, Diagonal, Kronecker, LowRank, Window, dense_blocks

M, D = 12, 40


def rows_of(scale: float, m: int = M) -> Tensor:
    return (scale * normal(m, D)).float()


def relative_error(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12, 1e18, 3e19, 1e24])
def test_float32_rows_of_any_size_give_the_solution(scale: float) -> None:
    # Squares beyond 1e38 are infinite in float32.
    rows, v = rows_of(scale), normal(D, seed=1)
    damping = 1e-3 * scale**2
    inverse = torch.linalg.inv(dense.low_rank(rows.double() / scale, 1e-3, None)) / scale**2
    fisher = LowRank(rows, damping)
    try:
        assert relative_error(fisher.solve(v * scale), inverse @ v.float().double() * scale) < 1e-5
        assert relative_error(fisher.inverse_diagonal(), inverse.diagonal()) < 1e-5
    except WoodburyError as error:
        assert scale == 1e24, "float32 holds the inverse diagonal of all others"
        assert "beyond what float32 holds" in str(error)


@pytest.mark.parametrize("m", [34, 40, 60])
def test_as_many_float32_rows_as_weights_keep_their_digits(m: int) -> None:
    rows, v = rows_of(1.0, m) * torch.logspace(0, -4, D), normal(D, seed=1).float()
    damping = 1e-7 * float(rows.double().square().sum() / m)
    truth = torch.linalg.solve(dense.low_rank(rows.double(), damping, None), v.double())
    assert relative_error(LowRank(rows, damping).solve(v), truth) < 1e-6


def test_a_damping_that_rounding_swallows_is_refused_with_one_that_will_do() -> None:
    rows, v = rows_of(1.0), torch.ones(D)
    with pytest.raises(
        WoodburyError, match=r"lost in rounding .* give at least (\S+)\.$"
    ) as raised:
        LowRank(rows, 1e-20).solve(v)
    enough = float(str(raised.value).split()[-1].rstrip("."))
    assert bool(torch.isfinite(LowRank(rows, enough).solve(v)).all())
    curvature = rows.double().mT @ rows.double()
    with pytest.raises(WoodburyError, match="lost in rounding"):
        Dense(curvature, 1e-20).inverse_diagonal()
    with pytest.raises(WoodburyError, match="lost in rounding"):
        Kronecker(curvature, torch.eye(1).double(), 1e-20).solve(v)
    # What rounding does not decide needs no damping to speak of.
    full = curvature + torch.eye(D)
    truth = torch.linalg.solve(full, v.double())
    assert relative_error(Dense(full, 1e-20).solve(v), truth) < 1e-10


def wrong_vectors(d: int) -> list[Any]:
    ones = torch.ones(d)
    return [
        *("x", None, {}, [[1.0], [1.0, 2.0]], 1.0),
        *(ones * 1j, ones * float("nan"), torch.ones(d + 1), torch.ones(d, 0)),
        *(ones.to_sparse(), ones.to("meta")),
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_operator_refuses_what_is_no_argument(case: Case) -> None:
    fisher = case.build().fisher
    keep = torch.arange(fisher.d) % 2 == 0
    for v in wrong_vectors(fisher.d):
        for call in (
            lambda v=v: fisher @ v,
            lambda v=v: fisher.solve(v),
            lambda v=v: fisher.quadratic_form(v),
            lambda v=v: fisher.compensate(keep, v),
        ):
            with pytest.raises(WoodburyError):
                call()
    for mask in ("x", None, [0, 1], True, slice(2), torch.ones(fisher.d), keep[:-1]):
        with pytest.raises(WoodburyError):
            fisher.restrict(mask)  # type: ignore[arg-type]
        with pytest.raises(WoodburyError):
            fisher.conditional_curvature(mask)  # type: ignore[arg-type]
    for groups in ("x", None, 3, [[0], [0, 1]], [[-1]], [[fisher.d]], [[0.5]]):
        with pytest.raises(WoodburyError):
            fisher.inverse_blocks(groups)  # type: ignore[arg-type]
    for damping in (None, "x", True, -1.0, float("nan"), torch.ones(2), 10**400, 1j):
        with pytest.raises(WoodburyError):
            fisher.with_damping(damping)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_operator_takes_arrays_and_lists(case: Case) -> None:
    fisher = case.build().fisher
    v, keep = normal(fisher.d, seed=3), torch.arange(fisher.d) % 2 == 0
    for given in (v.numpy(), v.tolist(), v.clone().requires_grad_()):
        torch.testing.assert_close(fisher.solve(given), fisher.solve(v), rtol=0, atol=0)
    for mask in (keep.numpy(), keep.tolist()):
        found = fisher.restrict(mask).diagonal()  # type: ignore[arg-type]
        torch.testing.assert_close(found, fisher.restrict(keep).diagonal(), rtol=0, atol=0)
    torch.testing.assert_close(
        fisher.inverse_blocks([[0, 1]]),  # type: ignore[arg-type]
        fisher.inverse_blocks(torch.tensor([[0, 1]])),
        rtol=0,
        atol=0,
    )


def test_a_group_may_repeat_a_weight() -> None:
    curvature = torch.tensor([1.0, 3.0]).double()
    repeated = torch.tensor([[0, 0], [0, 1]])
    torch.testing.assert_close(
        Diagonal(curvature, 1.0).inverse_blocks(repeated),
        Dense(curvature.diag(), 1.0).inverse_blocks(repeated),
    )


def test_rows_may_require_gradients_or_be_arrays() -> None:
    rows = rows_of(1.0)
    keep = torch.arange(D) % 3 > 0
    truth = dense_blocks(rows, (30, 10), 0.1).conditional_curvature(keep)
    for given in (rows.clone().requires_grad_(), rows.numpy()):
        found = dense_blocks(given, np.array([30, 10]), 0.1).conditional_curvature(keep)
        torch.testing.assert_close(found, truth, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_several_rows_wrap_around_a_window_of_any_dtype(dtype: torch.dtype) -> None:
    window, rows = Window(5, D, 0.1, dtype=dtype), rows_of(1.0, 11)
    for part in rows.split(3):
        assert window.push(part)
    stored = rows[-5:].to(dtype).double()
    fisher = dense.low_rank(stored, 0.1, None)
    assert relative_error(
        window.solve_newest(), torch.linalg.solve(fisher, stored[-2:].mean(0))
    ) < (1e-4)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("damping", -1.0),
        ("damping", None),
        ("gram", torch.full((3, 3), float("nan")).double()),
        ("gram", torch.eye(3)),
        ("rows", torch.full((3, D), float("inf"))),
        ("rows", None),
        ("pushed", -1),
        ("pushed", 1.5),
        ("last_push_size", 7),
        ("inverse", torch.eye(2).double()),
        ("inverse_updates", "x"),
    ],
)
def test_a_window_takes_a_sound_state_or_nothing_of_it(key: str, value: Any) -> None:
    saved, window = Window(3, D, 0.1), Window(3, D, 0.2)
    for row in rows_of(1.0, 4):
        saved.push(row)
    window.push(rows_of(2.0, 1)[0])
    before = {name: str(entry) for name, entry in window.state_dict().items()}
    with pytest.raises(WoodburyError):
        window.load_state_dict(saved.state_dict() | {key: value})
    assert {name: str(entry) for name, entry in window.state_dict().items()} == before


def test_a_window_that_has_no_room_is_refused() -> None:
    with pytest.raises(WoodburyError, match="have no room"):
        Window(10**6, 10**9)
    with pytest.raises(WrongType, match="dtype is"):
        Window(2, 3, dtype="float32")  # type: ignore[arg-type]
