"""How seconds and memory of a pruning step grow with the weights: python benchmarks/scale_law.py

Each cell is a step to .5 in a process of its own: WoodFisher in blocks of 50 with 64 rows, the
diagonal, and M-FAC of 16 rows, on perceptrons whose width grows. The seconds are of the processor,
which neighbours on the machine disturb less than those of the clock; the memory is the peak of the
process less what it has before the step. Gradients come in chunks of eight rows at every size, and
temporaries have as many numbers as weights: pieces of equal bytes, as by default, hold all of a
small network and little of a large one, so that memory grows less than the weights. The exponents
are those of a line through the logarithms.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from limits import table
from rich.console import Console
from torch import nn

import woodbury
from woodbury.estimation.recipes import Estimate

THREADS = 2
DEPTH = 4
CHUNK = 8
"""Gradient rows of a chunk."""
BUDGET = "14GiB"
SIZES = (100_000, 400_000, 1_600_000, 6_400_000, 30_000_000)


class Method(NamedTuple):
    """A recipe and the samples that it reads."""

    recipe: Callable[[], Estimate]
    samples: int


METHODS = {
    "woodfisher": Method(lambda: woodbury.woodfisher(64, block=50), 64),
    "diagonal": Method(lambda: woodbury.diagonal_fisher(64), 64),
    "mfac": Method(lambda: woodbury.mfac(16), 16),
}


class Cost(NamedTuple):
    """What a step took."""

    d: int
    seconds: float
    bytes: int


def perceptron(weights: int) -> nn.Module:
    """Square layers of about so many weights in all."""
    width = round((weights / DEPTH) ** 0.5)
    layers = [layer for _ in range(DEPTH) for layer in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def peak() -> int:
    """The most bytes that this process has had."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def step(name: str, weights: int) -> Cost:
    """Prune one perceptron in this process."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    method = METHODS[name]
    small, model = perceptron(1000), perceptron(weights)
    prune(method, small)  # what the first call loads and compiles counts for none
    before, start = peak(), time.process_time()
    d = prune(method, model)
    return Cost(d, time.process_time() - start, peak() - before)


def prune(method: Method, model: nn.Module) -> int:
    """Prune a model to half of its weights, and say how many it has."""
    width = next(model.parameters()).shape[1]
    batches = [(torch.randn(method.samples, width), torch.arange(method.samples) % width)]
    pruner = woodbury.Pruner(method.recipe())
    weights = sum(each.numel() for each in model.parameters() if each.ndim > 1)
    with woodbury.Limits(gradient_chunk=2 * 4 * CHUNK * weights, temporary=weights):
        pruned = woodbury.prune(model, batches, 0.5, pruner=pruner, memory=BUDGET)
    return pruned.objective.space.n


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of the least-squares line through (log x, log y)."""
    a, b = [math.log(value) for value in x], [math.log(value) for value in y]
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    covariance = sum((p - mean_a) * (q - mean_b) for p, q in zip(a, b, strict=True))
    return covariance / sum((p - mean_a) ** 2 for p in a)


def main() -> None:
    """Measure each cell in a process of its own, and fit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", default=list(METHODS), help=", ".join(METHODS))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--here", action="store_true", help="one cell in this process, as JSON")
    asked = parser.parse_args()
    if asked.here:
        print(json.dumps(step(asked.methods[0], asked.sizes[0])))
        return
    rows = []
    for name in asked.methods:
        costs = []
        for size in asked.sizes:
            command = [sys.executable, __file__, name, "--sizes", str(size), "--here"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            cost = Cost(*json.loads(done.stdout))
            costs.append(cost)
            print(name, *cost, flush=True)
            rows.append([name, f"{cost.d:,}", f"{cost.seconds:.2f}", f"{cost.bytes / 1e6:,.0f}"])
        d = [cost.d for cost in costs]
        seconds = exponent(d, [cost.seconds for cost in costs])
        memory = exponent(d, [max(1, cost.bytes) for cost in costs])
        rows.append([name, "exponent", f"{seconds:.2f}", f"{memory:.2f}"])
    columns = "method", "weights", "processor seconds", "peak megabytes"
    Console().print(table("A step to .5, two threads", columns, rows))


if __name__ == "__main__":
    main()
