"""Memory, seconds and traffic of one pruning step over ranks: python benchmarks/ranks.py [1 2 4]

ResNet-18 at 224² with random weights, 128 images, one step of M-FAC to 80 % with all gradients in
one matrix. The ranks are processes on this machine, each with one thread, in a gloo group. The peak
is each process's own; what python, torch and the model take is measured before the step.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from networks import images, resnet18

import woodbury
from woodbury.linalg.ranks import Ranks

SAMPLES = 128
SPARSITY = 0.8
DAMPING = 1e-2
MEMORY = "12GiB"
"""Given to each rank, so that no rows lie on the disk: they take 6 GB in all."""


def step(samples: int) -> dict[str, Any]:
    """One pruning step on this rank: its weights in short, its seconds, bytes and peak."""
    torch.manual_seed(0)
    model = resnet18().eval()
    batches = images(samples)
    before = peak_bytes()
    pruner = woodbury.Pruner(woodbury.mfac(samples, DAMPING, labels=woodbury.estimation.sampled))
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


def work(rank: int, count: int, folder: str, samples: int) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    done = step(samples)
    Path(folder, f"{rank}.json").write_text(json.dumps(done), "utf-8")
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(count: int, samples: int) -> list[dict[str, Any]]:
    """What each of some ranks reports."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (count, folder, samples), nprocs=count)  # type: ignore[attr-defined]
        files = [Path(folder, f"{rank}.json") for rank in range(count)]
        return [json.loads(file.read_text("utf-8")) for file in files]


def main() -> None:
    """Run each number of ranks, and print what one rank took at most."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ranks", nargs="*", type=int, default=[1, 2, 4])
    parser.add_argument("--samples", type=int, default=SAMPLES)
    asked = parser.parse_args()
    for count in asked.ranks:
        found = on_ranks(count, asked.samples)
        most = {name: max(one[name] for one in found) for name in found[0]}
        print(json.dumps({"ranks": count, "load": os.getloadavg()[0], **most}))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
