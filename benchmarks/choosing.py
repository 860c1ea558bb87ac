"""Which damping, how many rows and which block: python benchmarks/choosing.py
[mlpnet|resnet20|characters|wide ...] [--axes rows blocks] [--seeds 1] [--seconds 3300]

One step of Gauss–Newton rows and the joint update. For each number of rows, in the usual blocks,
and for each block, with the usual rows, every damping is judged on held-out training data; the best
one is measured on the test data. `characters` is the GPT of benchmarks/language_models.py, `wide` a
perceptron of ten million weights on MNIST; both are trained first where they are not in runs/ yet.
Finished cells are kept in the file of --out; no cell is begun after `--seconds`. All but
`characters` need ../shared/bench.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from language_models import LENGTH, LIKELIHOOD, RUNS, calibration, trained
from language_models import keep as keep_tensors
from language_models import tokens as tokens_of
from measured import bench_data, finished, keep, spread
from one_shot import TASKS, Task, batches
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from woodbury.estimation.recipes import gauss_newton, mfac
from woodbury.fisher.lowrank import LowRank
from woodbury.model.batches import Batch
from woodbury.model.likelihood import cross_entropy
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.pruning.pruner import Pruner
from woodbury.reporting.files import versions

DAMPINGS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT, SEQUENCES = 2000, 128
WIDTHS = (784, 2560, 2560, 512, 10)
"""Of `wide`: 9.9 million weights."""
WHOLE = "whole"
AXES = ("rows", "blocks")


class Network(NamedTuple):
    """A trained network and what is tried on it.

    objective: The dense network on so many samples of a seed. judge, test: Held-out training data,
    and test data. rows, blocks: What is tried; None is the whole matrix. usual_rows, usual_block:
    What stands still meanwhile.
    """

    title: str
    objective: Callable[[int, int], Objective]
    judge: list[Batch]
    test: list[Batch]
    sparsities: tuple[float, ...]
    rows: tuple[int, ...]
    blocks: tuple[int | None, ...]
    usual_rows: int
    usual_block: int | None

    def settings(self, axis: str) -> Iterator[tuple[int, int | None]]:
        """(rows, block) of each cell of an axis."""
        if axis == "rows":
            yield from ((rows, self.usual_block) for rows in self.rows)
        else:
            yield from ((self.usual_rows, block) for block in self.blocks)


def of_images(
    title: str, model: nn.Module, space: ParameterSpace, train: Batch, test: Batch, **tried: Any
) -> Network:
    """Samples are drawn from all training images but the first of a fixed shuffle, which judge."""
    x, y = train
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(2020))
    held, pool = order[:HELD_OUT], order[HELD_OUT:]

    def objective(count: int, seed: int) -> Objective:
        draw = torch.Generator().manual_seed(seed)
        drawn = pool[torch.randperm(len(pool), generator=draw)[:count]]
        return Objective.from_model(model, batches(x[drawn], y[drawn]), cross_entropy, space)

    return Network(title, objective, batches(x[held], y[held]), batches(*test), **tried)


def of_task(task: Task, **tried: Any) -> Network:
    """A network of benchmarks/one_shot.py."""
    return of_images(task.title, task.model, task.space, task.train, task.test, **tried)


def mlpnet(bench: Any) -> Network:
    return of_task(
        TASKS["mlpnet"](bench),
        sparsities=(0.8, 0.95),
        rows=(60, 125, 250, 500, 1000, 2000),
        blocks=(32, 128, 512, 2048, None),
        usual_rows=1000,
        usual_block=None,
    )


def resnet20(bench: Any) -> Network:
    return of_task(
        TASKS["resnet20"](bench),
        sparsities=(0.6, 0.8),
        rows=(125, 250, 500, 1000, 2000),
        blocks=(32, 128, 512, 2048, None),
        usual_rows=1000,
        usual_block=128,
    )


def characters(bench: Any) -> Network:
    """Losses are of whole sequences."""
    model, text = trained("characters"), tokens_of(97)
    space = ParameterSpace.from_model(model, "layers.*", min_ndim=2)

    def objective(count: int, seed: int) -> Objective:
        sample = in_sequences(text.train, count, seed)
        return Objective.from_model(model, sample, LIKELIHOOD, space)

    return Network(
        f"GPT on characters, sequences of {LENGTH}",
        objective,
        judge=in_sequences(text.held_out, SEQUENCES, 0),
        test=in_sequences(text.test, SEQUENCES, 0),
        sparsities=(0.5, 0.7),
        rows=(60, 125, 250, 500),
        blocks=(32, 128, 512, None),
        usual_rows=250,
        usual_block=128,
    )


def in_sequences(text: Tensor, count: int, seed: int) -> list[Batch]:
    inputs, target = calibration(text, count, seed)
    return list(zip(inputs.split(16), target.split(16), strict=True))


def wide(bench: Any) -> Network:
    x, y, x_test, y_test = bench.mnist()
    model = trained_perceptron(x, y)
    space = ParameterSpace.from_model(model, min_ndim=2)
    return of_images(
        "A perceptron of 9.9 million weights on MNIST",
        model,
        space,
        (x, y),
        (x_test, y_test),
        sparsities=(0.9, 0.98),
        rows=(60, 125, 250),
        blocks=(16, 32, 64, None),
        usual_rows=125,
        usual_block=32,
    )


def trained_perceptron(x: Tensor, y: Tensor) -> nn.Module:
    """`wide` after two epochs; it is kept in runs/. The images that judge are not trained on."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(WIDTHS):
        layers += [nn.Linear(before, after), nn.ReLU()]
    model, path = nn.Sequential(*layers[:-1]), RUNS / "wide_perceptron.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(2020))[HELD_OUT:]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4)
    for _ in range(2):
        for part in order[torch.randperm(len(order))].split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    keep_tensors(path, model.state_dict())
    return model.eval()


NETWORKS: Mapping[str, Callable[[Any], Network]] = {
    "mlpnet": mlpnet,
    "resnet20": resnet20,
    "characters": characters,
    "wide": wide,
}


def cell(network: Network, rows: int, block: int | None, seed: int) -> dict[str, Any]:
    """By sparsity: the held-out increase of the loss by damping, and the test increase of the best.

    One estimate of the curvature serves all dampings.
    """
    dense = network.objective(rows, seed)
    before, before_test = dense.loss(network.judge), dense.loss(network.test)
    begun = time.perf_counter()
    pruner = Pruner(gauss_newton(mfac(rows, block=block), 1))
    quadratic = pruner.quadratic(dense)
    fisher = quadratic.curvature("A damping")
    if isinstance(fisher, LowRank):
        fisher = fisher.spectral()
    found: dict[str, Any] = {}
    for sparsity in network.sparsities:
        judged, best, least = {}, None, float("inf")
        for damping in DAMPINGS:
            damped = replace(quadratic, fisher=fisher.with_damping(damping))
            pruned = pruner.on_quadratic(damped, dense, sparsity).objective
            increase = pruned.loss(network.judge) - before
            judged[f"{damping:g}"] = increase
            if increase < least:
                best, least = pruned, increase
        test = None if best is None else best.loss(network.test) - before_test
        found[f"{sparsity:g}"] = {"held out": judged, "test": test}
    return {"found": found, "dense loss": before_test, "seconds": time.perf_counter() - begun}


def fill(
    names: Sequence[str], axes: Sequence[str], seeds: int, seconds: float, out: Path, bench: Any
) -> None:
    """Measure the cells that are not in the file, as long as there is time."""
    end = time.monotonic() + seconds
    for name in names:
        network = NETWORKS[name](bench)
        for axis in axes:
            for seed in range(seeds):
                for rows, block in network.settings(axis):
                    cells = finished(out)
                    key = f"{name} / {rows} rows / {block or WHOLE} / {seed}"
                    if key in cells or time.monotonic() > end:
                        continue
                    print(f"{key} …", flush=True)
                    made = cell(network, rows, block, seed)
                    of = {"network": name, "rows": rows, "block": block or WHOLE, "seed": seed}
                    keep({**cells, key: {**of, **made, "versions": versions()}}, out)


def best_damping(judged: Mapping[str, float | None]) -> str:
    """The damping of least held-out loss; a null is a loss that is not finite."""
    finite = {damping: loss for damping, loss in judged.items() if loss is not None}
    return min(finite, key=lambda damping: finite[damping]) if finite else "none"


def show(name: str, cells: Sequence[Mapping[str, Any]], console: Console) -> None:
    """A table for each sparsity: a line for each rows and block, a column for each damping."""
    for sparsity in dict.fromkeys(key for made in cells for key in made["found"]):
        columns = [f"{damping:g}" for damping in DAMPINGS]
        table = Table("rows", "block", *columns, "test, best damping", "s", "seeds")
        table.title = f"{name} at {sparsity}: held-out increase of the loss by damping"
        order = sorted({(made["rows"], str(made["block"])) for made in cells}, key=_in_order)
        for rows, block in order:
            mine = [made for made in cells if (made["rows"], str(made["block"])) == (rows, block)]
            found = [made["found"][sparsity] for made in mine]
            held = {
                damping: [each["held out"][damping] for each in found if _known(each, damping)]
                for damping in columns
            }
            means = {damping: fmean(each) if each else None for damping, each in held.items()}
            best = best_damping(means)
            texts = [
                "–" if mean is None else f"[bold]{mean:.3g}[/]" if key == best else f"{mean:.3g}"
                for key, mean in means.items()
            ]
            test = spread([each["test"] for each in found if each["test"] is not None], 3)
            seconds = fmean(made["seconds"] for made in mine)
            table.add_row(f"{rows}", block, *texts, test, f"{seconds:.0f}", f"{len(mine)}")
        console.print(table)


def _known(found: Mapping[str, Any], damping: str) -> bool:
    return found["held out"][damping] is not None


def _in_order(setting: tuple[int, str]) -> tuple[int, float]:
    rows, block = setting
    return rows, float("inf") if block == WHOLE else float(block)


def rules(cells: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The block and the damping of least held-out loss, for each network, rows and sparsity."""
    table = Table("network", "sparsity", "rows", "block", "rows ÷ block", "damping", "of blocks")
    keys = {
        (made["network"], sparsity, made["rows"], made["seed"])
        for made in cells
        for sparsity in made["found"]
    }
    for name, sparsity, rows, seed in sorted(keys):
        mine = [
            made
            for made in cells
            if (made["network"], made["rows"], made["seed"]) == (name, rows, seed)
        ]
        if len(mine) < 2:  # one block tells nothing about blocks
            continue
        least: list[tuple[float, str, str]] = []
        for made in mine:
            judged = made["found"][sparsity]["held out"]
            damping = best_damping(judged)
            if damping != "none":
                least.append((judged[damping], str(made["block"]), damping))
        if least:
            _, block, damping = min(least)
            ratio = "–" if block == WHOLE else f"{rows / int(block):.1f}"
            table.add_row(name, sparsity, f"{rows}", block, ratio, damping, f"{len(least)}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", metavar="|".join(NETWORKS))
    parser.add_argument("--axes", nargs="*", choices=AXES, default=list(AXES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3300.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RUNS / "choosing.json")
    asked = parser.parse_args()
    names = asked.networks or list(NETWORKS)
    if unknown := set(names) - set(NETWORKS):
        parser.error(f"unknown network {', '.join(unknown)}: choose from {', '.join(NETWORKS)}")
    torch.set_num_threads(asked.threads)
    bench = None if names == ["characters"] else bench_data(asked.threads)
    fill(names, asked.axes, asked.seeds, asked.seconds, asked.out, bench)
    console, cells = Console(width=170), list(finished(asked.out).values())
    for name in names:
        show(name, [made for made in cells if made["network"] == name], console)
    rules(cells, console)


if __name__ == "__main__":
    main()
