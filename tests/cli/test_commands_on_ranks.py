"""The command line under torchrun: one report, one voice, and runs that go on after a kill."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.torchrun import Launched

import woodbury

WOODBURY = ["-m", "woodbury.cli"]
SCRIPT = Path(sys.executable).with_name("woodbury")
NETWORK = """
import os

import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))


def of_rank():
    rank = int(os.environ.get("RANK", "0"))
    return nn.Sequential(nn.Linear(6, 24 - 4 * rank), nn.ReLU(), nn.Linear(24 - 4 * rank, 3))


def unread():
    if os.environ.get("RANK") == "1":
        raise OSError("the disk of this rank is away")
    return net()
"""
GRADUAL = ["--sparsity", "0.8", "--epochs", "200", "--steps", "4", "--count", "90"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a network and data."""
    (tmp_path / "net.py").write_text(NETWORK)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(160, 6)).astype(np.float32)
    y = (x @ generator.normal(size=(6, 3))).argmax(1)
    np.savez(tmp_path / "data.npz", x=x[:120], y=y[:120], x_test=x[120:], y_test=y[120:])
    return tmp_path


def command(place: Path, count: int, *words: str) -> tuple[int, str, str]:
    return Launched(count, [*WOODBURY, *words], place).ended()


def differences(place: Path, first: str, second: str) -> float:
    """The largest difference of two networks, whose zeros are the same."""
    one = woodbury.load_sparse(place / first / "weights.safetensors")
    other = woodbury.load_sparse(place / second / "weights.safetensors")
    for name, tensor in one.items():
        assert torch.equal(tensor != 0, other[name] != 0), name
    return max(float((tensor - other[name]).abs().max()) for name, tensor in one.items())


def test_two_ranks_prune_together_and_one_writes(place: Path) -> None:
    words = ["prune", "net.py:net", "data.npz", "--sparsity", "0.7", "--out", "out"]
    code, out, err = command(place, 2, *words)
    assert code == 0, err
    assert out.count("accuracy") and out.count("Load it with") == 1
    made = {file.name for file in place.iterdir()} - {"__pycache__"}
    assert made == {"data.npz", "net.py", "out"}
    report: dict[str, Any] = json.loads((place / "out" / "report.json").read_text())
    assert report["sparsity"] == pytest.approx(0.7, abs=0.01)


@pytest.mark.slow
@pytest.mark.skipif(not SCRIPT.exists(), reason="the package is not installed")
def test_the_console_script_is_launched_too(place: Path) -> None:
    words = ["prune", "net.py:net", "data.npz", "--sparsity", "0.7", "--out", "out"]
    code, out, err = Launched(2, ["--no-python", str(SCRIPT), *words], place).ended()
    assert code == 0, err
    assert out.count("Load it with") == 1 and (place / "out" / "weights.safetensors").exists()
    steps = [line for line in err.splitlines() if "gradient" in line]
    assert len(steps) == len(set(steps)), err  # one rank alone tells how far it is


@pytest.mark.slow
def test_a_command_of_one_process_and_a_user_error_are_said_once(place: Path) -> None:
    code, _, err = command(place, 2, "inspect", "net.py:net", "data.npz")
    assert code != 0 and err.count("runs in one process") == 1
    words = ["prune", "net.py:net", "missing.npz", "--sparsity", "0.7"]
    code, _, err = command(place, 2, *words)
    assert code != 0 and err.count("missing.npz") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        ("of_rank", "The ranks differ in a checksum of 0.weight"),
        ("unread", "Rank 1 failed in woodbury prune: "),
    ],
)
def test_a_rank_that_reads_something_else_is_named(
    network: str, sentence: str, place: Path
) -> None:
    words = ["prune", f"net.py:{network}", "data.npz", "--sparsity", "0.7", "--out", "out"]
    code, _, err = command(place, 2, *words)
    assert code != 0 and err.count(f"Error: {sentence}") == 1, err
    assert "terminate called" not in err and "SIGABRT" not in err
    assert not (place / "out" / "weights.safetensors").exists()


@pytest.mark.slow
def test_all_end_when_one_rank_is_killed(place: Path) -> None:
    words = ["prune", "net.py:net", "data.npz", *GRADUAL, "--out", "out"]
    words[words.index("--epochs") + 1] = "3000"
    started = Launched(2, [*WOODBURY, *words], place)
    until = time.monotonic() + 150
    while not (place / "out" / "unfinished.pt").exists() and time.monotonic() < until:
        time.sleep(0.02)
    ranks = started.ranks()
    os.kill(ranks[1], signal.SIGKILL)
    begun = time.monotonic()
    code, _, err = started.ended()
    assert code != 0 and "exitcode  : -9" in err and "rank      : 1" in err
    assert time.monotonic() - begun < 30
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    assert (place / "out" / "unfinished.pt").exists()


@pytest.mark.slow
def test_a_second_launch_into_a_folder_is_refused_and_an_interrupted_one_ends(place: Path) -> None:
    words = ["prune", "net.py:net", "data.npz", *GRADUAL, "--out", "out"]
    words[words.index("--epochs") + 1] = "20000"
    started = Launched(2, [*WOODBURY, *words], place)
    until = time.monotonic() + 150
    while not (place / "out" / "unfinished.pt").exists() and time.monotonic() < until:
        time.sleep(0.02)
    code, _, err = command(place, 2, *words)
    assert code != 0 and err.count("is writing to the output folder out") == 1, err
    ranks = started.ranks()
    started.process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    code, _, _ = started.ended()
    assert code != 0 and time.monotonic() - begun < 30
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


@pytest.mark.slow
def test_compare_hands_out_its_cells(place: Path) -> None:
    words = ["compare", "net.py:net", "data.npz", "--methods", "magnitude,woodfisher"]
    words += ["--sparsities", "0.5,0.8", "--seeds", "2", "--count", "60"]
    found = []
    for count, name in ((2, "two"), (1, "one")):
        code, _, err = command(place, count, *words, "--out", name)
        assert code == 0, err
        results = json.loads((place / name / "results.json").read_text())["results"]
        found.append([(r["method"], r["sparsity"], r["seed"], r["accuracy"]) for r in results])
    assert found[0] == found[1] and len(found[0]) == 8


@pytest.mark.slow
def test_a_killed_run_is_resumed_by_another_number_of_ranks(place: Path) -> None:
    whole = command(place, 2, "prune", "net.py:net", "data.npz", *GRADUAL, "--out", "whole")
    assert whole[0] == 0, whole[2]
    words = ["prune", "net.py:net", "data.npz", *GRADUAL, "--out", "killed"]
    killed = Launched(2, [*WOODBURY, *words], place)
    until = time.monotonic() + 150
    while not (place / "killed" / "unfinished.pt").exists() and time.monotonic() < until:
        time.sleep(0.02)
    killed.kill()
    assert (place / "killed" / "unfinished.pt").exists()
    code, _, err = command(place, 3, *words, "--resume")
    assert code == 0, err
    assert differences(place, "whole", "killed") < 1e-5


@pytest.mark.slow
def test_train_shares_its_batches(place: Path) -> None:
    words = ["train", "net.py:net", "data.npz", "--epochs", "3", "--optimizer", "sgd"]
    for count in (1, 2):
        code, _, err = command(place, count, *words, "--out", str(count))
        assert code == 0, err
    assert differences(place, "1", "2") < 1e-5
