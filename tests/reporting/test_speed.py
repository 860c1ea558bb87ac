"""The page of woodbury speed: times as bars, what is fastest, and what FLOPs do not say."""

from __future__ import annotations

import pytest

from woodbury.reporting.page import Code
from woodbury.reporting.speed import Left, batch_table, fastest, speed_page
from woodbury.runtime.api import LayerChoice
from woodbury.runtime.speeds import Speed

WAYS = [
    Speed("torch, dense", 2e-3),
    Speed("onnxruntime, dense", None, note="is not installed."),
    Speed("woodbury, sparse", 5e-4),
]
LEFT = Left(weights=100, weights_before=1000, flops=200.0, flops_before=1000.0)


def test_bars_are_as_long_as_the_times() -> None:
    grid = batch_table(WAYS, 4)
    assert grid.cells == (
        ("torch, dense", "2.00", "1.00 ×"),
        ("onnxruntime, dense", "–", "–"),
        ("woodbury, sparse", "0.50", "4.00 ×"),
    )
    assert [mark and mark.end for mark in grid.marks[1]] == [1.0, None, 0.25]
    assert grid.best == {(2, 0), (2, 1), (2, 2)}
    assert "onnxruntime, dense: is not installed." in grid.note


def test_the_fastest_way_comes_first_where_something_was_timed() -> None:
    figure = fastest(WAYS, 4)
    assert figure is not None
    assert (figure.value, figure.remark) == ("4.00 ×", "woodbury, sparse")
    lost = [Speed(way.way, None) for way in WAYS]
    assert fastest(lost, 4) is None and not batch_table(lost, 4).best


@pytest.mark.parametrize("ways", [WAYS, [Speed("torch, dense", None, note="It fails.")]])
def test_the_page_says_what_flops_do_not(ways: list[Speed]) -> None:
    layers = [LayerChoice("fc", (10, 10), 10, "the dense product is faster here.")]
    settings = {"model": "pruned", "threads": 1}
    page = speed_page({1: ways, 16: ways}, [layers] * 2, LEFT, settings, [Code("Again:", "x")])
    text = page.html()
    assert "20.0 % of the FLOPs are left, which a kernel gains from only where" in text
    assert "no saving by themselves" in text and "by 1 thread." in text
    assert [grid.title for grid in page.folded][:2] == ["Layers at batch 1", "Layers at batch 16"]
    assert "90.0 %" in text and 'class="prose"' in text
