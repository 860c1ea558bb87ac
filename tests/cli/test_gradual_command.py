"""woodbury prune --epochs: every number is there, and a run stopped at any moment ends as if it had not been."""

from __future__ import annotations

import importlib
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

from woodbury.cli import app
from woodbury.io.run_folder import RunFolder
from woodbury.io.sparse_files import load_sparse

NET = """
import torch
from torch import nn

def build(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 3))

def other():
    return build(1)

def frozen():
    return build().requires_grad_(False)

def data():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    inputs = torch.randn(300, 16, generator=generator) + 2 * torch.eye(3, 16)[labels]
    return inputs[:240], labels[:240], inputs[240:], labels[240:]

def fewer():
    return *(part[:200] for part in data()[:2]), *data()[2:]
"""
COMMAND = "prune net.py:build net.py:data --sparsity 0.8 --count 40 --damping 1e-2 --epochs 3 --steps 3 --lr 0.05"


class Killed(BaseException):
    """Stands for a power failure: nothing of ours catches it."""


def woodbury(*words: str) -> Result:
    return CliRunner().invoke(app, shlex.split(" ".join(words)))


def weights(folder: str) -> dict[str, Tensor]:
    return load_sparse(Path(folder) / "weights.safetensors")


def same(first: str, second: str) -> bool:
    ours, theirs = weights(first), weights(second)
    records = [json.loads((Path(folder) / "report.json").read_text()) for folder in (first, second)]
    for record in records:
        del record["seconds"], record["settings"]["engine"]
    return records[0] == records[1] and all(
        torch.equal(ours[name], theirs[name]) for name in ours | theirs
    )


def test_every_number_is_in_the_report(here: Path) -> None:
    result = woodbury(COMMAND, "--out out --recalibrate --prune-until 0.5 --decay-off")
    assert result.exit_code == 0, result.output
    assert (
        "80.04 % of 456 weights removed: accuracy" in result.stdout
        and "right after the last" in result.stdout
    )
    names = ["report.html", "report.json", "weights.safetensors"]
    assert sorted(entry.name for entry in (here / "out").iterdir()) == names
    report = json.loads((here / "out" / "report.json").read_text())
    kept = sum(int(weights("out")[layer["name"]].count_nonzero()) for layer in report["layers"])
    assert kept == 456 - round(0.8 * 456) == sum(layer["kept"] for layer in report["layers"])
    assert [round(step["sparsity"], 2) for step in report["steps"]] == [0.56, 0.77, 0.8]
    assert [step["step"] for step in report["steps"]] == [1, 3, 4] and report["steps"][2][
        "epoch"
    ] == pytest.approx(4 / 3)
    for step in report["steps"]:
        assert (
            step["damping"] == 1e-2
            and 0 <= step["held-out accuracy after"] <= 1
            and step["predicted increase"] > 0
        )
    assert report["accuracy after"] > max(
        report["accuracy before"], report["accuracy after the last pruning step"]
    )
    assert (
        report["settings"]["epochs"] == 3
        and report["settings"]["lr"] == 0.05
        and report["seconds"] > 0
    )
    assert "Pruning steps" in (here / "out" / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    "options",
    [
        "--method magnitude --optimizer adam",
        "--optimizer adamw --weight-decay 0.1 --steps 1",
        "--method kfac --batch-size 1000 --prune-until 1",
        "--method mfac --damping 1e-3,1e-1 --stages 2 --batch 2 --scope layers --momentum 0",
    ],
)
def test_every_option(options: str, here: Path) -> None:
    result = woodbury(COMMAND.replace("--damping 1e-2", ""), "--damping 1e-2 --out out", options)
    assert result.exit_code == 0, result.output
    report = json.loads((here / "out" / "report.json").read_text())
    assert sum(layer["weights"] - layer["kept"] for layer in report["layers"]) == 365


@pytest.mark.parametrize("save", range(1, 7))
def test_stopped_anywhere_it_goes_on_to_the_same_bits(
    save: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while its state is saved for the n-th time, and again at the next step of the optimizer."""
    assert woodbury(COMMAND, "--out whole --method woodfisher").exit_code == 0
    calls = {"save": 0, "step": 0}
    dump, step = torch.save, torch.optim.SGD.step

    def dying(state: Any, file: Any) -> None:
        calls["save"] += 1
        dump(state, file)
        if calls["save"] == save:
            raise Killed

    def dying_step(*given: Any, **options: Any) -> None:
        step(*given, **options)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", dying)
        with pytest.raises(Killed):
            woodbury(COMMAND, "--out cut --method woodfisher")
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", dying_step)
        with pytest.raises(Killed):
            woodbury(COMMAND, "--out cut --method woodfisher --resume")
    assert not (here / "cut" / "report.json").exists()
    assert woodbury(COMMAND, "--out cut --method woodfisher --resume").exit_code == 0
    assert same("whole", "cut") and len(list((here / "cut").iterdir())) == 3


def test_killed_while_the_results_are_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = importlib.import_module("woodbury.cli.results")
    assert woodbury(COMMAND, "--out whole").exit_code == 0

    def dying(*given: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_page", dying)
        with pytest.raises(Killed):
            woodbury(COMMAND, "--out cut")
    assert [entry.name for entry in (here / "cut").iterdir()] == ["unfinished.pt"]
    assert woodbury(COMMAND, "--out cut --resume").exit_code == 0
    assert same("whole", "cut")


def refused(sentence: str, *words: str) -> None:
    before = {
        path: path.stat().st_mtime_ns
        for path in Path().rglob("*")
        if "__pycache__" not in str(path)
    }
    result = woodbury(*words)
    lines = result.stderr.strip().splitlines()
    assert result.exit_code == 2 and lines[-1].startswith("Error: ") and sentence in lines[-1], (
        result.output
    )
    after = {
        path: path.stat().st_mtime_ns
        for path in Path().rglob("*")
        if "__pycache__" not in str(path)
    }
    assert set(after) == set(before)


def rewritten(here: Path, text: str) -> None:
    (here / "net.py").write_text(text)
    for name in [name for name in sys.modules if name.startswith("_woodbury_cli_net")]:
        del sys.modules[name]


def test_what_cannot_be_is_refused_before_any_work(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options, sentence in {
        "--prune-until 0": "--prune-until is 0.0: it is a fraction of the training",
        "--prune-until 1.5": "--prune-until is 1.5",
        "--steps 50": "50 pruning steps do not fit from step 1 to step 5: give 1 to 5",
        "--optimizer sgdd": "There is no optimizer 'sgdd': did you mean sgd?",
        "--lr 0": "--lr is 0.0: give a positive number",
        "--momentum 1": "--momentum is 1.0",
        "--weight-decay -1": "--weight-decay is -1.0",
        "--sparsity 1.2": "sparsity is 1.2",
    }.items():
        refused(sentence, COMMAND, "--out out", options)
    refused(
        "--lr is for fine-tuning: give --epochs too",
        "prune net.py:build net.py:data --sparsity 0.5 --out out --lr 1",
    )
    refused(
        "None of the model's parameters requires a gradient",
        COMMAND.replace(":build", ":frozen"),
        "--out out",
    )
    refused("is a file", COMMAND, "--out net.py")
    refused("cannot be written", COMMAND, "--out net.py/below")

    def stopped(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", stopped)
        patch.setattr(sys, "argv", ["woodbury", *shlex.split(COMMAND), "--out", "my out"])
        result = woodbury(COMMAND, "--out 'my out'")
    assert result.exit_code == 130 and [entry.name for entry in (here / "my out").iterdir()] == [
        "unfinished.pt"
    ]
    assert result.stderr.strip().endswith(f"To go on:  woodbury {COMMAND} --out 'my out' --resume")
    go_on = f"{COMMAND} --out 'my out'"
    refused("holds an unfinished run: go on with --resume", go_on)
    for old, new, sentence in (
        ("0.8", "0.7", "made with sparsity 0.8, now it is 0.7"),
        ("--lr 0.05", "--lr 0.01", "made with lr 0.05, now it is 0.01"),
        ("--steps 3", "--steps 3 --seed 1", "made with seed 0, now it is 1"),
        (":build", ":other", "made with model net.py:build, now it is net.py:other"),
    ):
        refused(sentence, go_on.replace(old, new, 1), "--resume")
    for old, new, sentence in (
        ("seed=0", "seed=5", "made with a checksum of 0.weight"),
        ("[:240]", "[:230]", "made with a number of training samples 192, now it is 184"),
    ):
        rewritten(here, NET.replace(old, new))
        refused(sentence, go_on, "--resume")
    rewritten(here, NET)
    assert woodbury(go_on, "--resume").exit_code == 0
    refused("is finished", go_on, "--resume")
    refused("is not empty", go_on)
    (here / "my out" / "unfinished.pt").write_bytes(b"half")
    refused("unfinished.pt is damaged", go_on, "--resume")


def test_a_loss_that_blows_up_is_said(here: Path) -> None:
    result = woodbury(COMMAND, "--out out --lr 1e30 --steps 1 --prune-until 1")
    assert result.exit_code == 2 and "at step" in result.stderr and "lower" in result.stderr


def test_other_versions_are_remarked_upon(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = RunFolder.save

    def older(self: RunFolder, state: dict[str, Any]) -> None:
        save(
            self,
            state
            | {"record": state["record"] | {"made": {**state["record"]["made"], "torch": "1.0"}}},
        )
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", older)
        with pytest.raises(Killed):
            woodbury(COMMAND, "--out out")
    assert "began with torch 1.0 and goes on with" in woodbury(COMMAND, "--out out --resume").stderr


DYING = """
import os, signal, sys, torch
import woodbury.io.run_folder as run_folder
kind, count = sys.argv[1], int(sys.argv[2])
sys.argv = ["woodbury", *sys.argv[3:]]
seen = 0

def dying(function):
    def wrapper(*given, **options):
        global seen
        seen += 1
        result = function(*given, **options)
        if seen == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return wrapper

if kind == "saving":
    run_folder.torch.save = dying(torch.save)
elif kind == "saved":
    run_folder.RunFolder.save = dying(run_folder.RunFolder.save)
elif kind == "training":
    torch.optim.SGD.step = dying(torch.optim.SGD.step)
elif kind == "finishing":
    run_folder._sync_folder = dying(run_folder._sync_folder)
torch.set_num_threads(1)
from woodbury.cli import main
main()
"""


def killed(here: Path, kind: str, count: int) -> None:
    (here / "dying.py").write_text(DYING)
    root = str(Path(importlib.import_module("woodbury").__file__ or "").parents[1])
    words = [
        sys.executable,
        "dying.py",
        kind,
        str(count),
        *shlex.split(COMMAND),
        "--out",
        f"{kind}-{count}",
        "--resume",
    ]
    done = subprocess.run(
        words, env={"PYTHONPATH": root, "PATH": "/usr/bin:/bin"}, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def test_kill_9_in_the_middle_of_saving(here: Path) -> None:
    assert woodbury(COMMAND, "--out whole").exit_code == 0
    killed(here, "saving", 3)
    assert sorted(entry.name for entry in (here / "saving-3").iterdir()) == [
        ".unfinished.partial",
        "unfinished.pt",
    ]
    assert woodbury(COMMAND, "--out saving-3 --resume").exit_code == 0
    assert same("whole", "saving-3") and len(list((here / "saving-3").iterdir())) == 3


@pytest.mark.slow
def test_kill_9_anywhere(here: Path) -> None:
    assert woodbury(COMMAND, "--out whole").exit_code == 0
    for kind, count in (
        ("saving", 1),
        ("saved", 1),
        ("saved", 4),
        ("training", 3),
        ("training", 8),
        ("finishing", 7),
    ):
        killed(here, kind, count)
        assert woodbury(COMMAND, f"--out {kind}-{count} --resume").exit_code == 0
        assert same("whole", f"{kind}-{count}"), (kind, count)


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(here: Path) -> None:
    root = str(Path(importlib.import_module("woodbury").__file__ or "").parents[1])
    words = [
        sys.executable,
        "-m",
        "woodbury.cli",
        *shlex.split(COMMAND.replace("--epochs 3", "--epochs 3000")),
        "--out",
        "out",
    ]
    environment = {"PYTHONPATH": root, "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(words, stderr=subprocess.PIPE, env=environment, text=True) as process:
        deadline = time.monotonic() + 50
        while not (here / "out" / "unfinished.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and "--out out --resume" in said and "Traceback" not in said
