"""woodbury demo: in small, and (slow) as it is."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cli import succeeds

NET = Path(__file__).with_name("net.py")


def test_the_demo_in_small(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    command: Any = importlib.import_module("woodbury.cli.demo_command")
    digits: Any = importlib.import_module("woodbury.cli.digits")
    monkeypatch.setattr(command, "SPARSITIES", (0.5, 0.9))
    monkeypatch.setattr(command, "COUNT", 100)
    monkeypatch.setattr(command, "CALIBRATION_SETS", 2)
    monkeypatch.setattr(command, "DAMPINGS", (1e-4, 1e-2))
    monkeypatch.setattr(digits, "EPOCHS", 4)
    Path("runs/demo").mkdir(parents=True)
    threads = torch.get_num_threads()
    result = succeeds("demo")
    assert torch.get_num_threads() == threads
    assert "M-FAC, joint" in result.stdout and "What next?" in result.stdout
    written = {entry.name for entry in Path("runs/demo-2").iterdir()}
    assert {"accuracy.svg", "report.html", "results.json"} <= written


@pytest.mark.slow
def test_the_demo_shows_what_it_says(here: Path) -> None:
    succeeds("demo --out out")
    cells = json.loads(Path("out/results.json").read_text("utf-8"))["summary"]
    at = {(cell["method"], cell["sparsity"]): cell["accuracy"] for cell in cells}
    assert at["M-FAC, joint", 0.9] > max(at["magnitude", 0.9], at["diagonal Fisher", 0.9]) + 0.05
    assert at["M-FAC, joint", 0.9] > max(at["WoodFisher", 0.9], at["M-FAC", 0.9])
    others = [
        accuracy
        for (name, sparsity), accuracy in at.items()
        if sparsity == 0.95 and "refit" not in name
    ]
    assert at["… and a refit", 0.95] > max(others) + 0.1
