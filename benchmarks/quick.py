"""The efforts of prune, side by side: python benchmarks/quick.py [resnet20|mlpnet|mnist|digits|
characters ...] [--rows NAME ...] [--sparsities S ...] [--seeds 3] [--out FILE.json]

The default and `effort=quick`, one layer after the other, beside one stage of rows with a refit,
which quick was before, stages from the start, which the default was before, and quick with two
steps of a refit after it. Each cell is one run from the dense
network in a process of its own: accuracy on the test set (of `characters` nats a token of the test
text), seconds of the processor, and the most memory that the process took beyond what it held
before. The seed draws the calibration set of 1,000 samples (of `characters` 256 sequences).
Finished cells are kept in FILE.json. Needs ../shared/bench (all but digits and characters),
scikit-learn (digits), and the network of benchmarks/language_models.py (characters).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from language_models import LANGUAGES, LIKELIHOOD, calibration, nats, trained
from measured import bench_data, finished, keep, spread
from one_shot import HELD_OUT, mlpnet, resnet20
from rich.console import Console
from rich.table import Table
from rivals import resident
from torch import Tensor, nn

import woodbury
from woodbury.evaluation.metrics import accuracy
from woodbury.evaluation.resources import measured
from woodbury.model.batches import Batch
from woodbury.model.objective import Objective
from woodbury.pruning import Reconstruction, Refit, ShareSearch, WithRefit
from woodbury.pruning.presets import Effort, quick, standard
from woodbury.reporting.files import versions

REFITTED = "then two steps of a refit"
ROWS = {
    "default": standard,
    "quick": quick,
    "stages from the start": replace(standard, in_turn=None),
    "one stage of rows, 500 samples": Effort(500, 1, 0.0),
    REFITTED: Refit(steps=2, mc_samples=2, reconstruction=Reconstruction()),
}
COUNT = 1000


class Problem(NamedTuple):
    """A trained network, calibration sets by seed, and what a network is judged by."""

    model: nn.Module
    sample: Callable[[int], list[Batch]]
    judge: Callable[[Objective], float]
    options: Mapping[str, Any]


def split(x: Tensor, y: Tensor) -> list[Batch]:
    return list(zip(x.split(100), y.split(100), strict=True))


def of_images(
    model: nn.Module, train: Batch, test: Batch, held: int = HELD_OUT, **options: Any
) -> Problem:
    """Calibration sets from the training images but `held` of them, as in one_shot.py."""
    x, y = train
    pool = torch.randperm(len(y), generator=torch.Generator().manual_seed(2020))[held:]

    def sample(seed: int) -> list[Batch]:
        drawn = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:COUNT]
        return split(x[pool[drawn]], y[pool[drawn]])

    return Problem(model, sample, lambda reached: accuracy(reached, split(*test)), options)


def papers(name: str) -> Problem:
    task = {"resnet20": resnet20, "mlpnet": mlpnet}[name](bench_data(1))
    return of_images(task.model, task.train, task.test, include=list(task.space.shapes))


def fitted(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        drawn = torch.randint(len(y), (64,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[drawn]), y[drawn]).backward()
        optimizer.step()
    return model.eval()


def mnist(name: str) -> Problem:
    """A convolutional network of 464,000 weights after 200 steps."""
    x, y, x_test, y_test = bench_data(1).mnist()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 141),
        nn.ReLU(),
        nn.Linear(141, 10),
    )
    return of_images(fitted(model, x, y, 200), (x, y), (x_test, y_test))


def digits(name: str) -> Problem:
    """A network of 21,632 weights on scikit-learn's 1,797 images of 64 pixels, 450 to test."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    x, y = torch.tensor(found.data).float() / 16, torch.tensor(found.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[450:], order[:450]
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, 10)
    )
    fitted(model, x[train], y[train], 600)
    return of_images(model, (x[train], y[train]), (x[test], y[test]), held=0)


def characters(name: str) -> Problem:
    text = LANGUAGES[name].text()

    def sample(seed: int) -> list[Batch]:
        x, y = calibration(text.train, 256, seed)
        return list(zip(x.split(16), y.split(16), strict=True))

    def judge(reached: Objective) -> float:
        reached.write()
        return nats(reached.model, text.test)

    options = {"likelihood": LIKELIHOOD, "include": "layers.*"}
    return Problem(trained(name), sample, judge, options)


class Network(NamedTuple):
    """How it is made, and the sparsities of its table."""

    problem: Callable[[str], Problem]
    sparsities: tuple[float, ...]


NETWORKS = {
    "resnet20": Network(papers, (0.7, 0.8, 0.9, 0.95)),
    "mlpnet": Network(papers, (0.8, 0.9, 0.95, 0.98)),
    "mnist": Network(mnist, (0.8, 0.9, 0.95)),
    "digits": Network(digits, (0.8, 0.9)),
    "characters": Network(characters, (0.5, 0.6, 0.7, 0.8, 0.9)),
}


def cell(name: str, row: str, sparsity: float, seed: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    model, sample, judge, options = NETWORKS[name].problem(name)
    batches = sample(seed)
    before, begun = resident(), time.process_time()
    way = ROWS[row]
    chosen: dict[str, Any] = {"effort": way}
    if isinstance(way, Refit):
        space = woodbury.ParameterSpace.for_pruning(model, options.get("include"))
        likelihood = options.get("likelihood", woodbury.cross_entropy)
        dense = Objective.from_model(model, batches, likelihood, space)
        chosen = {"pruner": WithRefit.around(ShareSearch(), dense, way)}
    pruned, cost = measured(lambda: woodbury.prune(model, batches, sparsity, **chosen, **options))
    spent = time.process_time() - begun
    result = {
        "value": judge(pruned.objective),
        "sparsity": pruned.sparsity,
        "CPU seconds": spent,
        "MB": cost.memory - before,
    }
    if pruned.plan is not None:
        result |= {
            "planned seconds": pruned.plan.seconds,
            "planned MB": pruned.plan.held_bytes / 2**20,
            "structure": pruned.plan.structure,
        }
    return result


def show(name: str, cells: Mapping[str, Any], console: Console) -> None:
    table = Table("row", *(f"{s:g}" for s in NETWORKS[name].sparsities), "CPU s", "MB", title=name)
    digits, factor = (3, 1) if name == "characters" else (2, 100)
    for row in ROWS:
        mine = [made for made in cells.values() if (made["network"], made["row"]) == (name, row)]
        texts = [
            spread([factor * made["value"] for made in mine if made["asked"] == s], digits)
            for s in NETWORKS[name].sparsities
        ]
        if mine:
            cost = [spread([made[what] for made in mine], 0) for what in ("CPU seconds", "MB")]
            table.add_row(row, *texts, *cost)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", metavar="|".join(NETWORKS))
    parser.add_argument("--rows", nargs="*", help="only rows that contain one of these")
    parser.add_argument("--sparsities", nargs="*", type=float, help="only these")
    parser.add_argument("--seeds", type=int, default=3, help="how many calibration samples")
    parser.add_argument("--out", type=Path, default=Path("runs/quick.json"))
    parser.add_argument("--here", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.here:
        name, row, sparsity, seed = asked.here
        print(json.dumps(cell(name, row, float(sparsity), int(seed))))
        return
    console = Console(width=120)
    wanted = [row for row in ROWS if not asked.rows or any(part in row for part in asked.rows)]
    for name in asked.networks or NETWORKS:
        sparsities = asked.sparsities or NETWORKS[name].sparsities
        for seed, sparsity, row in product(range(asked.seeds), sparsities, wanted):
            key = f"{name} / {row} / {sparsity:g} / {seed}"
            if key in finished(asked.out):
                continue
            command = [sys.executable, __file__, "--here", name, row, str(sparsity), str(seed)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            made = json.loads(done.stdout.splitlines()[-1])
            console.print(f"{key}: {made}")
            facts = {"network": name, "row": row, "asked": sparsity, "seed": seed}
            keep(finished(asked.out) | {key: made | facts | {"versions": versions()}}, asked.out)
        show(name, finished(asked.out), console)


if __name__ == "__main__":
    main()
