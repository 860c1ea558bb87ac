"""What the reader sees: tables, a picture, a page that needs nothing beside it."""

from __future__ import annotations

import builtins
import html.parser
import io
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from woodbury import report
from woodbury.comparison import Result
from woodbury.errors import WoodburyError
from woodbury.space import ParameterSpace

TABLE = {"magnitude": (0.95, 0.5), "M-FAC <joint>": (0.97, 0.9), "[red]WoodFisher[/]": (0.97, 0.8)}


def results(seeds: int = 2) -> list[Result]:
    return [
        Result(name, sparsity, sparsity, seed, score + 0.01 * seed, 0.1, 0.3, None, 0.2, 1.5, 100.0, None, {})
        for seed in range(seeds)
        for name, scores in TABLE.items()
        for sparsity, score in zip((0.5, 0.975), scores, strict=True)
    ]


def printed(grid: report.Grid, width: int = 80) -> str:
    text = io.StringIO()
    Console(file=text, width=width).print(grid.rich())
    return text.getvalue()


def test_accuracies_are_means_and_spreads_with_the_best_bold() -> None:
    grid = report.accuracies(results(), dense=0.98)
    assert grid.header == ("method", "50 %", "97.5 %")
    assert grid.cells[0] == ("magnitude", "95.5 ± 0.5", "50.5 ± 0.5")
    assert grid.best == {(1, 1), (2, 1), (1, 2)}
    assert "98.0" in grid.title and "population standard deviation over 2" in grid.note
    alone = report.accuracies(results(seeds=1), digits=2)
    assert alone.cells[0] == ("magnitude", "95.00", "50.00") and not alone.note


def test_seven_sparsities_fit_into_eighty_columns() -> None:
    header = ("method", *("90 %" for _ in range(7)))
    grid = report.Grid("t", header, (("diagonal Fisher", *("97.1 ± 0.0" for _ in range(7))),), tight=True)
    (row,) = (line for line in printed(grid).splitlines() if "diagonal" in line)
    assert row.count("97.1±0.0") == 7


def test_names_are_text_and_never_markup() -> None:
    assert "[red]WoodFisher[/]" in printed(report.accuracies(results()), 120)
    assert "M-FAC &lt;joint&gt;" in report.accuracies(results()).html()


def test_layers_say_what_fell_where() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 5))
    space = ParameterSpace.of(model, min_ndim=2)
    keep = torch.ones(300, dtype=torch.bool)
    keep[:150] = False
    grid = report.layers(space.restrict(keep))
    assert grid.cells == (
        ("0.weight", "200", "50", "75.00 %"),
        ("1.weight", "100", "100", "0.00 %"),
        ("all", "300", "150", "50.00 %"),
    )


def test_costs_name_each_method_once() -> None:
    grid = report.costs(results())
    assert [row[0] for row in grid.cells] == ["magnitude", "", "M-FAC <joint>", "", "[red]WoodFisher[/]", ""]
    assert grid.cells[0][1:] == ("50 %", "–", "–", "0.2", "1.50", "100")


class Page(html.parser.HTMLParser):
    """Checks that tags are balanced and collects what is linked."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.links += [value for name, value in attrs if name in ("src", "srcset", "href")]
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_beside_it(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    light, dark = (report.picture(results(), dense=0.98, dark=dark) for dark in (False, True))
    assert light.startswith(b"\x89PNG") and dark.startswith(b"\x89PNG") and light != dark
    settings = report.facts("Settings", {"damping": 1e-3, "seeds": [0, 1], "name": "<b>"})
    parts = [
        report.embedded(light, dark, 'a "picture"'),
        report.accuracies(results()).html(),
        settings.html(folded=True),
    ]
    report.write_page(tmp_path / "r.html", "Title & <more>", "lead", parts)
    text = (tmp_path / "r.html").read_text("utf-8")
    page = Page(text)
    assert (
        not page.open and len(page.links) == 2 and all(link.startswith("data:image/png;base64,") for link in page.links)
    )
    assert "Title &amp; &lt;more&gt;" in text and "&lt;b&gt;" in text and "<b>" not in text
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


def test_without_matplotlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    there = builtins.__import__

    def without(name: str, *args: Any, **given: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return there(name, *args, **given)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(WoodburyError, match=r"pip install 'woodbury\[demo\]'"):
        report.picture(results())


@given(st.lists(st.floats(0, 100), min_size=1, max_size=9), st.floats(0.1, 20))
def test_labels_are_spread_out_and_keep_their_order(values: list[float], gap: float) -> None:
    places = report.spread_out(values, gap)
    order = sorted(range(len(values)), key=values.__getitem__)
    steps = [places[b] - places[a] for a, b in itertools.pairwise(order)]
    assert all(step >= gap * (1 - 1e-6) - 1e-9 for step in steps)
    assert sum(places) == pytest.approx(sum(values), abs=1e-6)


def test_labels_far_apart_stay() -> None:
    assert report.spread_out([10, 50, 90], 5) == [10, 50, 90]


def test_percentages_are_as_long_as_they_need_be() -> None:
    assert [report.percent(f) for f in (0.5, 0.975, 0.29, 0)] == ["50 %", "97.5 %", "29 %", "0 %"]
