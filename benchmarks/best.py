"""The best one-shot accuracy: python benchmarks/best.py [mlpnet|resnet20|resnet20-all ...] [--rows NAME ...] [--seeds 5]

No label's gradient is followed here: the networks move by curvature alone, by `refit` towards the dense outputs. `single`: one
set of 1,000 training images for everything; `fresh`: other images at every stage. One-stage rows choose their damping per cell
on 2,000 held-out training images; staged rows have one damping, chosen on those images with another seed. Every row is a path:
one run gives all sparsities. ResNet-20 is judged with and without BatchNorm recalibrated on the calibration images. Finished
cells are in FILE.json (default: runs/best.json) and are not run again. Needs ../shared/bench.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from measured import bench_data, finished, keep, spread
from one_shot import TASKS, Task, batches, prepared
from rich.console import Console
from rich.table import Table
from torch import nn

from woodbury.batchnorm import recalibrate
from woodbury.comparison import accuracy
from woodbury.fisher.estimate import gauss_newton, mfac, woodfisher
from woodbury.objective import Batch, Objective, evaluating
from woodbury.pruning.effort import Effort, choose, usual
from woodbury.pruning.exchange import swaps, thresholded
from woodbury.pruning.pruner import Pruned, Pruner
from woodbury.pruning.refit import Refit, Refitted
from woodbury.pruning.saliency import magnitude, obs
from woodbury.pruning.selection import stepwise
from woodbury.pruning.stages import in_rounds, stages
from woodbury.pruning.tuned import TRUST, Tuned
from woodbury.pruning.update import independent, joint, zero
from woodbury.records import versions
from woodbury.space import ParameterSpace

SAMPLES, GRID = 1000, (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
Reached = Iterator[tuple[float, Pruned]]


@dataclass(frozen=True)
class Setting:
    """A task's table: its sparsities, its blocks, and what the staged rows were given on held-out images.

    rank, refitted: Gauss–Newton rows to an image, without and with refits; ratio, finer: what a stage keeps, without and with;
    fresh: images of a stage; window: of how many stages a refit, then `among_many`, sees them.
    """

    task: Task
    block: int | None
    damping: float
    rank: int
    ratio: float
    fresh: int
    refitted: int = 2
    window: int = 1
    finer: float = 1.0
    refit: Refit | None = None
    among_many: Refit | None = None
    rival: Refit | None = None


@dataclass(frozen=True)
class OneStage:
    """From the dense net to each sparsity at once, the damping chosen per cell, and the share of the gradient if it has one."""

    pruner: Pruner
    trust: tuple[float, ...] = TRUST

    def __call__(self, setting: Setting, objective: Objective, judge: list[Batch], seed: int) -> Reached:
        recipe = self.pruner
        if recipe.fisher:
            fisher = recipe.fisher(objective)
            recipe = Tuned(replace(recipe, fisher=lambda _: fisher), judge, GRID, self.trust)
        for sparsity in setting.task.sparsities.values():
            yield sparsity, recipe(objective, sparsity)


@dataclass(frozen=True)
class Staged:
    """Stage by stage through all sparsities, the same images for all, or `samples` fresh ones before those of the last stages."""

    pruner: Pruner
    samples: int = 0
    refit: Refit | None = None
    ratio: float | None = None
    window: int = 1

    def __call__(self, setting: Setting, objective: Objective, judge: list[Batch], seed: int) -> Reached:
        wanted = list(setting.task.sparsities.values())
        levels = way(wanted, self.ratio or setting.ratio)
        fresh = shuffled(setting.task, self.samples, seed, self.window) if self.samples else None
        recipe = Refitted(self.pruner, objective, self.refit) if self.refit else self.pruner
        for level, pruned in zip(levels, stages(recipe, objective, levels, fresh), strict=True):
            if level in wanted:
                yield level, pruned


@dataclass(frozen=True)
class AsItComes:
    """`woodbury.prune` with an effort's settings, from the dense net to each sparsity by itself."""

    effort: Effort

    def __call__(self, setting: Setting, objective: Objective, judge: list[Batch], seed: int) -> Reached:
        for sparsity in setting.task.sparsities.values():
            choice = choose(objective, sparsity, self.effort)
            yield sparsity, in_rounds(choice.recipe, choice.objective, choice.sparsities)


@dataclass(frozen=True)
class Distilled(Refit):
    """A refit's rival: epochs of Adam on the divergence from the dense outputs, the same images in batches of 100."""

    epochs: int = 100
    lr: float = 1e-3

    def __call__(self, objective: Objective, dense: Objective) -> Objective:
        x = torch.cat([inputs for inputs, _ in objective.batches])
        with torch.no_grad(), evaluating(dense.model):
            told = dense.forward(dense.parameters, x).softmax(1)
        weights = objective.weights.clone().requires_grad_()
        optimizer, generator = torch.optim.Adam([weights], self.lr), torch.Generator().manual_seed(objective.space.d)
        with evaluating(objective.model):
            for _ in range(self.epochs):
                for part in torch.randperm(len(x), generator=generator).split(100):
                    said = objective.forward(objective.space.unflatten(weights), x[part])
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(said, told[part]).backward()
                    optimizer.step()
        return objective.at(weights.detach())


def way(sparsities: Sequence[float], ratio: float) -> list[float]:
    """Through all the sparsities, by stages that keep at least `ratio` from the first of them on."""
    levels, start = [sparsities[0]], sparsities[0]
    for sparsity in sparsities[1:]:
        kept = (1 - sparsity) / (1 - start)
        count = max(1, math.ceil(math.log(kept) / math.log(ratio) - 1e-9))
        levels += [1 - (1 - start) * kept ** (step / count) for step in range(1, count)] + [sparsity]
        start = sparsity
    return levels


def shuffled(task: Task, count: int, seed: int, window: int) -> Callable[[int], list[Batch]]:
    """Stage -> its `count` images, the next ones of a shuffle of all that are not held out, and those of the stages before."""
    x, y = task.train
    pool = torch.randperm(len(y), generator=torch.Generator().manual_seed(2020))[2000:]
    pool = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(10_000 + seed))]

    def fresh(stage: int) -> list[Batch]:
        recent = range(stage, max(-1, stage - window), -1)
        drawn = pool[torch.cat([torch.arange(k * count, (k + 1) * count) for k in recent]) % len(pool)]
        return batches(x[drawn], y[drawn])

    return fresh


def rows(setting: Setting) -> Mapping[str, Any]:
    """The table: rivals written as recipes on our axes first."""
    labels = mfac(SAMPLES, GRID[0], block=setting.block)
    exact = gauss_newton(mfac(setting.rank * SAMPLES, setting.damping, block=setting.block), setting.rank)
    leading = gauss_newton(mfac(setting.refitted * SAMPLES, setting.damping, block=setting.block), setting.refitted)
    fresh = gauss_newton(mfac(setting.fresh, setting.damping, block=setting.block), 1)
    newest = gauss_newton(mfac(2000, setting.damping, block=setting.block), 1)
    return {
        "woodbury.prune as it comes": AsItComes(usual),
        "magnitude": OneStage(Pruner(None, magnitude, zero)),
        "WoodFisher, papers' update, 1 stage": OneStage(
            Pruner(woodfisher(SAMPLES, setting.block or 2000), obs, independent)
        ),
        "M-FAC, papers' update, 1 stage": OneStage(Pruner(mfac(SAMPLES), obs, independent)),
        "labels, papers' update, stages, single": Staged(Pruner(labels, obs, independent)),
        "magnitude + joint, 1 stage": OneStage(Pruner(labels, magnitude, joint)),
        "thresholded, joint, 1 stage": OneStage(Pruner(labels, magnitude, joint, selection=thresholded(20))),
        "Gauss–Newton, joint, 1 stage": OneStage(Pruner(exact, obs, joint)),
        "Gauss–Newton, stepwise, joint, 1 stage": OneStage(Pruner(exact, obs, joint, selection=stepwise(16))),
        "Gauss–Newton, swaps, joint, 1 stage": OneStage(Pruner(exact, obs, joint, selection=swaps(10))),
        "labels, joint, stages, single": Staged(Pruner(labels, obs, joint)),
        "Gauss–Newton, joint, stages, single": Staged(Pruner(exact, obs, joint)),
        "Gauss–Newton, joint, stages, fresh": Staged(Pruner(fresh, obs, joint), setting.fresh),
        "magnitude, refit, stages, single": Staged(
            Pruner(None, magnitude, zero), refit=setting.refit, ratio=setting.finer
        ),
        "magnitude, Adam to the dense outputs, stages, single": Staged(
            Pruner(None, magnitude, zero), refit=setting.rival, ratio=setting.finer
        ),
        "Gauss–Newton, joint, refit, stages, single": Staged(
            Pruner(leading, obs, joint), refit=setting.refit, ratio=setting.finer
        ),
        "Gauss–Newton, joint, refit, stages, fresh": Staged(
            Pruner(newest, obs, joint),
            setting.fresh,
            setting.among_many,
            window=setting.window,
        ),
    }


def settings(name: str, bench: Any) -> Setting:
    if name == "mlpnet":
        refit = Refit(rank=10, damping=3e-4, iterations=100)
        return Setting(TASKS["mlpnet"](bench), None, 3e-4, 2, 0.8, 6000, 1, 3, 0.9, refit, refit, Distilled())
    task = TASKS["resnet20"](bench)
    sparsities = {f"{s:g}": s for s in (0.5, 0.6, 0.7, 0.8, 0.9)}
    if name == "resnet20-all":
        space = ParameterSpace.of(task.model, include=("*conv*.weight", "*downsample.0.weight", "fc.weight"))
        title = "ResNet-20 on CIFAR-10 (JPEG), all convolutions and the classifier"
        task = replace(task, space=space, title=title)
    refit = Refit(damping=1e-4)
    task = replace(task, sparsities=sparsities)
    return Setting(task, 500, 1e-4, 2, 0.78, 2000, 2, 1, 0.78, refit, replace(refit, rank=1), Distilled(epochs=12))


def recalibrated(pruned: Pruned) -> Objective:
    model = copy.deepcopy(pruned.objective.model)
    settled = replace(pruned.objective, model=model)
    settled.write()
    recalibrate(model, pruned.objective.batches)
    return settled


def cell(setting: Setting, row: Any, seed: int) -> dict[str, Any]:
    """Accuracies, held-out accuracies and seconds since the start, by sparsity."""
    sample, judge, test = prepared(setting.task)
    settle = any(isinstance(module, nn.BatchNorm2d) for module in setting.task.model.modules())
    found, spent, since = {}, 0.0, time.perf_counter()
    names = {value: name for name, value in setting.task.sparsities.items()}
    for sparsity, pruned in row(setting, sample(seed), judge, seed):
        spent += time.perf_counter() - since
        made = {
            "test": accuracy(pruned.objective, test),
            "held out": accuracy(pruned.objective, judge),
            "seconds": spent,
        }
        if settle:
            made["test, recalibrated"] = accuracy(recalibrated(pruned), test)
        found[names[sparsity]] = made | {"damping": pruned.steps[-1].damping}
        since = time.perf_counter()
    return found


def show(title: str, names: Sequence[str], cells: Sequence[Mapping[str, Any]], console: Console) -> None:
    for what in ("test", "test, recalibrated"):
        if not any(what in made for made_ in cells for made in made_["found"].values()):
            continue
        table = Table("row", *names, "seeds", "s for all", title=f"{title}: {what}, %")
        for row in dict.fromkeys(made_["row"] for made_ in cells):
            mine = [made_["found"] for made_ in cells if made_["row"] == row]
            texts = [spread([100 * found[name][what] for found in mine if name in found]) for name in names]
            seconds = sum(max(made["seconds"] for made in found.values()) for found in mine) / len(mine)
            table.add_row(row, *texts, str(len(mine)), f"{seconds:.0f}")
        console.print(table)


Rows = tuple[Setting, Mapping[str, Any]]


def drive(description: str, tables: Mapping[str, Callable[[Any], Rows]], seeds: int, out: str) -> None:
    """The command line of a benchmark of rows × seeds, whose finished cells are kept in a file."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="|".join(tables))
    parser.add_argument("--rows", nargs="*", help="only rows that contain one of these")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(out))
    asked = parser.parse_args()
    unknown = set(asked.tables) - set(tables)
    if unknown:
        parser.error(f"unknown table {', '.join(unknown)}: choose from {', '.join(tables)}")
    bench, console = bench_data(asked.threads), Console(width=170)
    for name in asked.tables or tables:
        setting, every = tables[name](bench)
        wanted = {row: how for row, how in every.items() if not asked.rows or any(part in row for part in asked.rows)}
        for seed, row in product(range(asked.seeds), wanted):
            cells = finished(asked.out)
            key = f"{name} / {row} / {seed}"
            if key not in cells:
                console.print(f"{key} …")
                found = cell(setting, wanted[row], seed)
                cells[key] = {"table": name, "row": row, "seed": seed, "found": found, "versions": versions()}
                keep(cells, asked.out)
        own = [made for made in finished(asked.out).values() if made["table"] == name]
        show(setting.task.title, list(setting.task.sparsities), own, console)


def main() -> None:
    def table(name: str) -> Callable[[Any], Rows]:
        return lambda bench: (settings(name, bench), rows(settings(name, bench)))

    drive(str(__doc__), {name: table(name) for name in ("mlpnet", "resnet20", "resnet20-all")}, 5, "runs/best.json")


if __name__ == "__main__":
    main()
