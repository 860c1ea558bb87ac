"""Does the interval of a prediction hold as often as it says: python benchmarks/forecasts.py
[mlpnet resnet20 characters] [--routes NAME ...] [--out FILE.json]

Each cell prunes a network of benchmarks/quick.py once, by one step of gradient rows, by stages with
a refit, or by `quick`, and holds 256 training samples back. `Pruned.predicted` and its interval are
put beside the increase of the loss on some thousand other training samples, the truth, and on test
samples. 1,000 more intervals are made of 256 samples each, drawn from the others with replacement:
how many miss the truth, and how many of them call the prediction no forecast. Needs what
benchmarks/quick.py needs.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from language_models import LANGUAGES, LIKELIHOOD, calibration, classes_first, trained
from measured import bench_data, finished, keep
from one_shot import HELD_OUT, TASKS
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import woodbury
from woodbury.model.batches import Batch
from woodbury.model.likelihood import Likelihood, cross_entropy
from woodbury.pruning.mean_interval import CONFIDENCE, mean_interval
from woodbury.pruning.prediction import GROUPS, HELD_BACK_SAMPLES, IncreaseInterval
from woodbury.pruning.presets import Effort, quick
from woodbury.reporting.files import versions

COUNT, DRAWS = 300, 1000
"""Samples of the first two routes, and intervals that are made of other samples."""
ROUTES: Mapping[str, Mapping[str, Any]] = {
    "one step of rows": {
        "pruner": woodbury.Pruner(woodbury.gauss_newton(woodbury.mfac(COUNT, 3e-4), 1))
    },
    "stages with a refit": {"effort": Effort(COUNT, 1, 0.5)},
    "quick": {"effort": quick},
}


class Data(NamedTuple):
    """A network, what it is pruned with, and what it is judged by.

    sample: Calibration samples; the first are used. others: Training samples that nothing sees.
    """

    model: nn.Module
    sample: Batch
    held_back: Batch
    others: Batch
    test: Batch
    sparsities: tuple[float, ...]
    likelihood: Likelihood
    include: Sequence[str] | str


def images(name: str) -> Data:
    task = TASKS[name](bench_data(1))
    x, y = task.train
    pool = torch.randperm(len(y), generator=torch.Generator().manual_seed(2020))[HELD_OUT:]
    parts = (pool[:1000], pool[1000 : 1000 + HELD_BACK_SAMPLES], pool[2000:5000])
    sample, held_back, others = ((x[part], y[part]) for part in parts)
    every = len(task.test[1]) // 1000  # images may lie in the order of their classes
    test = task.test[0][::every], task.test[1][::every]
    sparsities = (0.7, 0.8, 0.9) if name == "resnet20" else (0.8, 0.9, 0.95)
    include = list(task.space.shapes)
    return Data(task.model, sample, held_back, others, test, sparsities, cross_entropy, include)


def characters(name: str) -> Data:
    text = LANGUAGES[name].text()
    sample = calibration(text.train, COUNT, 0)
    held_back = calibration(text.train, HELD_BACK_SAMPLES, 1)
    others, test = calibration(text.train, 1000, 2), calibration(text.test, 300, 3)
    sparsities = (0.3, 0.5, 0.7)
    return Data(trained(name), sample, held_back, others, test, sparsities, LIKELIHOOD, "layers.*")


NETWORKS: Mapping[str, Callable[[str], Data]] = {
    "mlpnet": images,
    "resnet20": images,
    "characters": characters,
}


def batches(data: Batch) -> list[Batch]:
    return list(zip(data[0].split(50), data[1].split(50), strict=True))


@torch.no_grad()
def losses(model: nn.Module, data: Batch) -> Tensor:
    """(samples,) float64, of a sequence the sum over its characters."""
    found = []
    for x, y in batches(data):
        scores = model(x) if y.ndim == 1 else classes_first(model(x))
        each = nn.functional.cross_entropy(scores, y, reduction="none").double()
        found.append(each.reshape(len(y), -1))
    return torch.cat(found).sum(1)


def cell(data: Data, dense: Sequence[Tensor], sparsity: float, route: str) -> dict[str, Any]:
    model, begun = copy.deepcopy(data.model), time.process_time()
    pruned = woodbury.prune(
        model,
        batches(data.sample),
        sparsity,
        held_back=batches(data.held_back),
        likelihood=data.likelihood,
        include=data.include,
        **ROUTES[route],
    )
    interval = pruned.predicted_interval
    assert interval is not None
    spent = time.process_time() - begun
    increases = [
        losses(model, each) - before
        for each, before in zip((data.others, data.test), dense, strict=True)
    ]
    others, test = (float(each.mean()) for each in increases)
    return {
        "sparsity": pruned.sparsity,
        "predicted": pruned.predicted,
        "warning": pruned.predicted_warning,
        "doubt": pruned.predicted_doubt,
        "interval": [interval.low, interval.mean, interval.high],
        "dense loss": interval.dense_loss,
        "others": others,
        "test": test,
        **again(increases[0], others, interval, pruned.predicted),
        "CPU seconds": spent,
        "versions": versions(),
    }


def again(
    increases: Tensor, truth: float, interval: IncreaseInterval, predicted: float | None
) -> dict[str, Any]:
    """Other intervals, from samples that are drawn from these: how many miss the mean of all."""
    generator = torch.Generator().manual_seed(0)
    size = HELD_BACK_SAMPLES // GROUPS
    below = above = refuted = 0
    for _ in range(DRAWS):
        drawn = torch.randint(len(increases), (GROUPS, size), generator=generator)
        low, mean, high = mean_interval(increases[drawn].mean(1).tolist(), [size] * GROUPS)
        below, above = below + (high < truth), above + (low > truth)
        made = replace(interval, low=low, mean=mean, high=high)
        refuted += predicted is not None and made.refutes(predicted)
    return {
        "misses": (below + above) / DRAWS,
        "below the truth": below / DRAWS,
        "refuted": refuted / DRAWS,
    }


def show(cells: Mapping[str, Any], console: Console) -> None:
    table = Table("network", "sparsity", "route", "predicted", "interval", "other samples", "test")
    for column in ("misses", "below", "refuted", "doubt", "CPU s"):
        table.add_column(column)
    for made in cells.values():
        low, _, high = made["interval"]
        predicted = made["predicted"]
        numbers = (
            "–" if predicted is None else f"{predicted:.3g}",
            f"{low:.3g} to {high:.3g}",
            f"{made['others']:.3g}",
            f"{made['test']:.3g}",
            *(f"{100 * made[key]:.1f} %" for key in ("misses", "below the truth", "refuted")),
            "yes" if made["doubt"] else "",
            f"{made['CPU seconds']:.0f}",
        )
        table.add_row(made["network"], f"{made['asked']:g}", made["route"], *numbers)
    console.print(table)
    for what in ("others", "test"):
        inside = sum(
            made["interval"][0] <= made[what] <= made["interval"][2] for made in cells.values()
        )
        console.print(f"{inside} of {len(cells)} intervals of {CONFIDENCE:.0%} hold: {what}.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", metavar="|".join(NETWORKS))
    parser.add_argument("--routes", nargs="*", default=list(ROUTES), choices=ROUTES)
    parser.add_argument("--out", type=Path, default=Path("runs/forecasts.json"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name in asked.networks or NETWORKS:
        data = NETWORKS[name](name)
        dense = [losses(data.model.eval(), each) for each in (data.others, data.test)]
        for sparsity in data.sparsities:
            for route in asked.routes:
                key = f"{name} / {sparsity:g} / {route}"
                if key in finished(asked.out):
                    continue
                print(f"{key} …", flush=True)
                made = cell(data, dense, sparsity, route)
                made |= {"network": name, "asked": sparsity, "route": route}
                keep(finished(asked.out) | {key: made}, asked.out)
    show(finished(asked.out), Console(width=170))


if __name__ == "__main__":
    main()
