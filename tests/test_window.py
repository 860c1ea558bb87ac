"""Window: the last m gradients, whatever comes."""

from __future__ import annotations

import dense
import pytest
import torch

from woodbury.errors import WoodburyError
from woodbury.fisher.window import Window


def stream(count: int, d: int = 6) -> torch.Tensor:
    return torch.randn(count, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 11])
def test_holds_the_last_gradients_scaled_by_those_seen(count: int) -> None:
    window, rows = Window(4, 6, 0.1, dtype=torch.float64), stream(count)
    for row in rows:
        assert window.push(row)
    torch.testing.assert_close(window.rows[window.newest], rows[-1])
    truth = dense.low_rank(rows[-4:], 0.1)
    v = stream(1)[0]
    torch.testing.assert_close(window.fisher() @ v, truth @ v)
    torch.testing.assert_close(window.fisher().solve(v), torch.linalg.solve(truth, v))


def test_a_gradient_that_is_not_finite_stays_out() -> None:
    window, rows = Window(4, 6, 0.1, dtype=torch.float64), stream(3)
    for row in rows:
        window.push(row)
    before = window.fisher().solve(rows[0])
    for bad in (float("nan"), float("inf")):
        assert not window.push(torch.full((6,), bad, dtype=torch.float64))
    assert (window.skipped, window.seen) == (2, 3)
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
    torch.testing.assert_close(second.fisher().solve(rows[0]), first.fisher().solve(rows[0]), rtol=0, atol=0)


def test_half_precision_rows() -> None:
    window, rows = Window(4, 6, 0.1, dtype=torch.bfloat16), stream(5).float()
    for row in rows:
        window.push(row)
    truth = dense.low_rank(rows[-4:].bfloat16(), 0.1)
    torch.testing.assert_close((window.fisher() @ rows[0]).double(), truth @ rows[0].double(), rtol=1e-2, atol=1e-2)


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
