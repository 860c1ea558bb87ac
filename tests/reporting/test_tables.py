"""Tables: means and spreads, the best bold, names as text, and a width that fits a terminal."""

from __future__ import annotations

import io
from dataclasses import replace

import torch
from rich.console import Console
from support.results import pruned_net, results, tensors_of

from woodbury.estimation.recipes import mfac
from woodbury.model.flop_count import flops
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.scopes import layerwise
from woodbury.pruning.updates import zero
from woodbury.reporting import tables


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
    cells = (("diagonal Fisher", *("97.1 ± 0.0" for _ in range(7))),)
    grid = tables.Grid("t", header, cells, tight=True)
    (row,) = (line for line in printed(grid).splitlines() if "diagonal" in line)
    assert row.count("97.1±0.0") == 7


def test_names_are_text_and_never_markup_of_the_terminal() -> None:
    assert "[red]WoodFisher[/]" in printed(tables.accuracies(results()), 120)


def test_the_title_the_note_and_every_row_are_printed() -> None:
    text = " ".join(printed(tables.accuracies(results()), 120).split())
    assert "Accuracy in % at each sparsity" in text and "the best is bold." in text
    assert all(name in text for name in ("magnitude", "50 %", "97.5 %", "95.5±0.5"))


def test_accuracies_before_the_update() -> None:
    grid = tables.accuracies_before_update(
        [replace(result, accuracy_removed=result.accuracy / 2) for result in results()]
    )
    assert grid.cells[0] == ("magnitude", "47.8", "25.2")
    assert tables.accuracies_before_update(results()).cells[0] == ("magnitude", "–", "–")


def test_losses_and_resources_name_each_method_once() -> None:
    grid = tables.losses_and_resources(results())
    assert [row[0] for row in grid.cells] == [
        "magnitude",
        "",
        "M-FAC <joint>",
        "",
        "[red]WoodFisher[/]",
        "",
    ]
    assert grid.cells[0][1:] == ("50 %", "–", "–", "0.2", "–", "1.50", "100")
    chosen = [replace(result, damping=10.0**-result.seed, predicted=0.1) for result in results()]
    assert tables.losses_and_resources(chosen).cells[0][2:4] == ("1, 0.1", "0.1")


def test_layerwise_sparsity_has_a_row_for_each_tensor_and_their_sum() -> None:
    tensors = tensors_of(pruned_net(Pruner(None, magnitude, zero, scope=layerwise)))
    grid = tables.per_tensor(tensors)
    assert grid.header[-1] == "median saliency"
    assert [row[:-1] for row in grid.cells] == [
        ("0.weight", "200", "100", "50.00 %"),
        ("2.weight", "100", "50", "50.00 %"),
        ("all", "300", "150", "50.00 %"),
    ]
    assert tensors[0].saliencies is not None
    assert grid.cells[0][-1] == f"{tensors[0].saliencies.median:.1e}"


def test_flops_have_units_and_columns_without_numbers_are_left_out() -> None:
    pruned = pruned_net(Pruner(mfac(30, 1e-2)))
    tensors = tensors_of(pruned, flops(pruned.objective.model, torch.zeros(4, 3, 10)))
    grid = tables.per_tensor(tensors)
    assert grid.cells[-1] == ("all", "300", "150", "50.00 %", "1.8 k", "900", "")
    bare = [replace(tensor, flops=None, saliencies=None) for tensor in tensors]
    assert tables.per_tensor(bare).header == ("parameter", "weights", "kept", "sparsity")


def test_facts_are_one_to_a_row() -> None:
    grid = tables.facts("Settings", {"damping": 1e-3, "seeds": [0, 1], "name": None})
    assert grid.cells == (("damping", "0.001"), ("seeds", "0, 1"), ("name", "None"))


def test_percentages_are_as_long_as_they_need_be() -> None:
    assert [tables.percent(f) for f in (0.5, 0.975, 0.29, 0)] == ["50 %", "97.5 %", "29 %", "0 %"]
    assert tables.percent(1 / 3, 2) == "33.33 %"
