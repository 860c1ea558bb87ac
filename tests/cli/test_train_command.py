"""woodbury train: what it writes, what it refuses, and runs that go on to the same bits."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from woodbury.cli import app
from woodbury.io.run_folder import RunFolder
from woodbury.io.sparse_files import load_sparse

NET = """
import torch
from torch import nn

def fresh():
    return nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 3))

def frozen():
    return fresh().requires_grad_(False)

def data():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    inputs = torch.randn(300, 16, generator=generator) + 2 * torch.eye(3, 16)[labels]
    return inputs[:240], labels[:240], inputs[240:], labels[240:]

def line():
    return nn.Linear(16, 1)

def numbers():
    x = data()[0]
    return x, x[:, :1] - x[:, 1:2]
"""
COMMAND = "train net.py:fresh net.py:data --epochs 3 --batch-size 16 --lr 0.03"


class Killed(BaseException):
    """Stands for a power failure: nothing of ours catches it."""


def woodbury(*words: str) -> Result:
    return CliRunner().invoke(app, shlex.split(" ".join(words)))


def rewrite(text: str) -> None:
    """Another net.py, as a process of its own would read it."""
    Path("net.py").write_text(text)
    for name in [name for name in sys.modules if name.startswith("_woodbury_cli_net_")]:
        del sys.modules[name]


def report(folder: str) -> dict[str, Any]:
    return json.loads((Path(folder) / "report.json").read_text())


@pytest.mark.parametrize("optimizer", ["mfac", "kfac", "sgd", "adam", "adamw"])
def test_every_optimizer_trains_to_what_it_reports(here: Path, optimizer: str) -> None:
    result = woodbury(COMMAND, "--out out --optimizer", optimizer)
    assert result.exit_code == 0, result.output
    assert {file.name for file in Path("out").iterdir()} == {
        "weights.safetensors",
        "report.json",
        "report.html",
    }
    made = report("out")
    assert made["settings"]["optimizer"] == optimizer and len(made["epochs"]) == 3
    assert made["settings"]["window"] == (128 if optimizer == "mfac" else None)
    names: dict[str, Any] = {}
    exec(NET, names)
    model = names["fresh"]()
    model.load_state_dict(load_sparse(Path("out") / "weights.safetensors"))
    _, _, x, y = names["data"]()
    right = float((model.eval()(x).argmax(1) == y).double().mean())
    assert right == pytest.approx(made["accuracy"]) and right > 0.6
    assert f"{100 * right:.2f} %" in result.output


def test_numbers_are_fitted_and_judged_by_their_squares(here: Path) -> None:
    words = "train net.py:line net.py:numbers --epochs 8 --batch-size 16 --loss squared_error --damping 0.1 --window 20"
    result = woodbury(words, "--lr 0.3 --momentum 0 --out out")
    assert result.exit_code == 0, result.output
    made = report("out")
    assert (
        made["R²"] > 0.9
        and made["epochs"][-1]["held-out loss"] < made["epochs"][0]["held-out loss"]
    )


@pytest.mark.parametrize("optimizer", ["mfac", "kfac", "sgd"])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(
    here: Path, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert woodbury(COMMAND, "--out whole --optimizer", optimizer).exit_code == 0
    save, calls = RunFolder.save, []

    def killed(self: RunFolder, state: Any) -> None:
        save(self, state)
        calls.append(state["done"])
        if len(calls) == 1:
            raise Killed

    monkeypatch.setattr(RunFolder, "save", killed)
    with pytest.raises(Killed):
        CliRunner().invoke(
            app,
            shlex.split(f"{COMMAND} --out stopped --optimizer {optimizer}"),
            catch_exceptions=False,
        )
    refused = woodbury(COMMAND, "--out stopped --optimizer", optimizer)
    assert refused.exit_code == 2 and "--resume" in refused.output
    other = woodbury(COMMAND, "--out stopped --resume --momentum 0.7 --optimizer", optimizer)
    assert other.exit_code == 2 and "momentum" in other.output
    for changed in (
        NET.replace("240", "90"),
        NET.replace(", 24)", ", 123)").replace("(24", "(123"),
    ):
        rewrite(changed)
        other = woodbury(COMMAND, "--out stopped --resume --optimizer", optimizer)
        assert other.exit_code == 2 and "The unfinished run was made with a" in other.output
    rewrite(NET)
    result = woodbury(COMMAND, "--out stopped --resume --optimizer", optimizer)
    assert result.exit_code == 0, result.output
    whole, stopped = (
        load_sparse(Path(folder) / "weights.safetensors") for folder in ("whole", "stopped")
    )
    assert all(torch.equal(whole[name], stopped[name]) for name in whole | stopped)
    assert report("whole")["epochs"] == report("stopped")["epochs"] and len(calls) == 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--optimizer mfca", "did you mean mfac"),
        ("--optimizer sgd --window 8", "--window is for mfac"),
        ("--optimizer adam --damping 1", "--damping is for mfac and kfac"),
        ("--optimizer kfac --damping 0", "damping is"),
        ("--damping 0", "damping is"),
        ("--momentum 1.0", "momentum is"),
        ("--optimizer adamw --lr -1", "adamw refuses"),
        ("--loss hinge", "no loss"),
    ],
)
def test_what_cannot_be_is_refused_at_once(here: Path, words: str, sentence: str) -> None:
    result = woodbury("train net.py:nothing net.py:data --out out", words)
    assert result.exit_code == 2 and sentence in result.output
    assert not Path("out").exists()


def test_a_frozen_network_and_a_loss_that_explodes_are_told(here: Path) -> None:
    result = woodbury("train net.py:frozen net.py:data --out out")
    assert result.exit_code == 2 and "requires a gradient" in result.output
    result = woodbury(COMMAND, "--out out --optimizer sgd --weight-decay 1e30")
    assert result.exit_code == 2 and "lower the learning rate" in result.output
    assert not Path("out").exists()


def test_a_label_astray_is_told_before_any_training(here: Path) -> None:
    Path("net.py").write_text(
        NET.replace(
            "return inputs[:240], labels[:240]", "labels[7] = 5; return inputs[:240], labels[:240]"
        )
    )
    result = woodbury(COMMAND, "--out out")
    assert result.exit_code == 2 and "but the model knows 3 classes" in result.output


def test_a_file_that_is_no_state_of_a_run(here: Path) -> None:
    Path("out").mkdir()
    torch.save({"weights": torch.ones(2)}, Path("out") / "unfinished.pt")
    result = woodbury(COMMAND, "--out out --resume")
    assert result.exit_code == 2 and "no state of a run" in result.output
