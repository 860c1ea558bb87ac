"""Gradual pruning of ResNet-20 on CIFAR-10: python benchmarks/gradual.py [--epochs 2] [--seeds 1]
[--threads 2] [--out FILE.json]

WoodFisher (blocks of 500, Gauss–Newton rows of 500 fresh images at every step, joint update,
damping 1e-4 as one_shot.py chose it) against global magnitude: the 18 block convolutions to 90 %
and 95 % in eight steps of a cubic schedule, with the same fine-tuning. Two accuracies on the test
images: right after the last pruning step, and at the end. What `--lr` and the like are to be judged
by, the accuracy on held-out training images, is in the file too. Finished cells are in FILE.json
(default: runs/gradual.json) and are not run again. Needs ../shared/bench.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measured import bench_data, finished, keep, spread
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from woodbury.estimation.engines import vmapped
from woodbury.estimation.recipes import gauss_newton, woodfisher
from woodbury.evaluation.metrics import accuracy
from woodbury.model.batches import Batch
from woodbury.model.objective import Objective
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.saliencies import magnitude, obs
from woodbury.pruning.updates import joint, zero
from woodbury.reporting.files import versions
from woodbury.training.finetuning import batches_in, finetune, shuffled
from woodbury.training.gradual import Gradual
from woodbury.training.learning_rate import cosine_restarts

COUNT, RANK, DAMPING, HELD_OUT, UNTIL = 500, 2, 1e-4, 2000, 0.6
METHODS = {
    "magnitude": Pruner(None, magnitude, zero),
    "WoodFisher (500), Gauss–Newton, joint": Pruner(
        gauss_newton(woodfisher(RANK * COUNT, 500, DAMPING, engine=vmapped), RANK), obs, joint
    ),
}


@dataclass(frozen=True)
class Images:
    """CIFAR-10, with some of the training images held out; batches of 500."""

    train: Batch
    held_out: list[Batch]
    test: list[Batch]

    @classmethod
    def load(cls, bench: Any, most: int) -> Images:
        x, y, x_test, y_test = bench.cifar10()
        x, x_test = (part.contiguous(memory_format=torch.channels_last) for part in (x, x_test))
        order = torch.randperm(
            len(y), generator=torch.Generator().manual_seed(2020)
        )  # the split of one_shot.py
        held, rest = order[:HELD_OUT], order[HELD_OUT:][:most]
        return cls((x[rest], y[rest]), _batches(x[held], y[held]), _batches(x_test, y_test))

    def sample(self, seed: int) -> list[Batch]:
        x, y = self.train
        drawn = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:COUNT]
        return _batches(x[drawn], y[drawn])

    def stream(self, size: int, seed: int) -> Iterator[Batch]:
        x, y = self.train
        return ((x[drawn], y[drawn]) for drawn in shuffled(len(y), size, seed))


def _batches(x: Tensor, y: Tensor) -> list[Batch]:
    return list(zip(x.split(500), y.split(500), strict=True))


def cell(
    bench: Any,
    images: Images,
    pruner: Pruner,
    sparsity: float,
    seed: int,
    asked: argparse.Namespace,
) -> dict[str, Any]:
    """One run: both accuracies on the test images, and those on held-out training images around
    each pruning step."""
    model = bench.resnet20().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), asked.lr, momentum=0.9, weight_decay=asked.weight_decay
    )
    total = asked.epochs * batches_in(len(images.train[1]), asked.batch_size)
    found: dict[str, Any] = {}

    def judged(batches: list[Batch]) -> float:
        return accuracy(Objective.from_model(model, batches, space=gradual.space), batches)

    def after(step: int) -> None:
        if step == gradual.pruning_steps[-1]:
            found["after the last pruning step"] = judged(images.test)

    begun = time.perf_counter()
    gradual = Gradual(
        model,
        optimizer,
        lambda step: images.sample(1_000_000 * seed + step),
        sparsity,
        end=max(asked.steps, round(UNTIL * total)),
        steps=asked.steps,
        pruner=pruner,
        include="layer*.conv?.weight",
        score=partial(accuracy, batches=images.held_out),
    )
    scheduler = LambdaLR(optimizer, cosine_restarts(gradual.pruning_steps, total))
    stream = images.stream(asked.batch_size, seed)
    finetune(model, optimizer, stream, range(1, total + 1), scheduler=scheduler, after=after)
    found |= {"at the end": judged(images.test), "held out, at the end": judged(images.held_out)}
    return found | {"history": gradual.history, "seconds": time.perf_counter() - begun}


def show(cells: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for made in cells.values():
        groups.setdefault((made["method"], made["sparsity"]), []).append(made)
    moments = ("after the last pruning step", "at the end")
    table = Table(
        "method", "sparsity", *moments, "held out, at the end", "seeds", "s", title="Accuracy, %"
    )
    for (method, sparsity), runs in groups.items():
        means = (
            spread([100 * made[what] for made in runs])
            for what in (*moments, "held out, at the end")
        )
        seconds = sum(made["seconds"] for made in runs) / len(runs)
        table.add_row(method, f"{sparsity:g}", *means, str(len(runs)), f"{seconds:.0f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--epochs", type=int, default=2, help="of fine-tuning, the pruning steps included"
    )
    parser.add_argument("--steps", type=int, default=8, help="pruning steps")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.9, 0.95])
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument(
        "--train", type=int, default=50_000, help="training images at most, for a try"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/gradual.json"))
    asked = parser.parse_args()
    bench = bench_data(asked.threads)
    console = Console(width=140)
    settings = {
        name: value
        for name, value in vars(asked).items()
        if name not in ("seeds", "threads", "out", "sparsities")
    }
    cells = finished(asked.out)
    images = Images.load(bench, asked.train)
    wanted = [(s, x, m) for s in range(asked.seeds) for x in asked.sparsities for m in METHODS]
    for seed, sparsity, name in wanted:
        identity = {"method": name, "sparsity": sparsity, "seed": seed, **settings}
        key = json.dumps(identity)
        if key in cells:
            continue
        torch.manual_seed(seed)
        made = cell(bench, images, METHODS[name], sparsity, seed, asked)
        cells[key] = {**identity, **made, "versions": versions()}
        keep(cells, asked.out)
        cells = finished(asked.out)
        show(
            {
                key: made
                for key, made in cells.items()
                if all(made[name] == value for name, value in settings.items())
            },
            console,
        )


if __name__ == "__main__":
    main()
