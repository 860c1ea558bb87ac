"""One-shot pruning of the papers' own networks: python benchmarks/one_shot.py [mlpnet|resnet20 ...]
[--seeds 3] [--out FILE.json]

MLPNet on MNIST at the published row's exact counts, and ResNet-20 on CIFAR-10 (18 block
convolutions, JPEG edition). Every row: mean ± standard deviation over the seeds of the calibration
sample; the damping is chosen per cell on held-out training images, except where a row names it.
Needs ../shared/bench beside the project.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measured import bench_data
from rich.console import Console
from rich.table import Table
from torch import nn

from woodbury.estimation.recipes import diagonal_fisher, mfac, woodfisher
from woodbury.evaluation.comparison import compare
from woodbury.evaluation.methods import Method
from woodbury.evaluation.metrics import accuracy
from woodbury.evaluation.results import Result, summary
from woodbury.model.batches import Batch
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.saliencies import magnitude, obd, obs
from woodbury.pruning.updates import independent, joint, zero
from woodbury.reporting.files import write_json

COUNT, HELD_OUT = 1000, 2000


@dataclass(frozen=True)
class Task:
    """A trained network, its data, and the rows of its table."""

    title: str
    model: nn.Module
    space: ParameterSpace
    train: Batch
    test: Batch
    sparsities: Mapping[str, float]
    methods: Mapping[str, Method]


def published(sparsity: float, n: int) -> float:
    """The sparsity of the published MLPNet row: it kept int((1 − sparsity)·n), in places one weight
    fewer than exact."""
    return 1 - int((1 - sparsity) * n) / n


def mlpnet(bench: Any) -> Task:
    x, y, x_test, y_test = bench.mnist()
    model = bench.mlpnet()
    space = ParameterSpace.from_model(model)
    grid = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
    full, blocks = mfac(COUNT), woodfisher(COUNT, 2000)
    methods = {
        "magnitude": Method(Pruner(None, magnitude, zero)),
        "diagonal Fisher": Method(Pruner(diagonal_fisher(COUNT), obd, zero)),
        "WoodFisher, papers' update, 1e-5": Method(Pruner(blocks, obs, independent)),
        "M-FAC, papers' update, 1e-5": Method(Pruner(full, obs, independent)),
        "M-FAC, papers' update": Method(Pruner(full, obs, independent), dampings=grid),
        "M-FAC, joint, 1e-5": Method(Pruner(full, obs, joint)),
        "M-FAC, joint": Method(Pruner(full, obs, joint), dampings=grid),
        "M-FAC, joint, 16 stages, 1e-5": Method(Pruner(full, obs, joint), stages=16),
    }
    sparsities = {f"{s:g}": published(s, space.n) for s in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)}
    return Task("MLPNet on MNIST", model, space, (x, y), (x_test, y_test), sparsities, methods)


def resnet20(bench: Any) -> Task:
    x, y, x_test, y_test = (
        t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t
        for t in bench.cifar10()
    )
    model = bench.resnet20().to(memory_format=torch.channels_last)
    space = ParameterSpace.from_model(model, include="layer*.conv?.weight")
    grid = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    full, blocks = mfac(COUNT, 1e-4), woodfisher(COUNT, 500, 1e-4)
    methods = {
        "magnitude": Method(Pruner(None, magnitude, zero)),
        "diagonal Fisher": Method(Pruner(diagonal_fisher(COUNT), obd, zero)),
        "WoodFisher (500), papers' update, 1e-4": Method(Pruner(blocks, obs, independent)),
        "WoodFisher (500), papers' update": Method(Pruner(blocks, obs, independent), dampings=grid),
        "WoodFisher (500), joint": Method(Pruner(blocks, obs, joint), dampings=grid),
        "M-FAC, papers' update, 1e-4": Method(Pruner(full, obs, independent)),
        "M-FAC, papers' update": Method(Pruner(full, obs, independent), dampings=grid),
        "M-FAC, joint, 1e-4": Method(Pruner(full, obs, joint)),
        "M-FAC, joint": Method(Pruner(full, obs, joint), dampings=grid),
    }
    sparsities = {f"{s:g}": s for s in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)}
    title = "ResNet-20 on CIFAR-10 (JPEG), 18 block convolutions"
    return Task(title, model, space, (x, y), (x_test, y_test), sparsities, methods)


TASKS = {"mlpnet": mlpnet, "resnet20": resnet20}


def batches(x: torch.Tensor, y: torch.Tensor) -> list[Batch]:
    return list(zip(x.split(500), y.split(500), strict=True))


def prepared(task: Task) -> tuple[Callable[[int], Objective], list[Batch], list[Batch]]:
    """The objective on a seed's calibration sample, the images that choose the damping, and those
    of the test.

    Samples are drawn from all training images but the first of a fixed shuffle, which choose.
    """
    x, y = task.train
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(2020))
    held, pool = order[:HELD_OUT], order[HELD_OUT:]

    def sample(seed: int) -> Objective:
        drawn = pool[
            torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:COUNT]
        ]
        return Objective.from_model(task.model, batches(x[drawn], y[drawn]), space=task.space)

    return sample, batches(x[held], y[held]), batches(*task.test)


def run(task: Task, seeds: Sequence[int], console: Console) -> list[Result]:
    sample, judge, test = prepared(task)
    console.print(
        f"{task.title}: {task.space.n:,} weights, dense {100 * accuracy(sample(0), test):.2f} %"
    )
    return compare(
        task.methods,
        list(task.sparsities.values()),
        seeds,
        sample,
        lambda objective: accuracy(objective, test),
        validate=lambda objective: -objective.loss(judge),
    )


def show(task: Task, results: Sequence[Result], console: Console) -> None:
    cells = summary(results)
    table = Table(
        "method", *task.sparsities, "damping", "s", "MB", title=f"{task.title}: test accuracy, %"
    )
    for name in task.methods:
        row = [cell for cell in cells if cell.method == name]
        values = (f"{100 * cell.accuracy:.2f} ± {100 * cell.spread:.2f}" for cell in row)
        used = sorted(
            {result.damping for result in results if result.method == name and result.damping}
        )
        span = " … ".join(f"{damping:g}" for damping in sorted({*used[:1], *used[-1:]}))
        seconds = sum(cell.seconds for cell in row) / len(row)
        table.add_row(
            name, *values, span, f"{seconds:.1f}", f"{max(cell.memory for cell in row):.0f}"
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="*", metavar="mlpnet|resnet20")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="also write every cell as JSON")
    arguments = parser.parse_args()
    unknown = set(arguments.tasks) - set(TASKS)
    if unknown:
        parser.error(f"unknown task {', '.join(unknown)}: choose from {', '.join(TASKS)}")
    bench = bench_data(arguments.threads)
    console, cells = Console(width=160), {}
    for name in arguments.tasks or TASKS:
        task = TASKS[name](bench)
        results = run(task, range(arguments.seeds), console)
        show(task, results, console)
        cells[name] = results
        if arguments.out:
            write_json(arguments.out, cells)


if __name__ == "__main__":
    main()
