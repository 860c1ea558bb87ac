"""What all tests share: one thread, as two on a busy machine wait for each other; a folder to run commands in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def here(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The current folder, with the test module's NET in its net.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(
        sys, "dont_write_bytecode", True
    )  # a file rewritten within a second passes for the old one
    path = list(sys.path)
    (tmp_path / "net.py").write_text(request.module.NET)
    yield tmp_path
    sys.path[:] = path
