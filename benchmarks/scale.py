"""Seconds and peak memory of ordinary networks: python benchmarks/scale.py [resnet18 ...]

Each network runs in a process of its own, whose data segment is limited to the budget, with two
threads. The weights are random, which is enough for the cost: accuracy is measured elsewhere. The
seconds are of `woodbury.prune` as it comes; the peak is the process's, python and torch included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import woodbury
from woodbury.evaluation.resources import measured
from woodbury.memory import parse_bytes

THREADS = 2


class Residual(nn.Module):
    """Two 3 × 3 convolutions and the shortcut around them (He et al. 2016)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.shortcut(x)).relu()


def resnet18() -> nn.Module:
    """ResNet-18 for images of 224 × 224, 11.7 million weights."""
    stem = (
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    )
    blocks, before = [], 64
    for stage in range(4):
        for block in range(2):
            stride = 2 if stage and not block else 1
            blocks.append(Residual(before, 64 * 2**stage, stride))
            before = 64 * 2**stage
    return nn.Sequential(
        *stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1000)
    )


def images(count: int) -> list[tuple[Tensor, None]]:
    """Noise in the size of ImageNet, in batches of 16, without labels."""
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(16, 3, 224, 224, generator=generator), None) for _ in range(count // 16)]


class Row(NamedTuple):
    """One network: its samples, its budget, and the sparsity it is pruned to."""

    build: Callable[[], nn.Module]
    data: Callable[[int], Any]
    samples: int
    budget: str
    sparsity: float


ROWS = {"resnet18": Row(resnet18, images, 256, "6GiB", 0.8)}


def run(name: str) -> dict[str, Any]:
    """Prune one network in this process, within its budget."""
    row = ROWS[name]
    limit = parse_bytes(row.budget)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    model = row.build().eval()
    batches = row.data(row.samples)
    pruned, resources = measured(
        lambda: woodbury.prune(model, batches, row.sparsity, memory=row.budget)
    )
    return {
        "network": name,
        "weights": pruned.objective.space.n,
        "samples": row.samples,
        "budget": row.budget,
        "sparsity": pruned.sparsity,
        "seconds": round(resources.seconds, 1),
        "peak_megabytes": round(resources.memory),
        **pruned.settings,
    }


def main() -> None:
    """Run the rows that are asked for, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(ROWS), help=", ".join(ROWS))
    parser.add_argument("--here", action="store_true", help="in this process, as JSON")
    asked = parser.parse_args()
    for name in asked.networks:
        if asked.here:
            print(json.dumps(run(name)))
            continue
        begun = time.perf_counter()
        command = [sys.executable, __file__, name, "--here"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(
                f"{name}: failed after {time.perf_counter() - begun:.0f} s: {done.stderr[-2000:]}"
            )
        else:
            print(done.stdout.strip())


if __name__ == "__main__":
    main()
