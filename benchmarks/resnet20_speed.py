"""ResNet-20 pruned and then faster: python benchmarks/resnet20_speed.py [--sparsities .8 .9]
[--threads 2]

`woodbury.prune` as it comes, all matrices, from 1,000 random training images of CIFAR-10: accuracy
on the test images, seconds and peak memory of the process; the size of its file, dense and sparse;
and milliseconds of one thread, dense and by `woodbury.accelerate`, in turns. Needs ../shared/bench.
"""

from __future__ import annotations

import argparse
import copy
import resource
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from measured import bench_data
from one_shot import resnet20
from rich.console import Console
from rich.table import Table
from torch import nn

import woodbury
from woodbury.evaluation.metrics import accuracy
from woodbury.io.sparse_files import save_sparse
from woodbury.runtime.measuring import in_turns

SAMPLES, BATCH = 1000, 100
ROUNDS, SECONDS = 25, 4.0
"""Turns of a timing, and the seconds after which there are no more."""


def kilobytes(model: nn.Module) -> str:
    """The sizes of the files of its weights, dense and sparse."""
    with tempfile.TemporaryDirectory() as folder:
        dense, sparse = Path(folder, "dense.pt"), Path(folder, "sparse.safetensors")
        torch.save(model.state_dict(), dense)
        save_sparse(sparse, model.state_dict())
        return "; ".join(f"{file.stat().st_size / 1000:,.0f}" for file in (dense, sparse))


def milliseconds(model: nn.Module, batch: int) -> str:
    """Of a batch by one thread, dense and accelerated."""
    torch.set_num_threads(1)
    images = torch.randn(batch, 3, 32, 32)
    fast = woodbury.accelerate(model, images)
    with torch.inference_mode():
        turns = {"dense": lambda: model(images), "fast": lambda: fast(images)}
        seconds = in_turns(turns, ROUNDS, SECONDS)
    return "; ".join(f"{1000 * median(each):.1f}" for each in seconds.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.8, 0.9])
    parser.add_argument("--threads", type=int, default=2, help="of the pruning")
    parser.add_argument("--seed", type=int, default=0, help="of the calibration images")
    asked = parser.parse_args()
    task = resnet20(bench_data(asked.threads))
    x, y = task.train
    generator = torch.Generator().manual_seed(asked.seed)
    drawn = torch.randperm(len(y), generator=generator)[:SAMPLES]
    images = list(zip(x[drawn].split(BATCH), y[drawn].split(BATCH), strict=True))
    test = list(zip(*(part.split(BATCH) for part in task.test), strict=True))
    columns = ("zeros", "accuracy", "s", "peak, MB", "file, KB", "batch 1, ms", "batch 16, ms")
    table = Table(*columns, title="Pairs are dense; sparse")
    for sparsity in asked.sparsities:
        torch.set_num_threads(asked.threads)
        model = copy.deepcopy(task.model)
        begun = time.monotonic()
        pruned = woodbury.prune(model, images, sparsity)
        seconds = time.monotonic() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        reached = f"{100 * accuracy(pruned.objective, test):.2f}"
        costs = (f"{seconds:.1f}", f"{peak:,.0f}", kilobytes(model))
        timed = (milliseconds(model.eval(), 1), milliseconds(model, 16))
        table.add_row(f"{sparsity:g}", reached, *costs, *timed)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
