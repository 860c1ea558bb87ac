"""Tables and the page of one run: the baseline, error bars, stages, dampings, units."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.results import prune_numbers, pruned_net, tensors_of

from woodbury.pruning.pruner import Pruner
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.updates import zero
from woodbury.reporting import run_tables
from woodbury.reporting.page import Code
from woodbury.reporting.pages import prune_page, train_page
from woodbury.reporting.records import (
    Baseline,
    DampingTrial,
    EpochNumbers,
    GradualNumbers,
    PruneNumbers,
    PruningStepNumbers,
    TrainNumbers,
)

GRADUAL = GradualNumbers(
    measure="accuracy",
    sparsity=0.9,
    test_samples=400,
    score_before=0.9,
    standard_error_before=0.015,
    score_pruned=0.5,
    standard_error_pruned=0.025,
    score_after=0.8,
    standard_error_after=0.02,
    seconds=754.0,
    steps=(
        PruningStepNumbers(5, 0.5, 0.5, 0.02, 1e-3, 0.9, 0.8, (DampingTrial(1e-3, 0.4),)),
        PruningStepNumbers(9, 0.9, 0.9, None, None, None, None, (DampingTrial(1e-3, 0.6),)),
    ),
)


def test_the_run_stands_beside_the_dense_network_and_magnitude() -> None:
    grid = run_tables.results(prune_numbers(), "mfac")
    assert grid.cells == (
        ("dense", "0.00 %", "97.0 ± 0.8 %", "0.10"),
        ("magnitude", "90.00 %", "50.0 ± 2.4 %", "2.00"),
        ("mfac", "90.00 %", "95.0 ± 1.0 %", "0.30"),
    )
    assert "450 test samples" in grid.note and "left out" not in grid.note


def test_why_there_is_no_baseline_is_said() -> None:
    numbers = replace(prune_numbers(), baseline=Baseline(skipped="to measure it takes 40 s"))
    grid = run_tables.results(numbers, "mfac")
    assert [row[0] for row in grid.cells] == ["dense", "mfac"]
    assert "Magnitude pruning is left out: to measure it takes 40 s." in grid.note
    assert "--method magnitude" in run_tables.results(GRADUAL, "mfac").note


def test_a_score_that_is_no_share_has_no_error() -> None:
    numbers = replace(
        prune_numbers(),
        measure="r_squared",
        standard_error_before=None,
        standard_error_after=None,
        baseline=Baseline(score=-0.5, loss=2.0),
    )
    grid = run_tables.results(numbers, "mfac")
    assert [row[2] for row in grid.cells] == ["97.00 %", "-50.00 %", "95.00 %"]
    assert "±" not in grid.note and grid.header[2] == "R², test data"


def test_stages_have_one_damping_in_the_note_or_their_own_in_a_column() -> None:
    stages = prune_numbers().stages
    grid = run_tables.stages(stages)
    assert grid.header == ("stage", "sparsity", "predicted increase", "measured", "loss")
    assert grid.cells[1] == ("2", "90.00 %", "0.150", "0.200", "0.3000")
    assert "The damping is 0.001." in grid.note
    several = run_tables.stages([replace(stages[0], damping=1e-5), stages[1]])
    assert [row[2] for row in several.cells] == ["1e-05", "0.001"]
    none = run_tables.stages([replace(stage, damping=None) for stage in stages])
    assert "damping" not in none.header and "damping" not in none.note


def test_predicted_and_measured_increases_of_stages_are_written_alike() -> None:
    first, last = prune_numbers().stages
    stages = [
        replace(first, predicted_increase=1.17e-7, measured_increase=-1e-6),
        replace(last, predicted_increase=8.04e-5, measured_increase=1.9e-4),
    ]
    rows = [row[2:4] for row in run_tables.stages(stages).cells]
    assert rows == [("1.17e-07", "−1.00e-06"), ("8.04e-05", "1.90e-04")]


def test_the_damping_that_was_chosen_is_bold() -> None:
    numbers = prune_numbers()
    grid = run_tables.dampings(numbers.dampings_tried, numbers.damping)
    assert grid.cells == (("0.0001", "0.5000", ""), ("0.001", "0.4000", "chosen"))
    assert grid.best == {(1, 0), (1, 1), (1, 2)}
    steps = run_tables.dampings_of_steps(GRADUAL.steps)
    assert steps.header == ("epoch", "sparsity", "0.001") and steps.best == {(0, 2)}
    assert steps.cells == (("0.50", "50.00 %", "0.400"), ("0.90", "90.00 %", "0.600"))


def test_pruning_steps_and_epochs_are_rows() -> None:
    grid = run_tables.pruning_steps(GRADUAL)
    assert grid.cells[0] == ("0.50", "50.00 %", "0.001", "0.0200", "90.00 %", "80.00 %")
    assert grid.cells[1][2:] == ("–", "–", "–", "–")
    assert run_tables.epochs([EpochNumbers(1, 0.5, 0.8)], "accuracy").cells == (
        ("1", "0.500", "80.00 %"),
    )


@pytest.mark.parametrize("numbers", [prune_numbers(), GRADUAL])
def test_the_page_of_a_run_has_all_facts_in_units(numbers: PruneNumbers | GradualNumbers) -> None:
    tensors = tensors_of(pruned_net(Pruner(None, magnitude, zero)))
    page = prune_page(
        "Title",
        "lead",
        numbers,
        tensors,
        {"method": "mfac", "count": 100},
        {"fisher": {"count": 100}},
        {"seconds": 86.2, "weights": 300},
        [Code("Load:", "load()")],
    )
    titles = [section.title for section in page.sections]
    assert "Sparsity of each parameter" in titles and "Dampings that were tried" in titles
    assert titles[0] == "Result" and titles[-1] == "Use it again"
    assert [grid.title for grid in page.folded] == ["Plan", "Recipe", "Settings", "Versions"]
    assert page.figures[0].remark == "150 of 300 kept"
    text = page.html()
    if isinstance(numbers, PruneNumbers):
        assert "Loss after each stage" in titles
        assert "1,324 MiB" in text and "1323.95" not in text and "planned 86 s" in text
        assert "+0.2" in text and "predicted +0.15" in text
    else:
        assert "Pruning steps" in titles and "12 min 34 s" in text


def test_a_run_of_one_stage_has_no_chart_of_stages() -> None:
    numbers = replace(prune_numbers(), stages=prune_numbers().stages[1:], dampings_tried=())
    tensors = tensors_of(pruned_net(Pruner(None, magnitude, zero)))
    page = prune_page("t", "l", numbers, tensors, {"method": "mfac"}, {}, None, [])
    titles = [section.title for section in page.sections]
    assert titles == ["Result", "Sparsity of each parameter", "Use it again"]


def test_the_page_of_training_has_its_score_and_a_chart() -> None:
    numbers = TrainNumbers("accuracy", 0.9, 900, 0.01, 12.0, (EpochNumbers(1, 0.5, 0.8),))
    text = train_page("t", "l", numbers, {}, []).html()
    assert "90.00 %" in text and "± 1.0, 900 test samples" in text and "epoch 1: 0.5" in text
