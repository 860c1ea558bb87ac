"""One-shot pruning of two language models: python benchmarks/language.py [characters|words ...]
[--rows NAME ...] [--seeds 3] [--seconds 420]

The networks of benchmarks/language_models.py, trained first where they are not in runs/ yet; all
matrices of their layers are pruned, not the embeddings and the head. Against `woodbury.prune` as it
comes stand magnitude, Wanda, SparseGPT and its exact form (benchmarks/layer_by_layer.py). Numbers
are nats a token of the test text, mean ± standard deviation over the seeds of the calibration
sample: 256 sequences of 128 tokens of the training text. Each cell runs in a process of its own,
whose peak memory, python and torch included, is reported, and which may not take more than the
budget. Finished cells are kept in the file of --out; no cell is begun after `--seconds`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from language_models import LANGUAGES, LIKELIHOOD, calibration, nats, trained
from layer_by_layer import EXACT, SPARSEGPT, WANDA
from measured import finished, keep, spread
from rich.console import Console
from rich.table import Table

import woodbury
from woodbury.evaluation.resources import measured
from woodbury.memory import parse_bytes
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.scopes import layerwise
from woodbury.pruning.updates import zero
from woodbury.reporting.files import versions

SEQUENCES, BATCH, LAYERS = 256, 16, "layers.*"
OURS = "woodbury.prune as it comes"
Rival = Callable[[Objective, float], Objective]


class Comparison(NamedTuple):
    """One network: the sparsities of its table, the seeds, and what a process may take."""

    sparsities: tuple[float, ...]
    seeds: int
    budget: str


TABLES = {
    "characters": Comparison((0.5, 0.6, 0.7, 0.8, 0.9), 3, "12GiB"),
    "words": Comparison((0.5, 0.7), 1, "8GiB"),
}


def by(pruner: Pruner) -> Rival:
    return lambda objective, sparsity: pruner(objective, sparsity).objective


RIVALS: Mapping[str, Rival] = {
    "global magnitude": by(Pruner(None, magnitude, zero)),
    "magnitude, uniform": by(Pruner(None, magnitude, zero, scope=layerwise)),
    "Wanda": WANDA,
    "SparseGPT": SPARSEGPT,
    "SparseGPT, exact": EXACT,
}
ROWS = (OURS, *RIVALS)
DATA_FREE = ("global magnitude", "magnitude, uniform")
"""Rows that read no calibration sample: one seed is all."""


def cell(name: str, row: str, sparsity: float, seed: int) -> dict[str, Any]:
    """Nats on the test text, seconds and the process's peak memory."""
    budget = TABLES[name].budget
    limit = parse_bytes(budget)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    model, text = trained(name), LANGUAGES[name].text()
    x, y = calibration(text.train, SEQUENCES, seed)
    batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    settings: dict[str, Any] = {}
    begun = time.process_time()
    if row == OURS:
        pruned, cost = measured(
            lambda: woodbury.prune(
                model, batches, sparsity, likelihood=LIKELIHOOD, include=LAYERS, memory=budget
            )
        )
        reached, settings = pruned.objective, dict(pruned.settings)
    else:
        space = ParameterSpace.from_model(model, LAYERS, min_ndim=2)
        dense = Objective.from_model(model, batches, LIKELIHOOD, space)
        reached, cost = measured(lambda: RIVALS[row](dense, sparsity))
    processor = time.process_time() - begun
    reached.write()
    removed = float((reached.space.expand(reached.weights) == 0).double().mean())
    return {
        "nats": nats(reached.model, text.test),
        "sparsity": removed,
        "seconds": cost.seconds,
        "processor_seconds": processor,
        "megabytes": cost.memory,
        "settings": settings,
    }


def asked_rows(parts: Sequence[str]) -> list[str]:
    """The rows of these names; a part that is no row's name stands for all that contain it."""
    return [row for row in ROWS if row in parts or any(p in row for p in parts if p not in ROWS)]


def apart(name: str, row: str, sparsity: float, seed: int, threads: int) -> dict[str, Any]:
    """The cell in a process of its own; one that fails says why."""
    asked = [name, "--here", row, str(sparsity), str(seed), "--threads", str(threads)]
    command = [sys.executable, __file__, *asked]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["killed"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def show(name: str, cells: Mapping[str, Any], console: Console) -> None:
    mine = [made for made in cells.values() if made["table"] == name]
    columns = [f"{sparsity:g}" for sparsity in TABLES[name].sparsities]
    dense = torch.load(LANGUAGES[name].path, weights_only=True)["nats"]["test"]
    title = f"{name}: nats a token, dense {dense:.3f}"
    table = Table("row", *columns, "seeds", "seconds", "peak, MB", title=title)
    for row in ROWS:
        own = [made for made in mine if made["row"] == row]
        done = [made for made in own if "nats" in made["found"]]
        if not own:
            continue
        texts = []
        for sparsity in TABLES[name].sparsities:
            at = [made["found"] for made in own if made["sparsity"] == sparsity]
            values = [found["nats"] for found in at if "nats" in found]
            alone = f"{values[0]:.3f}" if values else "failed" if at else ""
            texts.append(spread(values, 3) if len(values) > 1 else alone)
        seconds = sorted(made["found"]["seconds"] for made in done)
        span = f"{seconds[0]:.1f} … {seconds[-1]:.1f}" if done else ""
        peak = max((made["found"]["megabytes"] for made in done), default=float("nan"))
        seeds = len({made["seed"] for made in own})
        table.add_row(row, *texts, str(seeds), span, f"{peak:.0f}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="*", metavar="|".join(TABLES))
    parser.add_argument("--rows", nargs="*", help="only rows that contain one of these")
    parser.add_argument("--sparsities", nargs="*", type=float, help="only these")
    parser.add_argument("--seeds", type=int, help="how many calibration samples")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/language.json"))
    parser.add_argument("--again", action="store_true", help="also rows that are done")
    parser.add_argument("--here", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.here:
        row, sparsity, seed = asked.here
        print(json.dumps(cell(asked.tables[0], row, float(sparsity), int(seed))))
        return
    begun, console = time.perf_counter(), Console(width=150)
    for name in asked.tables or TABLES:
        trained(name)
        table = TABLES[name]
        rows = asked_rows(asked.rows or ROWS)
        seeds = range(asked.seeds or table.seeds)
        for seed, row, sparsity in product(seeds, rows, asked.sparsities or table.sparsities):
            key, cells = f"{name} / {row} / {sparsity:g} / {seed}", finished(asked.out)
            if (key in cells and not asked.again) or (seed and row in DATA_FREE):
                continue
            if time.perf_counter() - begun > asked.seconds:
                break
            found = apart(name, row, sparsity, seed, asked.threads)
            console.print(f"{key}: {found}")
            facts = {"table": name, "row": row, "sparsity": sparsity, "seed": seed}
            made = facts | {"found": found, "versions": versions()}
            keep(finished(asked.out) | {key: made}, asked.out)  # others may have written meanwhile
        show(name, finished(asked.out), console)


if __name__ == "__main__":
    main()
