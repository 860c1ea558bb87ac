"""Five tasks of two digits each, one after another: python benchmarks/continual.py [--samples 2000]
[--tests 1000] [--epochs 5] [--seeds 5] [--rows 400] [--hidden 100]

Split MNIST with one head of two outputs, the first or the second of the pair, for all tasks. The
accuracy on all five tasks after the last, mean ± standard deviation over the seeds, without a
penalty, with an identity (L2 towards the earlier weights), with a diagonal Fisher, and with
Gauss-Newton rows, whose penalties are merged into one of `--rows` rows; each with the penalty's
gradient added and with its implicit step. Strength and damping of each are chosen on held-out
training digits, from the same grid, with a seed that no reported run has. Needs
../shared/bench beside the project.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from measured import bench_data, spread
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import woodbury
from woodbury import Consolidation, Objective, WoodburyError
from woodbury.fisher import Diagonal, Fisher

STRENGTHS = (1.0, 10.0, 100.0, 1e3, 1e4)
DAMPINGS = (1e-5, 1e-3, 1e-2)
Task = tuple[Tensor, Tensor]
Estimate = Callable[[Objective], Fisher]


class Kind(NamedTuple):
    """A penalty: its curvature by damping, and whether its steps are implicit."""

    estimate: Callable[[float], Estimate]
    implicit: bool


class Setting(NamedTuple):
    """Of a penalty."""

    strength: float
    damping: float


def tasks(x: Tensor, y: Tensor, count: int) -> list[Task]:
    """Some `count` digits of each of 0-1, 2-3, …, with labels 0 and 1."""
    found = []
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    for first in range(0, 10, 2):
        places = ((y == first) | (y == first + 1)).nonzero()[:count, 0]
        found.append((x[places].flatten(1), y[places] - first))
    return found


def merged(
    term: Consolidation | None, fisher: Fisher, objective: Objective, rows: int, strength: float
) -> list[Consolidation]:
    new = Consolidation(fisher, objective.weights, strength, space=objective.space)
    if term is None:
        return [new]
    return [term.merged(new, rows)]


def run(
    train: list[Task],
    judged: list[Task],
    seed: int,
    args: argparse.Namespace,
    kind: Kind | None,
    setting: Setting | None,
) -> float:
    """The mean accuracy on all tasks after the last, in percent."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(784, args.hidden), nn.ReLU(), nn.Linear(args.hidden, 2))
    terms: list[Consolidation] = []
    for x, y in train:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        implicit = kind is not None and kind.implicit
        attached = Consolidation.attach_implicit if implicit else Consolidation.attach
        hooks = [attached(term, optimizer, model) for term in terms]
        for _ in range(args.epochs):
            for batch in torch.randperm(len(y)).split(64):
                optimizer.zero_grad()
                cross_entropy(model(x[batch]), y[batch]).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 10.0)
                optimizer.step()
        for hook in hooks:
            hook.remove()
        if kind is not None and setting is not None:
            strength = setting.strength
            objective = Objective.from_model(model, [(x, y)])
            fisher = kind.estimate(setting.damping)(objective)
            if isinstance(fisher, woodbury.fisher.LowRank):
                terms = merged(terms[0] if terms else None, fisher, objective, args.rows, strength)
            else:  # diagonals are few numbers: one for each task
                space = objective.space
                terms.append(Consolidation(fisher, objective.weights, strength, space=space))
    with torch.no_grad():
        right = [(model(x).argmax(1) == y).float().mean() for x, y in judged]
    return 100 * float(torch.stack(right).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--tests", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    x, y, x_test, y_test = bench_data(args.threads).mnist()
    both = tasks(x, y, args.samples + args.tests)
    train = [(inputs[: args.samples], labels[: args.samples]) for inputs, labels in both]
    held_out = [(inputs[args.samples :], labels[args.samples :]) for inputs, labels in both]
    test = tasks(x_test, y_test, args.tests)
    count = min(args.rows, args.samples)

    def judged(kind: Kind, setting: Setting) -> float:
        try:
            return run(train, held_out, 1000, args, kind, setting)
        except WoodburyError:  # the steps are too long for so strong a penalty
            return 0.0

    def identity(damping: float) -> Estimate:
        return lambda objective: Diagonal(torch.zeros(objective.space.d), damping)

    def diagonal(damping: float) -> Estimate:
        return woodbury.diagonal_fisher(count, damping)

    def rows(damping: float) -> Estimate:
        return woodbury.gauss_newton(woodbury.mfac(count, damping), 1)

    estimates = {"identity": identity, "diagonal Fisher": diagonal, "rows, merged": rows}
    kinds: dict[str, Kind | None] = {"no penalty": None}
    for name, estimate in estimates.items():
        kinds[name] = Kind(estimate, False)
        kinds[f"{name}, implicit"] = Kind(estimate, True)
    table = Table("penalty", "strength", "damping", "accuracy, %", "s", title="After five tasks")
    grid = [Setting(strength, damping) for damping in DAMPINGS for strength in STRENGTHS]
    for name, kind in kinds.items():
        setting = None
        if kind is not None:
            accuracy = {setting: judged(kind, setting) for setting in grid}
            setting = max(accuracy, key=accuracy.__getitem__)
            print(name, "held out:", {tuple(s): round(a, 2) for s, a in accuracy.items()})
        start = time.process_time()
        found = [run(train, test, s, args, kind, setting) for s in range(args.seeds)]
        seconds = (time.process_time() - start) / args.threads / args.seeds
        chosen = ("–", "–") if setting is None else (f"{each:g}" for each in setting)
        table.add_row(name, *chosen, spread(found), f"{seconds:.1f}")
        print(name, setting, spread(found), f"{seconds:.1f} s", flush=True)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
