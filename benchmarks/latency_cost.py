"""ResNet-20 on CIFAR-10 with the sparsity a share of the weights, or of their measured seconds:

python benchmarks/latency_cost.py [--seeds 3] [--sparsities .7,.8,.9] [--count 300]

For each cost, sparsity and calibration sample: the accuracy on test images, and the milliseconds of
a batch of 16 by the layers of `woodbury.accelerate`, in turns with the dense network. At the end
the accuracy at equal time, on the line between neighbouring points of a sample. One thread, whose
own time is counted. Needs ../shared/bench beside the project.
"""

from __future__ import annotations

import argparse
import os
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from limits import table
from measured import bench_data, finished, keep, spread
from rich.console import Console
from torch import Tensor, nn

import woodbury
from woodbury.runtime.measuring import in_turns, machine
from woodbury.runtime.speeds import EAGER, OURS

CELLS = Path("runs/latency_cost.json")
BATCH, TEST, DAMPING, STAGES = 16, 4000, 1e-2, 3
COSTS = ("weights", "latency")


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """In %."""
    with torch.inference_mode():
        right = [model(a).argmax(1) == b for a, b in zip(x.split(500), y.split(500), strict=True)]
    return 100 * float(torch.cat(right).double().mean())


def milliseconds(model: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Least of a batch, dense and sparse; without an example no layer's win is taken back."""
    fast = woodbury.accelerate(model)
    with torch.inference_mode():
        ways = {EAGER: lambda: model(inputs), OURS: lambda: fast(inputs)}
        return {way: 1000 * min(each) for way, each in in_turns(ways, 25, 5.0).items()}


def cell(dense: nn.Module, data: Any, cost: str, sparsity: float, seed: int, count: int) -> Any:
    """One pruned network."""
    x, y, x_test, y_test = data
    model = deepcopy(dense)
    drawn = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:count]
    batches = list(zip(x[drawn].split(100), y[drawn].split(100), strict=True))
    inputs = x_test[:BATCH]
    begun = time.perf_counter()
    recipe = woodbury.Pruner(woodbury.mfac(count, DAMPING))
    if cost == "latency":
        recipe = woodbury.Pruner(
            woodbury.mfac(count, DAMPING), cost=woodbury.latency(model, inputs)
        )
    woodbury.prune(model, batches, sparsity, pruner=recipe, stages=STAGES)
    seconds = time.perf_counter() - begun
    weights = [each for each in model.parameters() if each.ndim > 1]
    zeros = sum(int((each == 0).sum()) for each in weights) / sum(each.numel() for each in weights)
    return {
        "accuracy": accuracy(model, x_test[:TEST], y_test[:TEST]),
        "milliseconds": milliseconds(model, inputs),
        "zeros": zeros,
        "seconds": seconds,
        "load": os.getloadavg()[0],
        "machine": machine(),
    }


def show(cells: dict[str, Any], sparsities: list[float], seeds: int) -> None:
    """Print all cells, then the accuracies at equal times."""
    rows, lines = [], {}
    for cost in COSTS:
        for sparsity in sparsities:
            found = [cells[f"{cost} {sparsity} {seed}"] for seed in range(seeds)]
            times = [each["milliseconds"] for each in found]
            rows.append(
                [
                    cost,
                    f"{sparsity:g}",
                    spread([100 * each["zeros"] for each in found], 1),
                    spread([each["accuracy"] for each in found]),
                    spread([each[OURS] for each in times]),
                    spread([each[EAGER] / each[OURS] for each in times]),
                ]
            )
        for seed in range(seeds):
            points = [cells[f"{cost} {sparsity} {seed}"] for sparsity in sparsities]
            ratios = [p["milliseconds"][OURS] / p["milliseconds"][EAGER] for p in points]
            lines[cost, seed] = sorted(zip(ratios, [p["accuracy"] for p in points], strict=True))
    header = ("a share of the", "sparsity", "zeros, %", "accuracy, %", "ms", "dense ÷ ours")
    console = Console(width=110)
    console.print(table("ResNet-20, batch 16", header, rows))
    low = max(line[0][0] for line in lines.values())
    high = min(line[-1][0] for line in lines.values())

    def between(cost: str, seed: int, ratio: float) -> float:
        ratios, scores = zip(*lines[cost, seed], strict=True)
        return float(np.interp(ratio, ratios, scores))

    for ratio in np.linspace(low, high, 3) if low < high else ():
        at = {cost: [between(cost, seed, ratio) for seed in range(seeds)] for cost in COSTS}
        words = ", ".join(f"{cost} {spread(each)}" for cost, each in at.items())
        console.print(f"At {ratio:.2f} of the dense time: {words} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sparsities", default="0.7,0.8,0.9")
    parser.add_argument("--count", type=int, default=300)
    asked = parser.parse_args()
    bench = bench_data(threads=1)
    dense, data = bench.resnet20().eval(), bench.cifar10()
    cells = finished(CELLS)
    sparsities = [float(each) for each in asked.sparsities.split(",")]
    for seed in range(asked.seeds):
        for sparsity in sparsities:
            for cost in COSTS:
                key = f"{cost} {sparsity} {seed}"
                if key not in cells:
                    cells[key] = cell(dense, data, cost, sparsity, seed, asked.count)
                    keep(cells, CELLS)
                    print(key, cells[key], flush=True)
    show(cells, sparsities, asked.seeds)


if __name__ == "__main__":
    main()
