"""Quality on four small tasks (benchmarks/tasks.py): SGD with momentum, AdamW, Muon and MFAC, four
settings each.

python benchmarks/training.py [--tasks images,pruned,text,equation] [--optimizers
SGD,AdamW,Muon,MFAC] [--out runs/training.json]

Settings are chosen on seed 100 by the loss on held-out training data at the last step (the
equation's: by the loss itself); the tables are of three other seeds and of test data. Seconds are
the process's, of the training steps alone, with one thread. A finished run is written at once, and
is not run again by a second call. The images need ../shared/bench beside the project.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import tasks
import torch
from limits import table
from rich.console import Console
from tasks import Task
from torch import nn

from woodbury.optim.levenberg_marquardt import LevenbergMarquardt
from woodbury.optim.optimizer import MFAC

Setting = tuple[float, ...]
Optimizers = list[torch.optim.Optimizer]
Make = Callable[[Task, Setting], Optimizers]
Curve = list[list[float]]
CHOOSING, SEEDS, MARKS = 100, (0, 1, 2), 8
RESIDUALS, FEWER = 320, 5  # a step on all residuals costs several others: it gets a fifth of them


def sgd(task: Task, setting: Setting) -> Optimizers:
    return [torch.optim.SGD(task.model.parameters(), setting[0], momentum=0.9)]


def adamw(task: Task, setting: Setting) -> Optimizers:
    return [torch.optim.AdamW(task.model.parameters(), setting[0], weight_decay=0.0)]


def muon(task: Task, setting: Setting) -> Optimizers:
    """Muon for all matrices and kernels but the last layer's, as torch has it for matrices only;
    AdamW for the rest."""
    layers = [
        module for module in task.model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))
    ][:-1]
    kernels = [layer.weight for layer in layers]
    flat = [nn.Parameter(kernel.detach().flatten(1)) for kernel in kernels]  # the same memory
    own = {id(kernel) for kernel in kernels}
    matrices = torch.optim.Muon(flat, setting[0], weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    others = torch.optim.AdamW(
        [p for p in task.model.parameters() if id(p) not in own], setting[0], weight_decay=0.0
    )

    def hand_over(*_: Any) -> None:
        for matrix, kernel in zip(flat, kernels, strict=True):
            assert kernel.grad is not None
            matrix.grad = kernel.grad.flatten(1)

    matrices.register_step_pre_hook(hand_over)
    return [matrices, others]


def mfac(task: Task, setting: Setting) -> Optimizers:
    lr, damping = setting
    named = task.model.named_parameters()
    return [MFAC(named, lr, damping=damping, window=128, momentum=0.9, keep=task.keep)]


def gauss_newton(task: Task, setting: Setting) -> Optimizers:
    """MFAC on all residuals of the step; the setting is the damping where Levenberg and Marquardt
    begin."""
    return [MFAC(task.model.parameters(), 1.0, damping=setting[0], window=RESIDUALS)]


def rates(*numbers: float) -> list[Setting]:
    return [(number,) for number in numbers]


USUAL: dict[str, tuple[Make, list[Setting]]] = {
    "SGD": (sgd, rates(0.01, 0.03, 0.1, 0.3)),
    "AdamW": (adamw, rates(0.001, 0.003, 0.01, 0.03)),
    "Muon": (muon, rates(0.003, 0.01, 0.03, 0.1)),
    "MFAC": (mfac, [(0.003, 0.01), (0.003, 0.1), (0.01, 0.01), (0.01, 0.1)]),
}
GRIDS = {
    "images": USUAL,
    "pruned": USUAL
    | {
        "Muon": (muon, rates(0.001, 0.003, 0.01, 0.03)),
        "MFAC": (mfac, [(0.01, 0.01), (0.01, 0.1), (0.03, 0.01), (0.03, 0.1)]),
    },
    "text": USUAL,
    "equation": {
        "SGD": (sgd, rates(0.001, 0.003, 0.01, 0.03)),
        "AdamW": (adamw, rates(0.003, 0.01, 0.03, 0.1)),
        "Muon": USUAL["Muon"],
        "MFAC": (gauss_newton, rates(0.01, 0.1, 1.0, 10.0)),
    },
}
STEPS = {"images": 234, "pruned": 40, "text": 400, "equation": 3000}
NUMBERS = {
    "images": "accuracy, %",
    "pruned": "accuracy, %",
    "text": "nats per character",
    "equation": "relative error of u, L²",
}


def run(name: str, make: Make, setting: Setting, seed: int) -> Curve:
    """(step, seconds, number) at MARKS steps, or the last alone for CHOOSING; the rate falls as
    half a cosine, Newton's not."""
    task, spent, curve = getattr(tasks, name)(seed), 0.0, []
    optimizers, newton = make(task, setting), make is gauss_newton
    steps = STEPS[name] // FEWER if newton else STEPS[name]
    falling = [
        torch.optim.lr_scheduler.LambdaLR(
            each, lambda step: (1 + math.cos(math.pi * step / steps)) / 2
        )
        for each in optimizers
        if not newton
    ]
    damping = (
        LevenbergMarquardt(optimizers[0]) if newton and isinstance(optimizers[0], MFAC) else None
    )
    choosing = seed == CHOOSING
    marks = {steps} if choosing else {steps * (mark + 1) // MARKS for mark in range(MARKS)}
    for step in range(steps):
        start = time.process_time()
        if damping is not None and task.rows is not None:
            rows, residuals = task.rows(step)
            damping.step(residuals.square().mean() / 2)
            damping.optimizer.step(rows=rows, residuals=residuals)
        else:
            first_order(task, step, optimizers)
        for each in falling:
            each.step()
        spent += time.process_time() - start
        if step + 1 in marks:
            curve.append([step + 1, spent, task.tuning() if choosing else task.test()])
    return curve


def first_order(task: Task, step: int, optimizers: Optimizers) -> None:
    """A step from gradients; what is pruned stays so, of which MFAC takes care itself."""
    task.model.zero_grad()
    task.loss(step).backward()
    for optimizer in optimizers:
        optimizer.step()
    if not isinstance(optimizers[0], MFAC):
        for name, mask in task.keep.items():
            task.model.get_parameter(name).data.mul_(mask)


class Finished:
    """The runs that are done, in a file, so that an interrupted benchmark goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.curves: dict[str, Curve] = json.loads(path.read_text()) if path.exists() else {}

    def curve(self, name: str, optimizer: str, setting: Setting, seed: int) -> Curve:
        key = f"{name} {optimizer} {'/'.join(f'{number:g}' for number in setting)} {seed}"
        if key not in self.curves:
            self.curves[key] = run(name, GRIDS[name][optimizer][0], setting, seed)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.curves, indent=0))
            partial.replace(self.path)
            print(key, *self.curves[key][-1], flush=True)
        return self.curves[key]


def chosen(finished: Finished, name: str, optimizer: str) -> Setting:
    """The setting of the lowest loss to tune by."""
    settings = GRIDS[name][optimizer][1]
    losses = [finished.curve(name, optimizer, setting, CHOOSING)[-1][2] for setting in settings]
    return min(
        zip(settings, losses, strict=True),
        key=lambda pair: pair[1] if pair[1] == pair[1] else math.inf,
    )[0]


def rows_of(name: str, curves: dict[str, tuple[Setting, list[Curve]]]) -> list[list[str]]:
    """Per optimizer the number to report at a quarter, half and all of the steps, and after the
    seconds of the quickest."""
    quickest = min(mean(curve[-1][1] for curve in found) for _, found in curves.values())

    def cell(numbers: list[float]) -> str:
        return f"{mean(numbers):.4g} ± {pstdev(numbers):.2g}"

    made = []
    for optimizer, (setting, found) in curves.items():
        by_steps = [
            cell([curve[MARKS * part // 4 - 1][2] for curve in found]) for part in (1, 2, 4)
        ]
        in_time = [[mark[2] for mark in curve if mark[1] <= 1.05 * quickest] for curve in found]
        timed = cell([each[-1] for each in in_time]) if all(in_time) else "none yet"
        numbers = ", ".join(f"{number:g}" for number in setting)
        seconds = mean(curve[-1][1] for curve in found)
        made.append(
            [optimizer, numbers, f"{found[0][-1][0]:.0f}", *by_steps, f"{seconds:.1f}", timed]
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default=",".join(STEPS))
    parser.add_argument("--optimizers", default=",".join(USUAL))
    parser.add_argument("--out", type=Path, default=Path("runs/training.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    finished, console = Finished(arguments.out), Console(width=150)
    for name in arguments.tasks.split(","):
        curves: dict[str, tuple[Setting, list[Curve]]] = {}
        for optimizer in arguments.optimizers.split(","):
            setting = chosen(finished, name, optimizer)
            curves[optimizer] = (
                setting,
                [finished.curve(name, optimizer, setting, seed) for seed in SEEDS],
            )
        columns = (
            "optimizer",
            "setting",
            "steps",
            "after 1/4",
            "after 1/2",
            "at the end",
            "seconds",
            "in equal seconds",
        )
        console.print(table(f"{name}: {NUMBERS[name]}", columns, rows_of(name, curves)))


if __name__ == "__main__":
    main()
