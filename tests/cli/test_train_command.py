"""woodbury train: what it writes, what it refuses, and runs that go on to the same bits."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cli import (
    Killed,
    refused,
    report,
    rewrite_net,
    same_weights,
    succeeds,
    weights,
    woodbury,
)

from woodbury.io.fingerprint import digest
from woodbury.io.run_folder import RunFolder

NET = Path(__file__).with_name("trainable_net.py")
COMMAND = "train net.py:fresh net.py:data --epochs 3 --batch-size 16 --lr 0.03"


def user_module() -> Any:
    spec = importlib.util.spec_from_file_location("trained_net", "net.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("optimizer", ["mfac", "kfac", "sgd", "adam", "adamw"])
def test_every_optimizer_trains_to_what_it_reports(here: Path, optimizer: str) -> None:
    result = succeeds(COMMAND, "--out out --optimizer", optimizer)
    names = {"weights.safetensors", "report.json", "report.html", "run.toml"}
    assert {file.name for file in Path("out").iterdir()} == names
    numbers = report("out")
    module = user_module()
    model = module.fresh()
    model.load_state_dict(weights("out"))
    _, _, x, y = module.data()
    accuracy = float((model.eval()(x).argmax(1) == y).double().mean())
    assert accuracy == pytest.approx(numbers["score"]) and accuracy > 0.6
    assert f"{100 * accuracy:.2f} %" in result.stdout


def test_the_report_has_the_epochs_and_the_settings(here: Path) -> None:
    succeeds(COMMAND, "--out out")
    numbers = report("out")
    assert numbers["command"] == "train" and numbers["measure"] == "accuracy"
    assert [each["epoch"] for each in numbers["epochs"]] == [1, 2, 3]
    measured = {"epoch", "held_out_loss", "held_out_score", "held_out_perplexity"}
    assert set(numbers["epochs"][0]) == measured
    assert numbers["epochs"][0]["held_out_perplexity"] is None  # of language models alone
    assert numbers["seconds"] > 0 and numbers["versions"]["torch"]
    settings = numbers["settings"]
    assert settings["optimizer"] == "mfac" and settings["lr"] == 0.03
    assert settings["window"] == 128 and settings["damping"] == 0.01
    assert "resume" not in settings


def test_an_optimizer_without_a_window_reports_none(here: Path) -> None:
    succeeds(COMMAND, "--out out --optimizer sgd")
    settings = report("out")["settings"]
    assert settings["window"] is None and settings["damping"] is None


def test_numbers_are_fitted_and_judged_by_their_squares(here: Path) -> None:
    words = "train net.py:line net.py:numbers --epochs 8 --batch-size 16 --loss squared_error"
    succeeds(words, "--damping 0.1 --window 20 --lr 0.3 --momentum 0 --out out")
    numbers = report("out")
    assert numbers["measure"] == "r_squared" and numbers["score"] > 0.9
    losses = [each["held_out_loss"] for each in numbers["epochs"]]
    assert losses[-1] < losses[0]


@pytest.fixture
def stopped(here: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> str:
    """The command of a run in the folder "stopped" that was killed after its first save."""
    save = RunFolder.save

    def killed(self: RunFolder, state: Any) -> None:
        save(self, state)
        raise Killed

    command = f"{COMMAND} --optimizer {optimizer} --out stopped"
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", killed)
        with pytest.raises(Killed):
            woodbury(command)
    return command


@pytest.mark.parametrize("optimizer", ["mfac", "kfac", "sgd"])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(
    here: Path, optimizer: str, stopped: str
) -> None:
    succeeds(COMMAND, "--out whole --optimizer", optimizer)
    succeeds(stopped, "--resume")
    assert same_weights("whole", "stopped")
    assert report("whole")["epochs"] == report("stopped")["epochs"]


@pytest.mark.parametrize("optimizer", ["mfac"])
def test_a_run_is_not_gone_on_with_by_other_settings(here: Path, stopped: str) -> None:
    refused("go on with --resume", stopped)
    refused("made with momentum 0.9, now it is 0.7", stopped, "--resume --momentum 0.7")
    refused("made with lr 0.03, now it is 0.1", stopped.replace("--lr 0.03", "--lr 0.1 --resume"))


@pytest.mark.parametrize("optimizer", ["sgd"])
@pytest.mark.parametrize(("old", "new"), [("240", "90"), ("24", "123")])
def test_a_run_is_not_gone_on_with_on_other_data_or_another_network(
    here: Path, stopped: str, old: str, new: str
) -> None:
    rewrite_net(re.sub(rf"\b{old}\b", new, NET.read_text("utf-8")))
    refused("The unfinished run was made with a", stopped, "--resume")


@pytest.mark.parametrize("optimizer", ["sgd"])
def test_other_versions_are_remarked_upon(here: Path, stopped: str) -> None:
    content = torch.load("stopped/unfinished.pt", weights_only=True)
    content["state"]["record"]["made"]["torch"] = "1.0"
    torch.save({**content, "checksum": digest(content["state"])}, "stopped/unfinished.pt")
    result = succeeds(stopped, "--resume")
    assert "began with torch 1.0 and goes on with" in result.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--optimizer mfca", "--optimizer is 'mfca': did you mean mfac?"),
        ("--optimizer sgd --window 8", "--window is for mfac"),
        ("--optimizer adam --damping 1", "--damping is for mfac and kfac"),
        ("--optimizer kfac --damping 0", "damping is"),
        ("--damping 0", "damping is"),
        ("--momentum 1.0", "--momentum is 1.0: it must lie in [0, 1)"),
        ("--optimizer adamw --lr -1", "--lr is -1.0: give a positive number"),
        ("--weight-decay -1", "--weight-decay is -1.0"),
        ("--loss hinge", "--loss is 'hinge'"),
        ("--epochs 0", "--epochs is '0': give a whole number of at least 1"),
    ],
)
def test_what_cannot_be_is_refused_at_once(here: Path, words: str, sentence: str) -> None:
    refused(sentence, "train net.py:nothing net.py:data --out out", words)


def test_a_frozen_network_is_refused(here: Path) -> None:
    refused("requires a gradient", "train net.py:frozen net.py:data --out out")


def test_a_loss_that_explodes_is_told(here: Path) -> None:
    options = "--out out --optimizer sgd --weight-decay 1e30"
    refused("lower the learning rate", COMMAND, options)


def test_a_label_out_of_range_is_told_before_any_training(here: Path) -> None:
    old = "return inputs[:240]"
    rewrite_net(NET.read_text("utf-8").replace(old, f"labels[7] = 5; {old}"))
    refused("but the model knows 3 classes", COMMAND, "--out out")


def test_a_file_that_is_no_state_of_a_run(here: Path) -> None:
    Path("out").mkdir()
    torch.save({"weights": torch.ones(2)}, "out/unfinished.pt")
    refused("no state of a run", COMMAND, "--out out --resume")
