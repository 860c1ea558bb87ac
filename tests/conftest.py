"""What all tests share: one thread, no progress lines, a folder for commands, other limits."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from support.limits import Limited

from woodbury.limits import Limits
from woodbury.training import gradual

torch.set_num_threads(1)  # two on a loaded machine wait for each other
hypothesis.settings.register_profile("untimed", deadline=None)  # a loaded machine fails no test
hypothesis.settings.load_profile("untimed")


@pytest.fixture
def here(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The current folder, with the file NET of the test module as its net.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    # A file that is rewritten within a second would pass for the old one.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = list(sys.path)
    shutil.copy(request.module.NET, tmp_path / "net.py")
    yield tmp_path
    sys.path[:] = path


@pytest.fixture(autouse=True)
def unsaid(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Gradual that is left before its last step says so in the output of some later test."""
    if "hears_the_end" not in request.keywords:
        monkeypatch.setattr(gradual._Missed, "say", lambda self: None)


@pytest.fixture
def limited() -> Iterator[Limited]:
    """Change some of the limits for the rest of the test."""
    with ExitStack() as stack:

        def change(**fields: Any) -> None:
            stack.enter_context(replace(Limits.current(), **fields))

        yield change


@pytest.fixture
def hub_is_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In a folder of its own nothing is asked of the hub, nor left in the user's caches."""
    pytest.importorskip("transformers", reason="needs transformers, of the extra models")
    datasets = pytest.importorskip("datasets", reason="needs datasets, of the extra models")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.chdir(tmp_path)
