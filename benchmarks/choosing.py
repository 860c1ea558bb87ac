"""Which damping, rows, block and curvature: python benchmarks/choosing.py
[mlpnet|resnet20|characters|wide ...] [--axes rows blocks kinds] [--seeds 1] [--seconds 3300]
[--without PART ...]

One step and the joint update. For each number of rows, in the usual blocks, for each block, with
the usual rows, and for each kind of curvature, in both, every damping is judged on held-out
training data; the best one is measured on the test data. `rows` and `blocks` are of Gauss–Newton
rows; a kind that averages samples in a row has fewer rows of as many samples. `characters` is the
GPT of benchmarks/language_models.py, `wide` a perceptron of ten million weights on MNIST; both are
trained first where they are not in runs/ yet. Finished cells are kept in the file of --out; no cell
is begun after `--seconds`, and none whose name contains a PART of `--without`, such as
"characters / Gauss–Newton / 250 rows / 512". All but `characters` need ../shared/bench.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
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

from woodbury.errors import WoodburyError
from woodbury.estimation.labels import sampled
from woodbury.estimation.recipes import Estimate, diagonal_fisher, gauss_newton, kfac, mfac
from woodbury.evaluation.resources import measured
from woodbury.fisher.lowrank import LowRank
from woodbury.limits import Limits
from woodbury.model.batches import Batch, samples_in
from woodbury.model.likelihood import cross_entropy
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.updates import zero
from woodbury.reporting.files import versions

DAMPINGS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT, SEQUENCES = 2000, 64
WIDTHS = (784, 2560, 2560, 512, 10)
"""Of `wide`: 9.9 million weights."""
WHOLE = "whole"
NONE = "none"
"""In place of a damping, where there is no Fisher."""
AXES = ("rows", "blocks", "kinds")
GAUSS_NEWTON, MAGNITUDE = "Gauss–Newton", "magnitude"
RESIDUAL = 1e-3
"""At which conjugate gradients of K-FAC end: its step is compared, not its digits."""
STEPS = 300
"""Of them at most; a damping that needs more has no loss."""
SOLVES = Limits(cg_residual=RESIDUAL, cg_steps=STEPS, direct_size=256)


def kind(name: str, rows: int, block: int | None) -> Pruner:
    """What prunes by a kind of curvature from so many samples."""
    if name == MAGNITUDE:
        return Pruner(None, magnitude, zero)
    recipes: dict[str, Estimate] = {
        GAUSS_NEWTON: gauss_newton(mfac(rows, block=block), 1),
        "observed labels": mfac(rows, block=block),
        "drawn labels": mfac(rows, block=block, labels=sampled),
        "means of 4": mfac(rows // 4, block=block, batch=4),
        "means of 16": mfac(rows // 16, block=block, batch=16),
        "K-FAC": kfac(rows),
        "diagonal": diagonal_fisher(rows),
    }
    return Pruner(recipes[name])


KINDS = (
    "observed labels",
    "drawn labels",
    "means of 4",
    "means of 16",
    "K-FAC",
    "diagonal",
    MAGNITUDE,
)


class Setting(NamedTuple):
    """A cell."""

    kind: str
    rows: int
    block: int | None


class Network(NamedTuple):
    """A trained network and what is tried on it.

    objective: The dense network on so many samples of a seed. judge, test: Held-out training data,
    and test data. rows, blocks: What is tried; None is the whole matrix. usual_rows, usual_block:
    What stands still meanwhile. kinds: Of curvature. dampings: That are judged.
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
    kinds: tuple[str, ...] = KINDS
    dampings: tuple[float, ...] = DAMPINGS

    def settings(self, axis: str) -> Iterator[Setting]:
        """The cells of an axis."""
        if axis == "rows":
            yield from (Setting(GAUSS_NEWTON, rows, self.usual_block) for rows in self.rows)
        elif axis == "blocks":
            yield from (Setting(GAUSS_NEWTON, self.usual_rows, block) for block in self.blocks)
        else:
            yield from (Setting(kind, self.usual_rows, self.usual_block) for kind in self.kinds)


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


def of_task(task: Task, judges: int, tests: int, **tried: Any) -> Network:
    """A network of benchmarks/one_shot.py, judged and tested on so many images."""
    every = len(task.test[1]) // tests  # images may lie in the order of their classes
    test = task.test[0][::every], task.test[1][::every]
    made = of_images(task.title, task.model, task.space, task.train, test, **tried)
    return made._replace(judge=first(made.judge, judges))


def first(batches: Sequence[Batch], count: int) -> list[Batch]:
    """The first batches, of at least so many samples."""
    kept: list[Batch] = []
    for batch in batches:
        if samples_in_all(kept) < count:
            kept.append(batch)
    return kept


def mlpnet(bench: Any) -> Network:
    return of_task(
        TASKS["mlpnet"](bench),
        2000,
        10_000,
        sparsities=(0.8, 0.95),
        rows=(60, 250, 1000),
        blocks=(32, 128, 512, 2048, None),
        usual_rows=500,
        usual_block=None,
    )


def resnet20(bench: Any) -> Network:
    return of_task(
        TASKS["resnet20"](bench),
        256,
        1000,
        sparsities=(0.8,),
        rows=(125,),
        blocks=(32, 128, 512, None),
        usual_rows=500,
        usual_block=128,
        kinds=("observed labels", "K-FAC", MAGNITUDE),
        dampings=DAMPINGS[1:6],
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
        sparsities=(0.5,),
        rows=(60,),
        blocks=(32, 128, 512, None),
        usual_rows=250,
        usual_block=128,
        kinds=("observed labels", "means of 4", "K-FAC", "diagonal", MAGNITUDE),
        dampings=DAMPINGS[1:5],
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
        sparsities=(0.9,),
        rows=(60,),
        blocks=(16, 32, 64),
        usual_rows=125,
        usual_block=32,
        kinds=("observed labels", "diagonal", MAGNITUDE),  # K-FAC: minutes for a damping
        dampings=(1e-7, *DAMPINGS[:5]),
    )


def trained_perceptron(x: Tensor, y: Tensor) -> nn.Module:
    """`wide` after one epoch; it is kept in runs/. The images that judge are not trained on."""
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


def cell(network: Network, setting: Setting, seed: int) -> dict[str, Any]:
    """By sparsity: the held-out increase of the loss by damping, and the test increase of the best.

    One estimate of the curvature serves all dampings.
    """
    dense = network.objective(setting.rows, seed)
    before, before_test = dense.loss(network.judge), dense.loss(network.test)
    pruner = kind(*setting)
    begun = time.process_time()
    found, cost = measured(lambda: judged(network, pruner, dense))
    spent = time.process_time() - begun
    tested = {
        sparsity: {
            "held out": {key: loss - before for key, loss in each.losses.items()},
            "test": None if each.best is None else each.best.loss(network.test) - before_test,
        }
        for sparsity, each in found.items()
    }
    resources = {"seconds": cost.seconds, "CPU seconds": spent, "megabytes": cost.memory}
    return {"found": tested, "dense loss": before_test, **resources}


class Judged(NamedTuple):
    """The held-out loss by damping, and the network of the best."""

    losses: dict[str, float]
    best: Objective | None


def judged(network: Network, pruner: Pruner, dense: Objective) -> dict[str, Judged]:
    """By sparsity: every damping of one estimate of the curvature."""
    quadratic = pruner.quadratic(dense)
    fisher = quadratic.fisher
    if isinstance(fisher, LowRank):
        fisher = fisher.spectral()
    found = {}
    for sparsity in network.sparsities:
        losses, best, least = {}, None, float("inf")
        for damping in network.dampings if fisher is not None else (0.0,):
            damped = None if fisher is None else fisher.with_damping(damping)
            key = f"{damping:g}" if fisher is not None else NONE
            losses[key] = float("inf")
            with suppress(WoodburyError), SOLVES:
                by = replace(quadratic, fisher=damped)
                pruned = pruner.on_quadratic(by, dense, sparsity).objective
                losses[key] = pruned.loss(network.judge)
            if losses[key] < least:
                best, least = pruned, losses[key]
        found[f"{sparsity:g}"] = Judged(losses, best)
    return found


def fill(asked: argparse.Namespace, names: Sequence[str], bench: Any) -> None:
    """Measure the cells that are not in the file, as long as there is time."""
    end, out = time.monotonic() + asked.seconds, asked.out
    for name in names:
        network = NETWORKS[name](bench)
        for axis in asked.axes:
            for seed in range(asked.seeds):
                for setting in network.settings(axis):
                    cells = finished(out)
                    of_kind, rows, block = setting
                    key = f"{name} / {of_kind} / {rows} rows / {block or WHOLE} / {seed}"
                    left_out = any(part in key for part in asked.without)
                    if key in cells or left_out or time.monotonic() > end:
                        continue
                    print(f"{key} …", flush=True)
                    made = cell(network, setting, seed)
                    of = {"network": name, "kind": of_kind, "rows": rows, "block": block or WHOLE}
                    of |= {"seed": seed, "judged on": samples_in_all(network.judge)}
                    keep({**cells, key: {**of, **made, "versions": versions()}}, out)


def samples_in_all(batches: Sequence[Batch]) -> int:
    return sum(samples_in(inputs) for inputs, _ in batches)


def best_damping(judged: Mapping[str, float | None]) -> str:
    """The damping of least held-out loss; a null is a loss that is not finite."""
    finite = {damping: loss for damping, loss in judged.items() if loss is not None}
    return min(finite, key=lambda damping: finite[damping]) if finite else "none"


def show(name: str, cells: Sequence[Mapping[str, Any]], console: Console) -> None:
    """A table for each sparsity: a line for each setting, a column for each damping."""
    for sparsity in dict.fromkeys(key for made in cells for key in made["found"]):
        known = {key for made in cells for key in made["found"][sparsity]["held out"]}
        columns = sorted(known, key=lambda key: -1.0 if key == NONE else float(key))
        table = Table("curvature", "rows", "block", *columns, "test, best damping", "CPU s", "MiB")
        table.add_column("seeds")
        table.title = f"{name} at {sparsity}: held-out increase of the loss by damping"
        for of_kind, rows, block in sorted({_setting(made) for made in cells}, key=_in_order):
            mine = [made for made in cells if _setting(made) == (of_kind, rows, block)]
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
            seconds = fmean(made["CPU seconds"] for made in mine)
            memory = max(made["megabytes"] for made in mine)
            costs = (f"{seconds:.1f}", f"{memory:.0f}", f"{len(mine)}")
            table.add_row(of_kind, f"{rows}", block, *texts, test, *costs)
        console.print(table)


def _known(found: Mapping[str, Any], damping: str) -> bool:
    return found["held out"].get(damping) is not None


def _setting(made: Mapping[str, Any]) -> tuple[str, int, str]:
    return made["kind"], made["rows"], str(made["block"])


def _in_order(setting: tuple[str, int, str]) -> tuple[int, int, float]:
    of_kind, rows, block = setting
    place = (GAUSS_NEWTON, *KINDS).index(of_kind)
    return place, rows, float("inf") if block == WHOLE else float(block)


def rules(cells: Sequence[Mapping[str, Any]], console: Console) -> None:
    """The block and the damping of least held-out loss, for each network, rows and sparsity."""
    table = Table("network", "sparsity", "rows", "block", "rows ÷ block", "damping", "of blocks")
    keys = {
        (made["network"], sparsity, made["rows"], made["seed"])
        for made in cells
        for sparsity in made["found"]
        if made["kind"] == GAUSS_NEWTON
    }
    for name, sparsity, rows, seed in sorted(keys):
        mine = [
            made
            for made in cells
            if (made["network"], made["rows"], made["seed"]) == (name, rows, seed)
            and made["kind"] == GAUSS_NEWTON
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
    parser.add_argument("--without", nargs="*", default=[], metavar="PART")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RUNS / "choosing.json")
    asked = parser.parse_args()
    names = asked.networks or list(NETWORKS)
    if unknown := set(names) - set(NETWORKS):
        parser.error(f"unknown network {', '.join(unknown)}: choose from {', '.join(NETWORKS)}")
    torch.set_num_threads(asked.threads)
    bench = None if names == ["characters"] else bench_data(asked.threads)
    fill(asked, names, bench)
    console, cells = Console(width=170), list(finished(asked.out).values())
    for name in names:
        show(name, [made for made in cells if made["network"] == name], console)
    rules(cells, console)


if __name__ == "__main__":
    main()
