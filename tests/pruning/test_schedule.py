"""Schedules are increasing lists that end exactly at the sparsity asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from woodbury.errors import WoodburyError
from woodbury.pruning.schedule import geometric, one_shot, polynomial

SPARSITY = st.floats(0, 0.99)


@given(ends=st.tuples(SPARSITY, SPARSITY).map(sorted), count=st.integers(1, 40))
def test_every_schedule_rises_to_the_sparsity(ends: list[float], count: int) -> None:
    start, end = ends
    for schedule in (
        geometric(end, count, start),
        polynomial(end, count, start),
        polynomial(end, count, start, 1.0),
    ):
        assert len(schedule) == count
        assert schedule[-1] == end
        for before, after in zip([start, *schedule], schedule, strict=False):
            assert after >= before - 1e-12
        assert all(0 <= sparsity < 1 for sparsity in schedule)


def test_geometric_stages_keep_the_same_fraction() -> None:
    assert geometric(0.875, 3) == pytest.approx([0.5, 0.75, 0.875])
    assert geometric(0.9, 2, start=0.6) == pytest.approx([0.8, 0.9])


def test_polynomials() -> None:
    assert polynomial(0.8, 4, power=1.0) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert polynomial(0.8, 2) == pytest.approx([0.7, 0.8])  # 0.8 (1 − ½³)
    assert polynomial(0.8, 2, start=0.4) == pytest.approx([0.75, 0.8])


def test_one_shot() -> None:
    assert one_shot(0.3) == [0.3]
    assert one_shot(0) == [0]


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda: one_shot(1.0), r"in \[0, 1\)"),
        (lambda: one_shot(-0.1), r"in \[0, 1\)"),
        (lambda: one_shot(float("nan")), r"in \[0, 1\)"),
        (lambda: geometric(90, 3), "sparsity is 90"),
        (lambda: geometric("0.9", 3), "sparsity is 0.9: it is"),  # type: ignore[arg-type]
        (lambda: geometric(0.5, 0), "0 stages"),
        (lambda: geometric(0.5, 3, start=0.6), "must not fall"),
        (lambda: geometric(0.5, 3, start=1.0), r"in \[0, 1\)"),
        (lambda: polynomial(0.5, 0), "give 1 to 100,000"),
        (lambda: polynomial(0.5, 2, power=0.0), "power is 0.0"),
        (lambda: polynomial(0.5, 3, start=0.6), "must not fall"),
    ],
)
def test_bad_input_is_refused(act, says: str) -> None:
    with pytest.raises(WoodburyError, match=says):
        act()
