"""Memory, seconds and traffic of one pruning step over ranks: python benchmarks/ranks.py [1 2 4]

ResNet-18 at 224² with random weights, 128 images, one step of M-FAC to 80 % with all gradients in
one matrix; --mlp takes a perceptron of 16.8 million weights, whose activations are small, and
--block WoodFisher in such blocks. The ranks are processes on this machine, each with one thread, in
a gloo group. The peak is each process's own; what python, torch and the model take is measured
before the step.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from networks import images, resnet18
from torch import nn

import woodbury
from woodbury.linalg.ranks import Ranks

SAMPLES = 128
SPARSITY = 0.8
DAMPING = 1e-2
MEMORY = "12GiB"
"""Given to each rank, so that no rows lie on the disk: they take 6 GB in all."""


class Asked(NamedTuple):
    """What is run.

    Attributes:
        samples: Rows.
        mlp: Whether a perceptron is pruned in place of ResNet-18.
        block: Weights of a block; None for all gradients in one matrix.
    """

    samples: int
    mlp: bool
    block: int | None


def problem(asked: Asked) -> tuple[nn.Module, list[Any]]:
    """A network with random weights, and its samples."""
    torch.manual_seed(0)
    if not asked.mlp:
        return resnet18().eval(), images(asked.samples)
    model = nn.Sequential(nn.Linear(1024, 8192), nn.ReLU(), nn.Linear(8192, 1024))
    inputs = torch.randn(asked.samples, 1024)
    return model, [(inputs, torch.arange(asked.samples))]


def step(asked: Asked) -> dict[str, Any]:
    """One pruning step on this rank: its weights in short, its seconds, bytes and peak."""
    model, batches = problem(asked)
    before = peak_bytes()
    fisher = woodbury.mfac(
        asked.samples, DAMPING, block=asked.block, labels=woodbury.estimation.sampled
    )
    pruner = woodbury.Pruner(fisher)
    with Ranks.of(None).started("the benchmark") as ranks:
        begun, processor = time.perf_counter(), time.process_time()
        pruned = woodbury.prune(model, batches, SPARSITY, pruner=pruner, memory=MEMORY)
        return {
            "seconds": time.perf_counter() - begun,
            "processor_seconds": time.process_time() - processor,
            "before_bytes": before,
            "peak_bytes": peak_bytes(),
            "sent_bytes": ranks.traffic.sent,
            "collectives": ranks.traffic.collectives,
            "weights": pruned.objective.space.n,
            "norm": float(pruned.weights.double().norm()),
            "kept": int(pruned.keep.sum()),
        }


def peak_bytes() -> int:
    """The most that this process has had in memory."""
    status = Path("/proc/self/status").read_text("utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def work(rank: int, count: int, folder: str, asked: Asked) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    done = step(asked)
    Path(folder, f"{rank}.json").write_text(json.dumps(done), "utf-8")
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(count: int, asked: Asked) -> list[dict[str, Any]]:
    """What each of some ranks reports."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (count, folder, asked), nprocs=count)  # type: ignore[attr-defined]
        files = [Path(folder, f"{rank}.json") for rank in range(count)]
        return [json.loads(file.read_text("utf-8")) for file in files]


def main() -> None:
    """Run each number of ranks, and print what one rank took at most."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ranks", nargs="*", type=int, default=[1, 2, 4])
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--mlp", action="store_true", help="a perceptron in place of ResNet-18")
    parser.add_argument("--block", type=int, help="WoodFisher in blocks of so many weights")
    given = parser.parse_args()
    for count in given.ranks:
        found = on_ranks(count, Asked(given.samples, given.mlp, given.block))
        most = {name: max(one[name] for one in found) for name in found[0]}
        print(json.dumps({"ranks": count, "load": os.getloadavg()[0], **most}))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
