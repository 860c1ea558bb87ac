"""Tables: means and spreads, the best bold, names as text, and a width that fits a terminal."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from support.results import pruned_net, results, tensors_of

from woodbury.estimation.recipes import mfac
from woodbury.model.flop_count import flops
from woodbury.pruning.prediction import IncreaseInterval, warning_of
from woodbury.pruning.pruned import Quantiles
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.scopes import layerwise
from woodbury.pruning.updates import zero
from woodbury.reporting import cost_tables, tables
from woodbury.reporting.grid import Grid, aligned, percent, without_middle


def printed(grid: Grid, width: int = 80) -> str:
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
    assert alone.cells[0] == ("magnitude", "95.00", "50.00") and "±" not in alone.note


def test_seven_sparsities_fit_into_eighty_columns() -> None:
    header = ("method", *("90 %" for _ in range(7)))
    cells = (("diagonal Fisher", *("97.1 ± 0.0" for _ in range(7))),)
    grid = Grid("t", header, cells, tight=True)
    (row,) = (line for line in printed(grid).splitlines() if "diagonal" in line)
    assert row.count("97.1±0.0") == 7


def test_names_are_text_and_never_markup_of_the_terminal() -> None:
    assert "[red]WoodFisher[/]" in printed(tables.accuracies(results()), 120)


def test_the_title_the_note_and_every_row_are_printed() -> None:
    text = " ".join(printed(tables.accuracies(results()), 120).split())
    assert "Accuracy in % at each sparsity" in text and "best of each column is bold." in text
    assert all(name in text for name in ("magnitude", "50 %", "97.5 %", "95.5±0.5"))


def test_accuracies_before_the_update() -> None:
    grid = tables.accuracies_before_update(
        [replace(result, accuracy_removed=result.accuracy / 2) for result in results()]
    )
    assert grid.cells[0] == ("magnitude", "47.8", "25.2")
    assert tables.accuracies_before_update(results()).cells[0] == ("magnitude", "–", "–")


def test_losses_and_resources_name_their_method_in_each_row_to_be_sorted_by() -> None:
    grid = cost_tables.losses_and_resources(results())
    names = ["magnitude", "M-FAC <joint>", "[red]WoodFisher[/]"]
    assert [row[0] for row in grid.cells] == [name for name in names for _ in range(2)]
    assert grid.cells[0][1:] == ("50 %", "–", "–", "0.200", "–", "1.50", "100")
    assert grid.keys[0] == ("magnitude", 0.5, None, None, 0.2, None, 1.5, 100.0)
    chosen = [replace(result, damping=10.0**-result.seed, predicted=0.1) for result in results()]
    assert cost_tables.losses_and_resources(chosen).cells[0][2:4] == ("1, 0.1", "0.100")


def test_the_increase_on_samples_held_back_has_a_column() -> None:
    interval = IncreaseInterval(-0.01, 0.02, 0.05, 0.95, 100, 0.3)
    nowhere = replace(interval, low=math.inf, mean=math.inf, high=math.inf)
    refuted = warning_of(1.0, interval)
    checked = [replace(each, predicted_interval=interval, predicted=0.03) for each in results()]
    checked[0] = replace(checked[0], predicted=1.0, predicted_warning=refuted)
    checked[-1] = replace(checked[-1], predicted_interval=nowhere)
    grid = cost_tables.losses_and_resources(checked)
    assert grid.header[6] == "held back" and len(grid.header) == len(grid.cells[0])
    assert [row[6] for row in grid.cells] == [*["−0.01 to 0.05"] * 5, "not finite"]
    assert grid.keys[0][6] == 0.02 and len(grid.keys[0]) == len(grid.header)
    assert grid.note.endswith("Of 12 predictions 1 are no forecast of it.")
    fine = [replace(each, predicted_interval=interval) for each in results()]
    assert "forecast" not in cost_tables.losses_and_resources(fine).note


def test_layerwise_sparsity_has_a_row_for_each_tensor_and_their_sum() -> None:
    tensors = tensors_of(pruned_net(Pruner(None, magnitude, zero, scope=layerwise)))
    grid = tables.per_tensor(tensors)
    assert grid.header[-1] == "median saliency"
    assert [row[:-1] for row in grid.cells] == [
        ("0.weight", "50.00 %", "200", "100"),
        ("2.weight", "50.00 %", "100", "50"),
        ("all", "50.00 %", "300", "150"),
    ]
    assert grid.has_sum and len(grid.keys) == 3
    assert tensors[0].saliencies is not None
    assert grid.cells[0][-1] == f"{tensors[0].saliencies.median:.1e}"


def test_flops_have_units_and_columns_without_numbers_are_left_out() -> None:
    pruned = pruned_net(Pruner(mfac(30, 1e-2)))
    tensors = tensors_of(pruned, flops(pruned.objective.model, torch.zeros(4, 3, 10)))
    grid = tables.per_tensor(tensors)
    assert grid.cells[-1] == ("all", "50.00 %", "300", "150", "1.8 k", "900", "")
    assert "FLOPs left" in grid.header and "woodbury speed" in grid.note
    bare = [replace(tensor, flops=None, saliencies=None) for tensor in tensors]
    assert tables.per_tensor(bare).header == ("parameter", "sparsity", "weights", "kept")


def test_facts_are_one_to_a_row() -> None:
    grid = tables.facts("Settings", {"damping": 1e-3, "seeds": [0, 1], "name": None})
    assert grid.cells == (("damping", "0.001"), ("seeds", "0, 1"), ("name", "–"))
    target = tables.facts("Settings", {"sparsity": {"fc*": 0.8}, "first_order": False})
    assert target.cells == (("sparsity", "fc*: 0.8"), ("first_order", "no"))


def test_percentages_are_as_long_as_they_need_be() -> None:
    assert [percent(f) for f in (0.5, 0.975, 0.29, 0)] == ["50 %", "97.5 %", "29 %", "0 %"]
    assert percent(1 / 3, 2) == "33.33 %"


def test_bars_and_ranges_are_shares_of_one_axis() -> None:
    tensors = tensors_of(pruned_net(Pruner(None, magnitude, zero, scope=layerwise)))
    first, second = tensors
    saliencies = (Quantiles(0.0, 1e-3, 1e-1), Quantiles(1e-3, 1e-2, 1.0))
    tensors = [
        replace(each, saliencies=quantiles)
        for each, quantiles in zip((first, second), saliencies, strict=True)
    ]
    grid = tables.per_tensor(tensors)
    bars, ranges = grid.marks[1], grid.marks[4]
    assert [(bar.start, bar.end) for bar in bars if bar] == [(0, 0.5)] * 3
    places = [(each.start, each.dot, each.end) for each in ranges if each]
    assert places == [(0, 0, pytest.approx(2 / 3)), (0, pytest.approx(1 / 3), 1)]
    zeros = [replace(each, saliencies=Quantiles(0.0, 0.0, 0.0)) for each in tensors]
    assert tables.per_tensor(zeros).marks[4] == [None] * 3


def test_numbers_of_a_column_have_the_same_decimals() -> None:
    assert aligned([0.0123, 12.5, None]) == ["0.012", "12.500", "–"]
    assert aligned([1.0, 1e-9]) == ["1.00", "0.00"]  # six decimals would not show it either
    assert aligned([1.0, 1e-5]) == ["1.000000", "0.000010"]
    assert aligned([1e-9, -3e-7]) == ["1.00e-09", "−3.00e-07"]
    assert aligned([0.0, None]) == ["0", "–"] and aligned([float("nan"), 1.0]) == ["nan", "1.00"]


def test_a_long_name_keeps_its_ends_and_one_line() -> None:
    names = [f"bert.encoder.layer.{n}.attention.output.dense.weight" for n in (7, 11)]
    cells = tuple((name, "90.00 %", "589,824", "58,982", "75.5 M", "7.55 M") for name in names)
    header = ("parameter", "sparsity", "weights", "kept", "FLOPs", "FLOPs left")
    grid = Grid("t", header, cells, has_names=True)
    narrow = printed(grid, 80).splitlines()
    rows = [line for line in narrow if "90.00 %" in line]
    assert [row.split()[0][:5] for row in rows] == ["bert."] * 2
    assert all("…" in row and "output.dense " in row and "7.55 M" in row for row in rows)
    assert "…7…" in rows[0] and "…11…" in rows[1]  # or they could not be told apart
    assert max(map(len, narrow)) <= 80 and len([line for line in narrow if "dense" in line]) == 2
    assert all(name in printed(grid, 120) for name in names)


def test_names_that_end_alike_can_be_told_apart_in_a_narrow_terminal() -> None:
    layers = ("query", "key", "value")
    names = [f"bert.encoder.layer.0.attention.self.{layer}.weight" for layer in layers]
    rows = tuple((name, "1") for name in (*names, "all"))
    grid = Grid("t", ("parameter", "kept"), rows, has_names=True, has_sum=True)
    lines = [line.split() for line in printed(grid, 24).splitlines()]
    shown = [line[0] for line in lines if line[-1:] == ["1"]]
    assert len(set(shown)) == 4 and "all" in shown
    assert all(any(name.endswith(layer) for name in shown) for layer in layers)


@pytest.mark.parametrize("width", range(1, 60))
def test_a_shortened_name_is_no_longer_than_asked(width: int) -> None:
    name = "model.layers.12.experts.3.mlp.down_proj.weight"
    shown = without_middle(name, width)
    assert len(shown) <= width and (shown == name or "…" in shown)


def test_a_name_like_markup_is_text() -> None:
    grid = Grid("t", ("parameter", "kept"), (("[bold]0.weight[/]", "1"),), has_names=True)
    assert "[bold]0.weight[/]" in printed(grid)
