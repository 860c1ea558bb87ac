"""What prune measures beside the pruned network, against what other commands and calls measure."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from support.cli import report, same_weights, succeeds, weights

import woodbury
from woodbury.cli import measurements
from woodbury.cli.options import CurvatureOptions, PruningOptions
from woodbury.cli.problem import load_problem
from woodbury.evaluation.metrics import standard_error
from woodbury.pruning.staged import run_stages

NET = Path(__file__).with_name("net.py")
PRUNE = "prune net.py:build net.py:both --sparsity 0.75 --count 60 --out out"


def magnitude_alone(*options: str) -> dict:
    """The report of magnitude pruning by the same options."""
    succeeds(PRUNE.replace("out out", "out alone"), "--method magnitude", *options)
    return report("alone")


@pytest.mark.parametrize(
    "options", ["", "--scope layerwise", "--unit block:4 --flops", "--recalibrate"]
)
def test_the_baseline_is_what_magnitude_gives_by_itself(options: str, here: Path) -> None:
    succeeds(PRUNE, "--damping 1e-3 --stages 1", options)
    baseline, alone = report("out")["baseline"], magnitude_alone(options)
    assert baseline["score"] == alone["score_after"] and baseline["skipped"] == ""
    assert baseline["loss"] == pytest.approx(alone["loss_after"])
    assert baseline["standard_error"] == alone["standard_error_after"]


def test_magnitude_is_no_baseline_of_itself(here: Path) -> None:
    baseline = magnitude_alone()["baseline"]
    assert baseline["score"] is None and baseline["skipped"] == "it is what pruned"


def test_a_baseline_that_takes_long_is_left_out(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurements, "CHEAP_SECONDS", 0.0)
    monkeypatch.setattr(measurements, "CHEAP_SHARE", 0.0)
    succeeds(PRUNE, "--damping 1e-3 --stages 1")
    assert report("out")["baseline"]["skipped"].startswith("to measure it takes about")
    assert "Magnitude pruning is left out: to measure" in Path("out/report.html").read_text("utf-8")


def test_a_baseline_does_not_change_the_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    succeeds(PRUNE, "--damping 1e-3")
    monkeypatch.setattr(measurements, "CHEAP_SECONDS", 0.0)
    monkeypatch.setattr(measurements, "CHEAP_SHARE", 0.0)
    succeeds(PRUNE.replace("out out", "out without"), "--damping 1e-3")
    assert same_weights("out", "without")


def test_the_errors_are_those_of_shares_of_the_test_samples(here: Path) -> None:
    succeeds(PRUNE, "--damping 1e-3 --stages 1")
    numbers = report("out")
    assert numbers["test_samples"] == 100
    for when in ("before", "after"):
        error = standard_error(numbers[f"score_{when}"], 100)
        assert numbers[f"standard_error_{when}"] == error
    assert standard_error(0.2, 100) == pytest.approx(math.sqrt(0.2 * 0.8 / 100))
    assert 0 < standard_error(1.0, 100) < 0.01
    assert standard_error(0.0, 100) == pytest.approx(standard_error(1.0, 100))
    with pytest.raises(woodbury.WoodburyError, match="at least one"):
        standard_error(0.5, 0)


def test_a_score_that_is_no_share_has_no_error(here: Path) -> None:
    command = "prune net.py:linear net.py:regression --loss squared_error --sparsity 0.25"
    succeeds(command, "--damping 1 --stages 1 --count 50 --out out")
    numbers = report("out")
    assert numbers["standard_error_after"] is None and numbers["test_samples"] == 40
    assert numbers["baseline"]["standard_error"] is None and numbers["baseline"]["score"] < 1


@pytest.mark.parametrize(
    "options", ["", "--method mfac --damping 1e-3 --stages 1", "--method magnitude"]
)
def test_the_increase_is_measured_on_training_data_beside_the_calibration_set(
    options: str, here: Path
) -> None:
    said = succeeds(PRUNE, options)
    numbers = report("out")
    asked = PruningOptions(curvature=CurvatureOptions(count=60))
    problem = load_problem("net.py:build", "net.py:both", asked, choosing=False)
    dense, beside = problem.dense(), problem.beside_calibration(0)
    assert beside is not None
    read = {row.numpy().tobytes() for inputs, _ in dense.batches for row in inputs}
    others = {row.numpy().tobytes() for inputs, _ in beside for row in inputs}
    assert len(read) == 60 and len(others) == 240 and not read & others
    pruned = dense.at(dense.space.flatten(weights("out")))
    interval = numbers["predicted_interval"]
    assert interval["samples"] == 240
    assert interval["mean"] == pytest.approx(pruned.loss(beside) - dense.loss(beside), rel=1e-3)
    assert interval["low"] < interval["mean"] < interval["high"]
    page = Path("out/report.html").read_text("utf-8")
    assert "95 % confidence, 240 samples held back" in page
    warning = numbers["predicted_warning"]
    assert warning in page and warning in said.stderr
    assert bool(warning) == (numbers["predicted_increase"] is not None)


def test_without_other_training_data_the_prediction_is_not_checked(here: Path) -> None:
    said = succeeds(PRUNE.replace("--count 60", "--count 280"), "--method mfac --damping 1e-3")
    numbers = report("out")
    assert numbers["predicted_interval"] is None
    assert numbers["predicted_warning"].endswith("lower --count, or give more training data.")
    assert "lower --count, or give more training data" in said.stderr


@pytest.mark.parametrize("options", ["", "--method mfac --stages 3 --damping 1e-2"])
def test_stages_lead_to_what_was_reached(options: str, here: Path) -> None:
    succeeds(PRUNE, options)
    numbers = report("out")
    stages, last = numbers["stages"], numbers["stages"][-1]
    assert len(stages) > 1
    assert [stage["sparsity"] for stage in stages] == sorted(stage["sparsity"] for stage in stages)
    assert last["sparsity"] == numbers["sparsity"] and last["loss"] == numbers["loss_after"]
    assert last["predicted_increase"] == numbers["predicted_increase"]
    for stage in stages:
        increase = stage["loss"] - numbers["loss_before"]
        assert stage["measured_increase"] == pytest.approx(increase)


def test_the_loss_of_a_stage_is_that_of_a_run_which_ends_there(here: Path) -> None:
    problem = load_problem("net.py:build", "net.py:both", PruningOptions(), choosing=False)
    dense = problem.objective(0)
    history = measurements.StageHistory(dense.loss())
    pruner = woodbury.Pruner(woodbury.mfac(60, 1e-2))
    both = run_stages(pruner, dense, [0.5, 0.75], history)
    first = run_stages(pruner, dense, [0.5])
    measured = history.stages(both, math.nan)
    assert [stage.loss for stage in measured] == [first.objective.loss(), both.objective.loss()]
    assert history.seconds > 0


@pytest.mark.parametrize("stages", [1, 2])
def test_the_dampings_that_were_tried_are_written(stages: int, here: Path) -> None:
    succeeds(PRUNE, f"--method mfac --damping 1e-3,10 --stages {stages}")
    numbers = report("out")
    tried = {trial["damping"]: trial["held_out_loss"] for trial in numbers["dampings_tried"]}
    assert set(tried) == {1e-3, 10} and numbers["damping"] == min(tried, key=tried.__getitem__)
    assert len(numbers["stages"]) == stages
    assert "Dampings that were tried" in Path("out/report.html").read_text("utf-8")
