"""Where results go without --out, and --version."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.cli import refused, same_weights, succeeds, woodbury

import woodbury as package

NET = Path(__file__).with_name("net.py")
MAGNITUDE = "prune net.py:build net.py:both --method magnitude"


def test_a_folder_is_found_and_told(here: Path) -> None:
    first = succeeds(MAGNITUDE, "--sparsity .50")
    assert "The results will be in runs/build-0.5: --out names another folder." in first.stderr
    succeeds(MAGNITUDE, "--sparsity 0.5")
    assert same_weights("runs/build-0.5", "runs/build-0.5-2")
    succeeds(MAGNITUDE, "--pattern 2:4 --include 1.*")
    succeeds(MAGNITUDE, "--sparsity 4.*=0,*=0.75")
    names = {entry.name for entry in Path("runs").iterdir()}
    assert names == {"build-0.5", "build-0.5-2", "build-2of4", "build-4-0-0.75"}


def test_what_can_be_resumed_finds_a_folder_too(here: Path) -> None:
    refused("--resume goes on with the run in a folder: give its --out.", TRAIN, "--resume")
    for _ in range(2):
        assert "runs/build-sgd" in succeeds(TRAIN).stderr
    assert same_weights("runs/build-sgd", "runs/build-sgd-2")


TRAIN = "train net.py:build net.py:both --epochs 1 --optimizer sgd"


def test_what_is_refused_leaves_no_folder(here: Path) -> None:
    refused("max_layer_sparsity", MAGNITUDE, "--sparsity 0.9 --max-layer-sparsity 0.5")
    refused("The target 'fc*' matches no parameter", MAGNITUDE, "--sparsity fc*=0.5,*=0.9")


@pytest.mark.parametrize("words", ["--version"])
def test_the_version(words: str) -> None:
    result = woodbury(words)
    assert result.exit_code == 0 and not result.stderr
    assert result.stdout.startswith(f"woodbury {package.__version__} (torch {torch.__version__}")
    assert len(result.stdout.splitlines()) == 1
