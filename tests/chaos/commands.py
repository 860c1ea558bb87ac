"""The commands that are disturbed, and a training loop of a user's, with what they should give."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import woodbury
from woodbury.cli import main
from woodbury.estimation.engines import vmapped
from woodbury.io.fingerprint import digest
from woodbury.reporting.files import read_json

NET = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))

def data():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 3
    inputs = torch.randn(200, 6, generator=generator) + 2 * torch.eye(3, 6)[labels]
    return inputs[:150], labels[:150], inputs[150:], labels[150:]
"""
TIMES = {
    "command_line",
    "seconds",
    "peak_megabytes",
    "memory",
    "versions",
    "plan",
    "engine",
    "rates",
}
"""Facts that differ from run to run."""


@dataclass(frozen=True)
class Job:
    """Something that is started, disturbed and started again.

    Attributes:
        name: What it is.
        work: What is run in a folder; its argument says whether it was begun before.
        result: What it has made there, as a checksum; raises where that is not whole.
    """

    name: str
    work: Callable[[bool], int]
    result: Callable[[Path], str]

    @property
    def is_whole_or_nothing(self) -> bool:
        """Whether nothing is there before the end."""
        return self.name in ("prune", "compare")


def command(words: str, resumable: bool) -> Callable[[bool], int]:
    def run(again: bool) -> int:
        sys.argv = ["woodbury", *words.split(), *(["--resume"] if resumable and again else [])]
        torch.set_num_threads(1)
        main()
        return 0

    return run


def pruned(folder: Path) -> str:
    """Of weights.safetensors and report.json."""
    facts = _without_times(read_json(folder / "out" / "report.json"))
    weights = woodbury.load_sparse(folder / "out" / "weights.safetensors")
    return digest({"facts": facts, "weights": weights})


def compared(folder: Path) -> str:
    """Of results.json."""
    facts = json.loads((folder / "out" / "results.json").read_text("utf-8"))
    return digest(_without_times({"results": facts["results"]}))


def _without_times(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_times(value) for key, value in node.items() if key not in TIMES}
    return [_without_times(value) for value in node] if isinstance(node, list) else node


STEPS = 16


def users_loop(again: bool) -> int:
    """Training with Gradual, saved after every second step, gone on with where it was stopped."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    batches = [_batch(step) for step in range(4)]
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    recipe = woodbury.mfac(30, 1e-3, engine=vmapped)
    gradual = woodbury.Gradual(
        model, optimizer, batches, 0.8, end=12, steps=4, pruner=woodbury.Pruner(recipe)
    )
    parts = {"model": model, "optimizer": optimizer, "gradual": gradual}
    done = 0
    if os.path.exists("state.pt"):
        saved = torch.load("state.pt", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        done = saved["done"]
    for step in range(done, STEPS):
        inputs, target = _batch(100 + step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), target).backward()
        optimizer.step()
        if step % 2:
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save({"done": step + 1, **state}, "state.tmp")
            os.replace("state.tmp", "state.pt")
    torch.save(model.state_dict(), "final.tmp")
    os.replace("final.tmp", "final.pt")
    return 0


def _batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(24) % 3
    return torch.randn(24, 6, generator=generator) + torch.eye(3, 6)[labels], labels


def of_users_loop(folder: Path) -> str:
    return digest(torch.load(folder / "final.pt", weights_only=True))


DATA = "net.py:net net.py:data --out out"
JOBS = (
    Job(
        "prune --epochs",
        command(
            f"prune {DATA} --sparsity 0.8 --method woodfisher --count 30 --damping 1e-2 --epochs 2 "
            "--steps 3 --lr 0.05 --batch-size 32",
            True,
        ),
        pruned,
    ),
    Job("train", command(f"train {DATA} --epochs 4 --batch-size 32 --lr 0.01", True), pruned),
    Job("prune", command(f"prune {DATA} --sparsity 0.7", False), pruned),
    Job(
        "compare",
        command(
            f"compare {DATA} --methods magnitude,mfac --sparsities 0.5,0.9 --seeds 1 --count 40 "
            "--damping 1e-3",
            False,
        ),
        compared,
    ),
    Job("Gradual in a loop", users_loop, of_users_loop),
)
QUICK = tuple(job for job in JOBS if job.name in ("train", "Gradual in a loop"))
"""Those that take a fraction of a second."""
