"""Pruning with training, against the rival: python benchmarks/with_training.py [--seeds 5]
[--threads 2] [--out FILE.json]

A multi-stage first-order term is training on the calibration data, so the rival is gradual
magnitude pruning with SGD on the very same images. MLPNet on MNIST, from the published checkpoint:
SGD with momentum 0.9, batches of 32, lr 0.02 falling as half a cosine, 20 pruning steps, or 80
where a row says so, of a cubic schedule over the first 60 %; `images` counts every image that is
looked at, those of the curvature (500 Gauss–Newton rows at each step, damping 1e-3) too. lr, batch
and steps were chosen for magnitude on held-out training images. The third row prunes at once, by
best.py's stages on 1,000 images, and trains on the rest. In rows with K-FAC a Preconditioner stands
before SGD, on the 1,024 images next in line, so that no others are looked at; lr and damping 0.03,
a new Fisher after each twentieth of the training, but not within 50 steps. The curvature that
prunes is then on those images too. WoodTaylor is pruning alone, without SGD: stages of 2,000 fresh
images, of whose gradient each follows the share that is best on the held-out images, which count
here; damping 1e-2, the same cubic schedule. Finished cells are in FILE.json (default:
runs/with_training.json). Needs ../shared/bench.
"""

from __future__ import annotations

import argparse
import math
import time
from functools import cache
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from best import rows, settings
from measured import bench_data, finished, keep, spread
from one_shot import TASKS, Task, batches, prepared
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from ways import shuffled

from woodbury.estimation.recipes import gauss_newton, kfac, mfac
from woodbury.evaluation.metrics import accuracy
from woodbury.model.batches import Batch
from woodbury.model.objective import Objective
from woodbury.model.peeking import PeekingLoader
from woodbury.model.space import ParameterSpace
from woodbury.optim.preconditioner import Preconditioner
from woodbury.pruning.damping_search import DampingSearch
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.saliencies import magnitude, obs
from woodbury.pruning.schedule import polynomial
from woodbury.pruning.staged import stages
from woodbury.pruning.updates import joint, zero
from woodbury.reporting.files import versions
from woodbury.training.finetuning import finetune
from woodbury.training.finetuning import shuffled as in_batches
from woodbury.training.gradual import Gradual
from woodbury.training.masks import hold_zeros

LR, BATCH, STEPS, UNTIL, ROWS = 0.02, 32, 20, 0.6, 500
IMAGES, SPARSITIES = (16_000, 120_000), (0.5, 0.9, 0.95, 0.98)
KFAC_LR, KFAC_DAMPING, AHEAD = 0.03, 0.03, 1024
STAGE, SHARES = 2000, (0.3, 0.1, 0.03)
ALONG, AT_ONCE, TAYLOR = (
    "Gauss–Newton, joint",
    "Gauss–Newton stages, then SGD",
    "WoodTaylor, joint, stages",
)
METHODS = (
    "magnitude",
    "magnitude, 80 steps",
    ALONG,
    AT_ONCE,
    "magnitude, K-FAC before SGD, 80 steps",
    "Gauss–Newton, joint, K-FAC before SGD",
    TAYLOR,
)


@cache
def pruner_of(name: str) -> Pruner:
    if name.startswith("magnitude"):
        return Pruner(None, magnitude, zero)
    return Pruner(gauss_newton(mfac(AHEAD if "K-FAC" in name else ROWS, 1e-3), 1), obs, joint)


@cache
def pruned_first(seed: int) -> tuple[dict[float, tuple[Tensor, Tensor]], float]:
    """Sparsity -> (weights (n,), keep (n,)) after best.py's stages on 1,000 images, and the seconds
    of all."""
    setting = settings("mlpnet", bench_data(torch.get_num_threads()))
    row, (sample, judge, _) = (
        rows(setting)["Gauss–Newton, joint, stages, single"],
        prepared(setting.task),
    )
    begun, found = time.perf_counter(), {}
    for sparsity, pruned in row(setting, sample(seed), judge, seed):
        found[round(sparsity, 2)] = (pruned.weights, pruned.keep)
    return found, time.perf_counter() - begun


def by_stages(task: Task, sparsity: float, images: int, seed: int) -> dict[str, Any]:
    """The cell of pruning alone, whose every stage follows a share of the gradient too."""
    _, judge, test = prepared(task)
    pruner = Pruner(gauss_newton(mfac(STAGE, 1e-2), 1), obs, joint, first_order=True)
    count = images // STAGE - 1
    pruning = polynomial(sparsity, round(UNTIL * count))
    sparsities = [*pruning, *[sparsity] * (count - len(pruning))]
    begun, found = time.perf_counter(), {}
    fresh = shuffled(task, STAGE, seed, window=1)
    recipe = DampingSearch(pruner, judge, (1e-2,), SHARES)
    dense = Objective.from_model(task.model, [], space=task.space)
    for stage, pruned in enumerate(stages(recipe, dense, sparsities, fresh), 1):
        if stage in (len(pruning), count):
            found["at the end" if stage == count else "after the last step"] = accuracy(
                pruned.objective, test
            )
    return found | {"seconds": time.perf_counter() - begun}


def cell(
    bench: Any, task: Task, name: str, sparsity: float, images: int, seed: int
) -> dict[str, Any]:
    """Test accuracy right after the last pruning step and at the end, and seconds."""
    if name == TAYLOR:
        return by_stages(task, sparsity, images, seed)
    _, _, test = prepared(task)
    x, y = task.train
    pool = torch.randperm(len(y), generator=torch.Generator().manual_seed(2020))[2000:]
    torch.manual_seed(seed)
    model, begun, found = bench.mlpnet(), time.perf_counter(), {}
    preconditioned = "K-FAC" in name
    looked_at = {ALONG: STEPS * ROWS, AT_ONCE: 1000}.get(name, 0)
    total = (images - looked_at) // BATCH
    optimizer = torch.optim.SGD(model.parameters(), KFAC_LR if preconditioned else LR, momentum=0.9)
    order = islice(in_batches(len(pool), BATCH, seed), total)
    stream = PeekingLoader(((x[pool[drawn]], y[pool[drawn]]) for drawn in order), AHEAD)

    def score() -> float:
        return accuracy(Objective.from_model(model, []), test)

    def calibration(step: int) -> list[Batch]:
        drawn = pool[
            torch.randint(
                len(pool), (ROWS,), generator=torch.Generator().manual_seed(1000 * seed + step)
            )
        ]
        return batches(x[drawn], y[drawn])

    last = 0
    if name == AT_ONCE:
        found_, seconds = pruned_first(seed)
        weights, keep_ = found_[sparsity]
        Objective.from_model(model, []).at(weights).write()
        hold_zeros(optimizer, model, ParameterSpace(task.space.shapes, keep_))
        begun -= seconds
        found["after the last step"] = score()
    else:
        end = round(UNTIL * total)
        pruner = pruner_of(name)
        seen = stream if preconditioned else calibration
        steps = 80 if "80 steps" in name else STEPS
        last = Gradual(
            model, optimizer, seen, sparsity, end=end, steps=steps, pruner=pruner
        ).pruning_steps[-1]
    if preconditioned:
        Preconditioner(
            optimizer, model, kfac(AHEAD, KFAC_DAMPING), stream, every=max(50, total // 20)
        )

    def after(step: int) -> None:
        if step == last:
            found["after the last step"] = score()
            model.train()

    scheduler = LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))
    )
    finetune(model, optimizer, stream, range(1, total + 1), scheduler=scheduler, after=after)
    return found | {"at the end": score(), "seconds": time.perf_counter() - begun}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, nargs="*", default=IMAGES)
    parser.add_argument("--sparsities", type=float, nargs="*", default=SPARSITIES)
    parser.add_argument("--methods", nargs="*", help="only rows that contain one of these")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/with_training.json"))
    asked = parser.parse_args()
    bench, console = bench_data(asked.threads), Console(width=150)
    task = TASKS["mlpnet"](bench)
    methods = [
        name for name in METHODS if not asked.methods or any(part in name for part in asked.methods)
    ]
    for images, seed, sparsity, name in product(
        asked.images, range(asked.seeds), asked.sparsities, methods
    ):
        cells, key = finished(asked.out), f"{images} / {sparsity} / {name} / {seed}"
        if key not in cells:
            cells[key] = cell(bench, task, name, sparsity, images, seed) | {"versions": versions()}
            keep(cells, asked.out)
    cells = finished(asked.out)
    table = Table(
        "images",
        "method",
        *(f"{s:g}" for s in asked.sparsities),
        "s",
        title="after the last step → at the end, %",
    )
    for images, name in product(asked.images, methods):
        texts, seconds = [], []
        for sparsity in asked.sparsities:
            mine = [
                cells[f"{images} / {sparsity} / {name} / {seed}"] for seed in range(asked.seeds)
            ]
            right = spread([100 * made["after the last step"] for made in mine])
            texts.append(f"{right} → {spread([100 * made['at the end'] for made in mine])}")
            seconds += [made["seconds"] for made in mine]
        table.add_row(f"{images:,}", name, *texts, f"{sum(seconds) / len(seconds):.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
