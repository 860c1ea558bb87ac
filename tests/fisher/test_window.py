"""Window: the last m gradients, whatever comes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import dense
from support.random import normal
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from woodbury.errors import WoodburyError
from woodbury.fisher.window import Window
from woodbury.fisher.window_estimates import product_error
from woodbury.linalg.row_products import COLUMNS_PER_PRODUCT, products
from woodbury.linalg.sliding_inverse import REBUILD_EVERY


def stream(count: int, d: int = 6) -> torch.Tensor:
    """Gradients as they come, one a row."""
    return normal(count, d, seed=1)


def newest_solved(window: Window, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """F⁻¹ of the newest gradient by the window, and the truth from all rows by a float64 solve."""
    last = rows[-len(window.rows) :].double()
    damped = last @ last.T + len(last) * window.damping * torch.eye(len(last), dtype=torch.float64)
    return window.solve_newest().double(), len(last) * last.T @ torch.linalg.inv(damped)[:, -1]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 11])
def test_the_fisher_is_that_of_the_last_gradients_scaled_by_their_number(count: int) -> None:
    window, rows = Window(4, 6, 0.1, dtype=torch.float64), stream(count)
    for row in rows:
        assert window.push(row)
    torch.testing.assert_close(window.rows[window.newest_index], rows[-1])
    truth = dense.low_rank(rows[-4:], 0.1)
    v = stream(1)[0]
    torch.testing.assert_close(window.fisher() @ v, truth @ v)
    torch.testing.assert_close(window.fisher().solve(v), torch.linalg.solve(truth, v))


def test_a_gradient_that_is_not_finite_is_left_out() -> None:
    window, rows = Window(4, 6, 0.1, dtype=torch.float64), stream(3)
    for row in rows:
        window.push(row)
    before = window.fisher().solve(rows[0])
    for bad in (float("nan"), float("inf")):
        assert not window.push(torch.full((6,), bad, dtype=torch.float64))
    assert (window.skipped, window.num_rows) == (2, 3)
    torch.testing.assert_close(window.fisher().solve(rows[0]), before, rtol=0, atol=0)


def test_resumes_bit_for_bit() -> None:
    first, rows = Window(4, 6, 0.1), stream(10).float()
    for row in rows[:6]:
        first.push(row)
    second = Window(4, 6, 0.7)
    second.load_state_dict(first.state_dict())
    for row in rows[6:]:
        first.push(row)
        second.push(row)
    torch.testing.assert_close(
        second.fisher().solve(rows[0]), first.fisher().solve(rows[0]), rtol=0, atol=0
    )


def test_half_precision_rows() -> None:
    window, rows = Window(4, 6, 0.1, dtype=torch.bfloat16), stream(5).float()
    for row in rows:
        window.push(row)
    truth = dense.low_rank(rows[-4:].bfloat16(), 0.1)
    torch.testing.assert_close(
        (window.fisher() @ rows[0]).double(), truth @ rows[0].double(), rtol=1e-2, atol=1e-2
    )


def test_bad_input_is_named() -> None:
    with pytest.raises(WoodburyError, match="at least 1"):
        Window(0, 6)
    with pytest.raises(WoodburyError, match="damping"):
        Window(2, 6, 0.0)
    window = Window(2, 6)
    with pytest.raises(WoodburyError, match="empty"):
        window.fisher()
    with pytest.raises(WoodburyError, match="6 weights"):
        window.push(torch.ones(5))
    with pytest.raises(WoodburyError, match="lacks"):
        window.load_state_dict({"rows": torch.ones(2, 6)})
    with pytest.raises(WoodburyError, match="make them equal"):
        window.load_state_dict(Window(3, 6).state_dict())
    other = Window(2, 6, dtype=torch.bfloat16)
    with pytest.raises(WoodburyError, match="bfloat16"):
        window.load_state_dict(other.state_dict())
    with pytest.raises(WoodburyError, match="empty"):
        window.solve_newest()


@pytest.mark.parametrize("capacity", [1, 4, 9])
def test_the_newest_gradient_is_divided_by_the_fisher(capacity: int) -> None:
    window, rows = Window(capacity, 6, 0.1, dtype=torch.float64), stream(25)
    for step, row in enumerate(rows):
        window.push(row)
        truth = dense.low_rank(rows[max(0, step + 1 - capacity) : step + 1], window.damping)
        torch.testing.assert_close(window.solve_newest(), torch.linalg.solve(truth, row))
        if step == 15:
            window.damping = 0.02  # a schedule
    torch.testing.assert_close(
        window.solve_newest(rows[3]), torch.linalg.solve(truth, rows[-1] + rows[3])
    )


def test_the_inverse_stays_exact_over_hundreds_of_replacements() -> None:
    """Rows that are ill-conditioned, and mostly replaced between two rebuilds of the inverse."""
    window, rows = Window(8, 40, 1e-7, dtype=torch.float64), stream(3 * REBUILD_EVERY, 40)
    rows, updates = rows * torch.logspace(0, -3, 40, dtype=torch.float64), []
    for step, row in enumerate(rows):
        window.push(row)
        result, truth = newest_solved(window, rows[: step + 1])
        updates.append(window.inverse.updates)
        assert float((result - truth).norm() / truth.norm()) < 1e-11
    assert max(updates) == REBUILD_EVERY and updates.count(0) < 8


def test_an_inverse_that_cannot_be_updated_is_rebuilt_at_each_step() -> None:
    """More rows than weights, and next to no damping: every Schur complement drowns in rounding."""
    window, rows = Window(8, 6, 1e-8, dtype=torch.float64), stream(100)
    for step, row in enumerate(rows):
        window.push(row)
        result, truth = newest_solved(window, rows[: step + 1])
        assert float((result - truth).norm() / truth.norm()) < 1e-6


def test_an_inverse_that_is_wrong_is_rebuilt() -> None:
    window, rows = Window(4, 6, 0.1, dtype=torch.float64), stream(12)
    for step, row in enumerate(rows):
        window.push(row)
        if step == 8:
            assert window.inverse.matrix is not None and window.inverse.updates > 0
            window.inverse.matrix.mul_(3)
        torch.testing.assert_close(*newest_solved(window, rows[: step + 1]))


def test_pushes_between_solves_are_not_lost() -> None:
    window, rows = Window(4, 6, 0.1, dtype=torch.float64), stream(30)
    for step, row in enumerate(rows):
        window.push(row)
        if step % 5 == 0:
            torch.testing.assert_close(*newest_solved(window, rows[: step + 1]))


@pytest.mark.parametrize("repeated", [False, True])
def test_gradients_that_vanish_or_repeat(repeated: bool) -> None:
    window, row = (
        Window(4, 6, 1e-12, dtype=torch.float64),
        stream(1)[0] if repeated else torch.zeros(6).double(),
    )
    for _ in range(12):
        window.push(row)
        assert bool(window.solve_newest().isfinite().all())
    torch.testing.assert_close(window.solve_newest(), row / (1e-12 + row @ row), rtol=1e-3, atol=0)


def test_products_are_taken_in_float64_while_float32_is_too_coarse() -> None:
    """Rows that share a direction: in float32 the answer is off by 1e-4. Later it serves again."""
    generator = torch.Generator().manual_seed(0)
    easy = torch.randn(60, 20_000, generator=generator)
    shared = torch.randn(20_000, generator=generator)
    rows = torch.cat([easy[:20], shared + 0.1 * easy[20:35], easy[35:]])
    window = Window(10, 20_000, 1e-5 * 20_000)
    switched = []
    for step, row in enumerate(rows):
        window.push(row)
        result, truth = newest_solved(window, rows[: step + 1])
        assert float((result - truth).norm() / truth.norm()) < 3e-5
        switched.append(window.pushed <= window.float64_until_push)
    assert not any(switched[:20]) and all(switched[23:35]) and not switched[-1]
    coarse = torch.stack([products(rows[20:30], row, False) for row in rows[20:30]])
    exact = torch.stack([products(rows[20:30], row, True) for row in rows[20:30]])
    torch.testing.assert_close(
        exact, rows[20:30].double() @ rows[20:30].double().T, rtol=1e-13, atol=0
    )
    assert 0 < float((coarse - exact).norm() / exact.norm()) < 1e-6


def test_only_products_in_float64_count_as_exact() -> None:
    for pushed, exact in ((stream(1)[0], 0), (stream(1), 1)):
        window = Window(1, 6, 0.1)
        window.push(pushed.float())
        assert window.float64_until_push == exact
    window, rows = Window(4, 6, 0.1), stream(4).float()
    window.push(rows)
    torch.testing.assert_close(window.gram, rows.double() @ rows.double().T, rtol=1e-14, atol=0)
    with pytest.raises(WoodburyError, match="one real number for each"):
        window.solve_newest(residuals=torch.ones(3))


@pytest.mark.parametrize("d", [1000, COLUMNS_PER_PRODUCT, 8 * COLUMNS_PER_PRODUCT])
def test_the_estimated_error_of_a_float32_product_is_not_exceeded(d: int) -> None:
    """Terms of one sign, whose partial sums are as large as they can be."""
    rows = normal(32, d).abs().float()
    lengths = rows.double().norm(dim=1)
    errors = (products(rows, rows[0], False) - products(rows, rows[0], True)) / lengths / lengths[0]
    assert 0 < float(errors.square().mean().sqrt()) < product_error(rows)


def test_measuring_changes_nothing() -> None:
    window, rows = Window(4, 6, 0.1, dtype=torch.float64), stream(7)
    for row in rows[:6]:
        window.push(row)
    before = {
        key: value.clone() if isinstance(value, torch.Tensor) else value
        for key, value in window.state_dict().items()
    }
    measured = window.measure(rows[6])
    torch.testing.assert_close(window.state_dict(), before, rtol=0, atol=0)
    window.admit(rows[6], measured)
    torch.testing.assert_close(window.gram[window.newest_index], window.rows @ rows[6])


def test_widening_adds_weights_for_which_old_gradients_are_zero() -> None:
    window, rows = Window(4, 6, 0.1, dtype=torch.float64), stream(8, 9)
    for row in rows[:5]:
        window.push(row[:6])
    window.widen(3)
    rows[:5, 6:] = 0
    for step in (5, 6, 7):
        window.push(rows[step])
        torch.testing.assert_close(*newest_solved(window, rows[: step + 1]))


def test_a_step_copies_no_window_and_makes_nothing_quadratic() -> None:
    class Largest(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            old = {
                t.untyped_storage().data_ptr()
                for t in tree_leaves((args, kwargs))
                if isinstance(t, torch.Tensor)
            }
            for t in tree_leaves(out):
                if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in old:
                    self.bytes = max(self.bytes, t.untyped_storage().nbytes())
            return out

    window, rows = Window(64, 50_000, 1.0), stream(70, 50_000).float()
    for row in rows:
        window.push(row)
    window.solve_newest()
    for exact in (False, True):
        window.float64_until_push = window.pushed + 10 if exact else 0
        with Largest() as largest:
            window.push(rows[3] + rows[5])
            window.solve_newest(rows[4])
        assert 0 < largest.bytes <= 8 * 4 * 50_000 < window.rows.nbytes / 7


def test_its_fisher_knows_that_float32_products_are_not_exact() -> None:
    """Rows that share a direction, little damping: by float32 products a solve is off by 1 %."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50, generator=generator) + 1e-3 * torch.randn(8, 50, generator=generator)
    window, damping = Window(8, 50, 1e-6), 1e-6
    for row in rows:
        window.push(row)
    fisher, v = window.fisher(), torch.randn(50, generator=generator)
    exact = rows.double().mT @ rows.double() / 8 + damping * torch.eye(50, dtype=torch.float64)
    truth = torch.linalg.solve(exact, v.double())
    assert float((fisher.solve(v) - truth).norm() / truth.norm()) < 1e-6
    assert fisher.logdet() == pytest.approx(float(torch.logdet(exact)), abs=1e-6)
