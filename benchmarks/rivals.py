"""Today's rivals on one checkpoint and the same calibration images: python benchmarks/rivals.py
[--rows NAME ...] [--sparsities 0.8 0.7 0.9] [--seeds 3] [--snows CHECKOUT]

The 18 block convolutions of ResNet-20 on CIFAR-10 (JPEG), 1,000 training images and no labels but
where a row needs them. Settings of a rival are chosen among those of its grid at .8, on 2,000
held-out training images with another calibration sample, by the lower loss of the network as it is
and with its BatchNorm recalibrated. Every cell is one run from the dense network: accuracy as it is
and recalibrated, seconds of the processor and of the clock, and the most memory that it took beyond
what the process held before. Finished cells are in FILE.json (default: runs/rivals.json) and are
not run again. SNOWS is run by its own code: give a checkout of mazumder-lab/SNOWS. As published it
takes 500 products for each of 3 × 6 Newton steps of 512 images for each layer, days of a core and 9
GB: its budget is an option. Needs ../shared/bench.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from cells import recalibrated
from measured import bench_data, finished, keep, spread
from one_shot import HELD_OUT, Task, batches, resnet20
from rich.console import Console
from rich.table import Table
from rival_methods import GRIDS
from snows import Snows

from woodbury.evaluation.metrics import accuracy
from woodbury.evaluation.resources import MEGABYTE, measured
from woodbury.model.batches import Batch
from woodbury.model.objective import Objective
from woodbury.pruning.pruned import Pruned
from woodbury.reporting.files import versions

CHOOSING, CHOSEN_AT = 100, 0.8
"""The seed of the calibration sample that settings are chosen with, and the sparsity."""

Method = Callable[[Objective, float], Objective]


@dataclass(frozen=True)
class Row:
    """A rival: what its settings are chosen from, and how many images it sees."""

    grid: Sequence[Method]
    images: int = 1000


@dataclass(frozen=True)
class Bench:
    """The network, and the images of each purpose."""

    task: Task
    pool: torch.Tensor
    held_out: list[Batch]
    test: list[Batch]

    @classmethod
    def of(cls, task: Task) -> Bench:
        x, y = task.train
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(2020))
        held = order[:HELD_OUT]
        return cls(task, order[HELD_OUT:], batches(x[held], y[held]), batches(*task.test))

    def sample(self, seed: int, images: int) -> Objective:
        """The dense network on the first images of a seed's shuffle."""
        x, y = self.task.train
        shuffle = torch.randperm(len(self.pool), generator=torch.Generator().manual_seed(seed))
        drawn = self.pool[shuffle[:images]]
        return Objective.from_model(
            self.task.model, batches(x[drawn], y[drawn]), space=self.task.space
        )


def settled(objective: Objective) -> Objective:
    return recalibrated(Pruned(objective, ()))


def held_out_loss(bench: Bench, objective: Objective) -> float:
    """The lower one of as it is and recalibrated; a NaN counts as infinite."""
    losses = [it.loss(bench.held_out) for it in (objective, settled(objective))]
    return min((loss for loss in losses if loss == loss), default=float("inf"))


def chosen(bench: Bench, name: str, row: Row, out: Path, console: Console) -> Method:
    """The setting of the least loss; the losses are in the file."""
    if len(row.grid) == 1:
        return row.grid[0]
    losses = {}
    for method in row.grid:
        key = f"choice / {name} / {method}"
        if key not in finished(out):
            console.print(f"{key} …")
            objective = method(bench.sample(CHOOSING, row.images), CHOSEN_AT)
            keep(finished(out) | {key: held_out_loss(bench, objective)}, out)
        losses[method] = finished(out)[key]
    return min(losses, key=lambda method: losses[method])


def resident() -> float:
    """MB that the process holds now; 0 where the system does not say it."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    lines = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(lines[0].split()[1]) * 1024 / MEGABYTE


def cell(bench: Bench, method: Method, images: int, sparsity: float, seed: int) -> dict[str, Any]:
    dense = bench.sample(seed, images)
    before, started = resident(), time.process_time()
    pruned, cost = measured(lambda: method(dense, sparsity))
    spent = time.process_time() - started
    return {
        "test": accuracy(pruned, bench.test),
        "test, recalibrated": accuracy(settled(pruned), bench.test),
        "sparsity": pruned.space.sparsity,
        "CPU seconds": spent,
        "seconds": cost.seconds,
        "MB": cost.memory - before,
        "setting": str(method),
        "versions": versions(),
    }


def rows(snows: Snows | None) -> dict[str, Row]:
    found = {name: Row(grid) for name, grid in GRIDS.items()}
    if snows is not None:
        budget = f"{snows.batches} × {snows.products} products of {snows.images_per_batch}"
        found[f"SNOWS, 3,000 images, {budget}"] = Row([snows], 3000)
        found[f"SNOWS, 1,000 images, {budget}"] = Row([snows])
    return found


def show(cells: Mapping[str, Any], sparsities: Sequence[float], console: Console) -> None:
    done = [made for key, made in cells.items() if not key.startswith("choice")]
    for what, digits in (
        ("test", 2),
        ("test, recalibrated", 2),
        ("CPU seconds", 0),
        ("seconds", 0),
        ("MB", 0),
    ):
        factor = 100 if what.startswith("test") else 1
        table = Table("row", *(f"{s:g}" for s in sparsities), "seeds", title=what)
        for name in dict.fromkeys(made["row"] for made in done):
            mine = [made for made in done if made["row"] == name]
            texts = [
                spread([factor * made[what] for made in mine if made["asked"] == s], digits)
                for s in sparsities
            ]
            table.add_row(name, *texts, str(len({made["seed"] for made in mine})))
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="*", help="only rows that contain one of these")
    parser.add_argument("--sparsities", nargs="*", type=float, default=[0.8, 0.7, 0.9])
    parser.add_argument("--seeds", type=int, default=3, help="how many calibration samples")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--snows", type=Path, help="a checkout of mazumder-lab/SNOWS")
    parser.add_argument("--snows-batches", type=int, default=2, help="Newton steps of a layer")
    parser.add_argument("--snows-products", type=int, default=4, help="of a step with the Hessian")
    parser.add_argument("--snows-images", type=int, default=200, help="of a step")
    parser.add_argument("--out", type=Path, default=Path("runs/rivals.json"))
    asked = parser.parse_args()
    bench, console = Bench.of(resnet20(bench_data(asked.threads))), Console(width=140)
    snows = asked.snows and Snows(
        asked.snows, 20, asked.snows_images, asked.snows_products, asked.snows_batches
    )
    if snows is None:
        console.print("SNOWS is left out: give a checkout of mazumder-lab/SNOWS by --snows.")
    wanted = {
        name: row
        for name, row in rows(snows).items()
        if not asked.rows or any(part in name for part in asked.rows)
    }
    for sparsity, seed, name in product(asked.sparsities, range(asked.seeds), wanted):
        row, key = wanted[name], f"{name} / {sparsity:g} / {seed}"
        if key in finished(asked.out):
            continue
        method = chosen(bench, name, row, asked.out, console)
        console.print(f"{key} …")
        made = cell(bench, method, row.images, sparsity, seed)
        made |= {"row": name, "asked": sparsity, "seed": seed}
        keep(finished(asked.out) | {key: made}, asked.out)
    show(finished(asked.out), sorted(asked.sparsities), console)


if __name__ == "__main__":
    main()
