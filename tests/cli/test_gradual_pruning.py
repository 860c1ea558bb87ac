"""woodbury prune --epochs: its numbers, and runs that are stopped anywhere and go on."""

from __future__ import annotations

import importlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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

NET = Path(__file__).with_name("trainable_net.py")
PRUNE = "prune net.py:build net.py:data --sparsity 0.8 --count 40"
COMMAND = f"{PRUNE} --damping 1e-2 --epochs 3 --steps 3 --lr 0.05"
ROOT = str(Path(importlib.import_module("woodbury").__file__ or "").parents[1])
ENVIRONMENT = {"PYTHONPATH": ROOT, "PATH": "/usr/bin:/bin"}


def same(first: str, second: str) -> bool:
    """Whether two runs gave the same bits and the same numbers, but for time, engine and folder."""
    numbers = [report(folder) for folder in (first, second)]
    for each in numbers:
        del each["seconds"], each["settings"]["engine"], each["command_line"]
    return numbers[0] == numbers[1] and same_weights(first, second)


@pytest.fixture
def pruned(here: Path) -> dict[str, Any]:
    """The report of a run in the folder "out"."""
    succeeds(COMMAND, "--out out --recalibrate --prune-until 0.5 --decay-off")
    return report("out")


def test_it_writes_three_files_and_says_what_it_did(here: Path) -> None:
    result = succeeds(COMMAND, "--out out")
    assert "80.04 % of 456 weights removed: accuracy" in result.stdout
    assert "right after the last" in result.stdout
    names = ["report.html", "report.json", "run.toml", "weights.safetensors"]
    assert sorted(entry.name for entry in Path("out").iterdir()) == names
    assert "Pruning steps" in Path("out/report.html").read_text("utf-8")


def test_the_report_has_every_pruning_step(pruned: dict[str, Any]) -> None:
    steps = pruned["steps"]
    assert [round(step["sparsity"], 2) for step in steps] == [0.56, 0.77, 0.8]
    assert [step["step"] for step in steps] == [1, 3, 4]
    assert steps[2]["epoch"] == pytest.approx(4 / 3)
    for step in steps:
        assert step["damping"] == 1e-2 and step["predicted_increase"] > 0
        assert 0 <= step["held_out_score_after"] <= 1
        interval = step["predicted_interval"]
        assert interval["samples"] == 48 and interval["low"] <= interval["mean"] <= interval["high"]
    assert "held back" in Path("out/report.html").read_text("utf-8")


def test_what_dampings_are_chosen_on_checks_no_prediction(here: Path) -> None:
    succeeds(PRUNE, "--epochs 1 --steps 1 --method mfac --damping 1e-3,1e-1 --out out")
    assert [step["predicted_interval"] for step in report("out")["steps"]] == [None]


def test_the_report_has_the_scores_and_settings(pruned: dict[str, Any]) -> None:
    assert pruned["measure"] == "accuracy" and pruned["seconds"] > 0
    assert pruned["score_after"] > max(pruned["score_before"], pruned["score_pruned"])
    settings = pruned["settings"]
    assert settings["epochs"] == 3 and settings["lr"] == 0.05
    assert settings["weight_decay"] == 1e-4 and settings["engine"] in (
        "hooked",
        "vmapped",
        "looped",
    )
    assert "resume" not in settings


def test_the_layers_of_the_report_add_up(pruned: dict[str, Any]) -> None:
    layers = pruned["layers"]
    written = weights("out")
    kept = sum(int(written[layer["name"]].count_nonzero()) for layer in layers)
    assert kept == 456 - round(0.8 * 456) == sum(layer["kept"] for layer in layers)


@pytest.mark.parametrize(
    "options",
    [
        "--method magnitude --optimizer adam --damping 1e-2",
        "--optimizer adamw --weight-decay 0.1 --steps 1 --damping 1e-2",
        "--method kfac --batch-size 1000 --prune-until 1 --steps 3 --damping 1e-2",
        "--method mfac --damping 1e-3,1e-1 --stages 2 --batch 2 --scope layerwise --momentum 0",
    ],
)
def test_every_option(options: str, here: Path) -> None:
    steps = "" if "--steps" in options else "--steps 3"
    succeeds(PRUNE, "--epochs 3 --lr 0.05 --out out", steps, options)
    assert sum(layer["weights"] - layer["kept"] for layer in report("out")["layers"]) == 365


def dying_after(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with a power failure right after it was called for the n-th time."""
    calls = 0

    def wrapper(*given: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        result = function(*given, **options)
        if calls == call:
            raise Killed
        return result

    return wrapper


@pytest.mark.parametrize("save", range(1, 7))
def test_stopped_anywhere_it_goes_on_to_the_same_bits(
    save: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped while its state is saved for the n-th time, and again at the next step."""
    command = f"{COMMAND} --method woodfisher --out"
    succeeds(command, "whole")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", dying_after(save, torch.save))
        with pytest.raises(Killed):
            woodbury(command, "cut")
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", dying_after(1, torch.optim.SGD.step))
        with pytest.raises(Killed):
            woodbury(command, "cut --resume")
    assert not Path("cut/report.json").exists()
    succeeds(command, "cut --resume")
    assert same("whole", "cut") and len(list(Path("cut").iterdir())) == 4


def test_killed_while_the_results_are_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = importlib.import_module("woodbury.cli.output")
    succeeds(COMMAND, "--out whole")
    with monkeypatch.context() as patch:
        patch.setattr(module, "prune_page", dying_after(1, module.prune_page))
        with pytest.raises(Killed):
            woodbury(COMMAND, "--out cut")
    assert [entry.name for entry in Path("cut").iterdir()] == ["unfinished.pt"]
    succeeds(COMMAND, "--out cut --resume")
    assert same("whole", "cut")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--prune-until 0", "--prune-until is 0.0: it is a fraction of the training"),
        ("--prune-until 1.5", "--prune-until is 1.5"),
        ("--steps 50", "50 pruning steps do not fit from step 1 to step 5: give 1 to 5"),
        ("--optimizer sgdd", "--optimizer is 'sgdd': did you mean sgd?"),
        ("--lr 0", "--lr is 0.0: give a positive number"),
        ("--momentum 1", "--momentum is 1.0"),
        ("--weight-decay -1", "--weight-decay is -1.0"),
        ("--sparsity 1.2", "sparsity is 1.2"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(options: str, sentence: str, here: Path) -> None:
    option = options.split()[0]
    words = shlex.split(COMMAND)
    if option in words:
        at = words.index(option)
        words[at : at + 2] = []
    refused(sentence, shlex.join(words), "--out out", options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--lr 1", "--lr is for fine-tuning: give --epochs too"),
        ("--resume", "--resume is for fine-tuning: give --epochs too"),
        ("--decay-off", "--decay-off is for fine-tuning"),
    ],
)
def test_options_of_the_fine_tuning_need_epochs(options: str, sentence: str, here: Path) -> None:
    refused(sentence, PRUNE, "--out out", options)


def test_a_frozen_network_is_refused(here: Path) -> None:
    command = COMMAND.replace(":build", ":frozen")
    refused("None of the model's parameters requires a gradient", command, "--out out")


@pytest.mark.parametrize(
    ("out", "sentence"), [("net.py", "is a file"), ("net.py/below", "cannot be written")]
)
def test_the_output_folder_is_checked_before_any_work(out: str, sentence: str, here: Path) -> None:
    refused(sentence, COMMAND, "--out", out)


GO_ON = f"{COMMAND} --out 'my out'"


@pytest.fixture
def interrupted(here: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a run in "my out" said on stderr that was interrupted at its first step."""

    def stop(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", stop)
        patch.setattr(sys, "argv", ["woodbury", *shlex.split(GO_ON)])
        result = woodbury(GO_ON)
    assert result.exit_code == 130
    assert [entry.name for entry in Path("my out").iterdir()] == ["unfinished.pt"]
    return result.stderr


def test_ctrl_c_says_how_to_go_on(interrupted: str) -> None:
    assert interrupted.strip().endswith(f"To go on:  woodbury {GO_ON} --resume")
    refused("holds an unfinished run: go on with --resume", GO_ON)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("0.8", "0.7", "made with sparsity 0.8, now it is 0.7"),
        ("--lr 0.05", "--lr 0.01", "made with lr 0.05, now it is 0.01"),
        ("--steps 3", "--steps 3 --seed 1", "made with seed 0, now it is 1"),
        (":build", ":other", "made with model net.py:build, now it is net.py:other"),
    ],
)
def test_a_run_is_not_gone_on_with_by_other_settings(
    old: str, new: str, sentence: str, interrupted: str
) -> None:
    refused(sentence, GO_ON.replace(old, new, 1), "--resume")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("seed: int = 0", "seed: int = 5", "made with a checksum of 0.weight"),
        ("[:240]", "[:230]", "made with a number of training samples 192, now it is 184"),
    ],
)
def test_a_run_is_not_gone_on_with_on_other_data_or_another_network(
    old: str, new: str, sentence: str, interrupted: str
) -> None:
    rewrite_net(NET.read_text("utf-8").replace(old, new))
    refused(sentence, GO_ON, "--resume")


def test_a_finished_run_has_nothing_to_go_on_with(interrupted: str) -> None:
    succeeds(GO_ON, "--resume")
    before = {file: file.read_bytes() for file in Path("my out").iterdir()}
    again = succeeds(GO_ON, "--resume")
    assert "The run in my out is finished: there is nothing left to do." in again.stderr
    assert "Load it with" in again.stdout
    assert before == {file: file.read_bytes() for file in Path("my out").iterdir()}
    refused(
        "The finished run in my out was made with lr 0.05, now",
        GO_ON.replace("0.05", "0.5"),
        "--resume",
    )
    refused("is not empty", GO_ON)
    Path("my out/report.json").write_text("{}")
    refused("report.json is damaged or no report", GO_ON, "--resume")
    Path("my out/unfinished.pt").write_bytes(b"half")
    refused("unfinished.pt is damaged", GO_ON, "--resume")


def test_a_loss_that_blows_up_is_said(here: Path) -> None:
    command = COMMAND.replace("--lr 0.05", "--lr 1e30").replace("--steps 3", "--steps 1")
    result = woodbury(command, "--out out --prune-until 1")
    assert result.exit_code == 2 and "at step" in result.stderr and "lower" in result.stderr


def test_other_versions_are_remarked_upon(interrupted: str) -> None:
    content = torch.load("my out/unfinished.pt", weights_only=True)
    content["state"]["record"]["made"]["torch"] = "1.0"
    torch.save({**content, "checksum": digest(content["state"])}, "my out/unfinished.pt")
    assert "began with torch 1.0 and goes on with" in succeeds(GO_ON, "--resume").stderr


DYING = """
import os, signal, sys, torch
import woodbury.io.run_folder as run_folder
kind, count = sys.argv[1], int(sys.argv[2])
sys.argv = ["woodbury", *sys.argv[3:]]
calls = 0

def dying(function):
    def wrapper(*given, **options):
        global calls
        calls += 1
        result = function(*given, **options)
        if calls == count:
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
"""The command, killed by the system right after a function was called for the n-th time."""


def killed(kind: str, count: int) -> str:
    """The folder of a run that was killed."""
    out = f"{kind}-{count}"
    Path("dying.py").write_text(DYING)
    words = [*shlex.split(COMMAND), "--out", out, "--resume"]
    process = subprocess.run(
        [sys.executable, "dying.py", kind, str(count), *words],
        env=ENVIRONMENT,
        capture_output=True,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    return out


def test_kill_9_in_the_middle_of_saving(here: Path) -> None:
    succeeds(COMMAND, "--out whole")
    out = killed("saving", 3)
    names = [".unfinished.partial", "unfinished.pt"]
    assert sorted(entry.name for entry in Path(out).iterdir()) == names
    succeeds(COMMAND, "--resume --out", out)
    assert same("whole", out) and len(list(Path(out).iterdir())) == 4


@pytest.mark.slow
def test_kill_9_anywhere(here: Path) -> None:
    succeeds(COMMAND, "--out whole")
    for kind, count in (
        ("saving", 1),
        ("saved", 1),
        ("saved", 4),
        ("training", 3),
        ("training", 8),
        ("finishing", 7),
    ):
        out = killed(kind, count)
        succeeds(COMMAND, "--resume --out", out)
        assert same("whole", out), out


@pytest.mark.slow
def test_ctrl_c_in_a_process_says_how_to_go_on(here: Path) -> None:
    words = shlex.split(COMMAND.replace("--epochs 3", "--epochs 3000"))
    command = [sys.executable, "-m", "woodbury.cli", *words, "--out", "out"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True) as process:
        deadline = time.monotonic() + 50
        while not Path("out/unfinished.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "--out out --resume" in stderr and "Traceback" not in stderr
