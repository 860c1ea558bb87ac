"""woodbury speed: a table for a folder of prune's or for a network, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.cli import refused, report, succeeds

from woodbury.runtime import measuring, speeds
from woodbury.runtime.layouts import Tiling
from woodbury.runtime.measuring import Choice

pytest.importorskip("numba", reason="the sparse kernels need Numba")

NET = Path(__file__).with_name("net.py")
PRUNE = "prune net.py:build net.py:both --sparsity 0.8 --method magnitude --update zero --out out"


@pytest.fixture(autouse=True)
def without_trials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each layer runs sparse, and each way is called twice; the clock does not matter here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(speeds, "ROUNDS", 1)
    monkeypatch.setattr(
        measuring, "chosen", lambda key, dense, sparse: Choice(Tiling(1, 0), 2.0, 1.0)
    )
    monkeypatch.setattr(
        speeds, "_by_onnxruntime", lambda model, inputs: lambda: torch.zeros(1)
    )  # an engine whose outputs are wrong has no time


def test_a_folder_of_prune(here: Path) -> None:
    succeeds(PRUNE)
    result = succeeds("speed out --batches 1,3 --out timed")
    assert "woodbury, sparse" in result.stdout and "ms, batch 3" in result.stdout
    numbers = report("timed")
    assert numbers["command"] == "speed" and numbers["settings"]["data"] == "net.py:both"
    left = numbers["left"]
    assert (left["weights"], left["weights_before"]) == (456 - round(0.8 * 456), 456)
    assert 0 < left["flops"] < left["flops_before"]
    times = {(row["batch"], row["way"]): row for row in numbers["speeds"]}
    for batch in (1, 3):
        assert times[batch, speeds.EAGER]["seconds"] > 0
        assert times[batch, speeds.OURS]["seconds"] > 0
        assert times[batch, speeds.OURS]["difference"] < 1e-5
        assert times[batch, speeds.ONNX]["seconds"] is None
        assert "other" in times[batch, speeds.ONNX]["note"]
    assert "Layers at batch 3" in Path("timed/report.html").read_text("utf-8")


def test_a_network_and_its_data(here: Path) -> None:
    assert "ratio" in succeeds("speed net.py:build net.py:both --batches 2").stdout
    assert not Path("out").exists()


def test_what_it_refuses(here: Path) -> None:
    refused("give one, or a network and its data", "speed net.py:build")
    refused("--batches is 'a'", "speed net.py:build net.py:both --batches a")
    refused("--threads is 0", "speed net.py:build net.py:both --threads 0")
    Path("empty").mkdir()
    refused("does not hold what prune writes", "speed empty")
    Path("empty/report.json").write_text(json.dumps({"settings": {}}), "utf-8")
    refused("does not hold what prune writes", "speed empty")


def test_a_share_of_the_time(here: Path) -> None:
    succeeds(PRUNE, "--latency")
    settings = report("out")["settings"]
    assert settings["latency"] is True
    refused("--latency counts seconds", PRUNE.replace("out out", "out other"), "--latency --flops")
