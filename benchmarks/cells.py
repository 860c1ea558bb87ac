"""A cell of a table of rows × seeds, the table, and the command that fills it."""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from measured import bench_data, finished, keep, spread
from one_shot import prepared
from rich.console import Console
from rich.table import Table
from torch import nn
from ways import Setting

from woodbury.evaluation.metrics import accuracy
from woodbury.model.batchnorm import recalibrate
from woodbury.model.objective import Objective
from woodbury.pruning.pruned import Pruned
from woodbury.reporting.files import versions

Rows = tuple[Setting, Mapping[str, Any]]


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


def show(
    title: str, names: Sequence[str], cells: Sequence[Mapping[str, Any]], console: Console
) -> None:
    for what in ("test", "test, recalibrated"):
        if not any(what in made for made_ in cells for made in made_["found"].values()):
            continue
        table = Table("row", *names, "seeds", "s for all", title=f"{title}: {what}, %")
        for row in dict.fromkeys(made_["row"] for made_ in cells):
            mine = [made_["found"] for made_ in cells if made_["row"] == row]
            texts = [
                spread([100 * found[name][what] for found in mine if name in found])
                for name in names
            ]
            seconds = sum(max(made["seconds"] for made in found.values()) for found in mine) / len(
                mine
            )
            table.add_row(row, *texts, str(len(mine)), f"{seconds:.0f}")
        console.print(table)


def drive(
    description: str, tables: Mapping[str, Callable[[Any], Rows]], seeds: int, out: str
) -> None:
    """The command line of a benchmark of rows × seeds, whose finished cells are kept in a file."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", metavar="|".join(tables))
    parser.add_argument("--rows", nargs="*", help="only rows that contain one of these")
    parser.add_argument("--seeds", type=int, default=seeds, help="how many calibration samples")
    parser.add_argument("--first", type=int, default=0, help="the first sample's seed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(out))
    asked = parser.parse_args()
    unknown = set(asked.tables) - set(tables)
    if unknown:
        parser.error(f"unknown table {', '.join(unknown)}: choose from {', '.join(tables)}")
    bench, console = bench_data(asked.threads), Console(width=170)
    for name in asked.tables or tables:
        setting, every = tables[name](bench)
        wanted = {
            row: how
            for row, how in every.items()
            if not asked.rows or any(part in row for part in asked.rows)
        }
        for seed, row in product(range(asked.first, asked.first + asked.seeds), wanted):
            cells = finished(asked.out)
            key = f"{name} / {row} / {seed}"
            if key not in cells:
                console.print(f"{key} …")
                found = cell(setting, wanted[row], seed)
                cells[key] = {
                    "table": name,
                    "row": row,
                    "seed": seed,
                    "found": found,
                    "versions": versions(),
                }
                keep(cells, asked.out)
        own = [made for made in finished(asked.out).values() if made["table"] == name]
        show(setting.task.title, list(setting.task.sparsities), own, console)
