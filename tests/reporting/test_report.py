"""What the reader sees: tables, a picture, a page that needs nothing beside it."""

from __future__ import annotations

import builtins
import html.parser
import io
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from woodbury.errors import WoodburyError
from woodbury.estimation.recipes import mfac
from woodbury.evaluation.comparison import Result
from woodbury.model.flop_count import Flops, flops
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.pruning.api import prune
from woodbury.pruning.pruner import QUANTILES, Pruned, Pruner
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.saliencies import magnitude, obs
from woodbury.pruning.scopes import layerwise as per_layer
from woodbury.pruning.units import output_channels
from woodbury.pruning.updates import zero
from woodbury.reporting import plots, tables
from woodbury.reporting.per_layer import TensorSummary, summarize_tensors, total

TABLE = {"magnitude": (0.95, 0.5), "M-FAC <joint>": (0.97, 0.9), "[red]WoodFisher[/]": (0.97, 0.8)}


def results(seeds: int = 2) -> list[Result]:
    return [
        Result(
            name,
            sparsity,
            sparsity,
            seed,
            score + 0.01 * seed,
            0.1,
            0.3,
            None,
            0.2,
            1.5,
            100.0,
            None,
            {},
        )
        for seed in range(seeds)
        for name, scores in TABLE.items()
        for sparsity, score in zip((0.5, 0.975), scores, strict=True)
    ]


def printed(grid: tables.Grid, width: int = 80) -> str:
    text = io.StringIO()
    Console(file=text, width=width).print(grid.rich())
    return text.getvalue()


def test_accuracies_are_means_and_spreads_with_the_best_bold() -> None:
    grid = tables.accuracies(results(), dense=0.98)
    assert grid.header == ("method", "50 %", "97.5 %")
    assert grid.cells[0] == ("magnitude", "95.5 ± 0.5", "50.5 ± 0.5")
    assert grid.best == {(1, 1), (2, 1), (1, 2)}
    assert "98.0" in grid.title and "population standard deviation over 2" in grid.note
    alone = tables.accuracies(results(seeds=1), digits=2)
    assert alone.cells[0] == ("magnitude", "95.00", "50.00") and not alone.note


def test_seven_sparsities_fit_into_eighty_columns() -> None:
    header = ("method", *("90 %" for _ in range(7)))
    grid = tables.Grid(
        "t", header, (("diagonal Fisher", *("97.1 ± 0.0" for _ in range(7))),), tight=True
    )
    (row,) = (line for line in printed(grid).splitlines() if "diagonal" in line)
    assert row.count("97.1±0.0") == 7


def test_names_are_text_and_never_markup() -> None:
    assert "[red]WoodFisher[/]" in printed(tables.accuracies(results()), 120)
    assert "M-FAC &lt;joint&gt;" in tables.accuracies(results()).html()


def pruned_net(pruner: Pruner) -> Pruned:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    return prune(model, [(torch.randn(30, 10), torch.randint(5, (30,)))], 0.5, pruner=pruner)


def rows_of(pruned: Pruned, counted: Flops | None = None) -> list[TensorSummary]:
    return summarize_tensors(pruned.objective.space, counted, pruned.steps[0].saliencies)


def test_layers_say_what_fell_where() -> None:
    layers = rows_of(pruned_net(Pruner(None, magnitude, zero, scope=per_layer)))
    assert [
        (row.name, row.weights, row.kept, row.sparsity) for row in [*layers, total(layers)]
    ] == [
        ("0.weight", 200, 100, 0.5),
        ("2.weight", 100, 50, 0.5),
        ("all", 300, 150, 0.5),
    ]
    grid = tables.layers(layers)
    assert grid.header[-1] == "median saliency"
    assert [row[:-1] for row in grid.cells][:2] == [
        ("0.weight", "200", "100", "50.00 %"),
        ("2.weight", "100", "50", "50.00 %"),
    ]


def test_layers_know_their_flops_and_saliencies() -> None:
    pruner = Pruner(mfac(30, 1e-2))
    pruned = pruned_net(pruner)
    layers = rows_of(pruned, flops(pruned.objective.model, torch.zeros(4, 3, 10)))
    assert [(row.flops, row.flops_left) for row in layers] == [
        (6.0 * row.weights, 6.0 * row.kept) for row in layers
    ]
    whole = total(layers)
    assert (whole.flops, whole.flops_left) == (1800.0, 900.0)
    assert tables.layers(layers).cells[-1] == ("all", "300", "150", "50.00 %", "1.8 k", "900", "")
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    objective = Objective.from_model(
        dense, pruned.objective.batches, space=ParameterSpace.from_model(dense, min_ndim=2)
    )
    scores = obs(Quadratic(objective.weights, mfac(30, 1e-2)(objective))).double()
    for row, part in zip(layers, objective.space.slices.values(), strict=True):
        truth = torch.quantile(
            scores[part], torch.tensor(QUANTILES).double(), interpolation="nearest"
        )
        torch.testing.assert_close(torch.tensor(row.saliencies).double(), truth, rtol=0.05, atol=0)


def test_saliencies_of_channels_are_by_layer() -> None:
    layers = rows_of(pruned_net(Pruner(None, magnitude, zero, unit=output_channels)))
    assert all(
        len(row.saliencies) == 3 and list(row.saliencies) == sorted(row.saliencies)
        for row in layers
    )


def test_pictures_of_layers_and_predictions() -> None:
    pytest.importorskip("matplotlib")
    for pruner in (Pruner(mfac(30, 1e-2)), Pruner(None, magnitude, zero)):
        layers = rows_of(pruned_net(pruner))
        light, dark = (plots.layers(layers, dark=dark) for dark in (False, True))
        assert light.startswith(b"\x89PNG") and light != dark
    assert plots.predictions(results()) is None  # nothing was predicted
    foretold = [replace(result, predicted=0.1) for result in results()]
    picture = plots.predictions(foretold)
    assert picture and picture.startswith(b"\x89PNG")


def test_saliencies_of_zero_do_not_stretch_the_picture() -> None:
    rows = [(0.0, 1e-3, 2.0), (), (0.0, 0.0, 0.0), (0.5, 0.6, 0.7)]
    assert plots._positive(rows) == [(0, [1e-4, 1e-3, 2.0]), (3, [0.5, 0.6, 0.7])]


def test_accuracies_after_the_removal() -> None:
    grid = tables.removed(
        [replace(result, accuracy_removed=result.accuracy / 2) for result in results()]
    )
    assert grid.cells[0] == ("magnitude", "47.8", "25.2")
    assert tables.removed(results()).cells[0] == ("magnitude", "–", "–")


def test_costs_name_each_method_once() -> None:
    grid = tables.costs(results())
    assert [row[0] for row in grid.cells] == [
        "magnitude",
        "",
        "M-FAC <joint>",
        "",
        "[red]WoodFisher[/]",
        "",
    ]
    assert grid.cells[0][1:] == ("50 %", "–", "–", "0.2", "–", "1.50", "100")


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
    light, dark = (plots.accuracies(results(), dense=0.98, dark=dark) for dark in (False, True))
    assert light.startswith(b"\x89PNG") and dark.startswith(b"\x89PNG") and light != dark
    settings = tables.facts("Settings", {"damping": 1e-3, "seeds": [0, 1], "name": "<b>"})
    parts = [
        tables.embedded(light, dark, 'a "picture"'),
        tables.accuracies(results()).html(),
        settings.html(folded=True),
    ]
    tables.write_page(tmp_path / "r.html", "Title & <more>", "lead", parts)
    text = (tmp_path / "r.html").read_text("utf-8")
    page = Page(text)
    assert (
        not page.open
        and len(page.links) == 2
        and all(link.startswith("data:image/png;base64,") for link in page.links)
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
        plots.accuracies(results())


@given(st.lists(st.floats(0, 100), min_size=1, max_size=9), st.floats(0.1, 20))
def test_labels_are_spread_out_and_keep_their_order(values: list[float], gap: float) -> None:
    places = plots.spread_out(values, gap)
    order = sorted(range(len(values)), key=values.__getitem__)
    steps = [places[b] - places[a] for a, b in itertools.pairwise(order)]
    assert all(step >= gap * (1 - 1e-6) - 1e-9 for step in steps)
    assert sum(places) == pytest.approx(sum(values), abs=1e-6)


def test_labels_far_apart_stay() -> None:
    assert plots.spread_out([10, 50, 90], 5) == [10, 50, 90]


def test_percentages_are_as_long_as_they_need_be() -> None:
    assert [tables.percent(f) for f in (0.5, 0.975, 0.29, 0)] == ["50 %", "97.5 %", "29 %", "0 %"]
