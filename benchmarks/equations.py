"""How exact is the solution of an equation after so many seconds: python benchmarks/equations.py
[--equation "Poisson, 2-D"] [--seconds 30] [--threads 1] [--seeds 3 4 5] [--methods NAME ...]

Six problems with a known solution, in float64 (`residual_problems.py`). The first is experiment
exp09 of f-dangel/kfac-pinns-experiments (Dangel, Müller & Zeinhofer 2024), whose published numbers
are from a GPU: −Δu = 2π² sin πx sin πy on the unit square, 900 points inside, 120 on the edge, a
perceptron 2–64–1 of tanh (257 weights).

Methods with settings get the one whose loss is least after a quarter of the seconds, on seed 100.
Seconds are the process's own CPU time by the number of threads, so that a loaded machine counts as
an idle one; measuring the error takes none of them. No data is needed. Methods of packages that are
not there (pytorch_optimizer, torch-levenberg-marquardt) are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path
from statistics import fmean, geometric_mean, pstdev
from typing import Any

import torch
from equation_methods import METHODS
from measured import finished, keep
from residual_problems import EQUATIONS, Problem

SHARES = 1 / 30, 1 / 15, 0.1, 1 / 6, 0.25, 1 / 3, 0.5, 2 / 3, 1.0
"""Of the seconds, at which the error is read; the table shows the sixth and the last."""

TUNING_SEED = 100

REDRAWN = 2.0
"""Seconds between two draws of points, for the equations whose points are drawn anew: all methods
have as many."""


def curve(equation: str, method: str, setting: Any, seed: int, seconds: float) -> dict[str, Any]:
    """The errors of a run at shares of its seconds, and its loss at the end."""
    problem = Problem.of(equation, seed)
    marks = [share * seconds for share in SHARES]
    errors: list[float] = []
    spent, drawn, taken, last = 0.0, 0.0, 0, problem.error()
    steps = METHODS[method].steps(problem, setting)
    while spent < seconds:
        begun = time.process_time()
        more = next(steps, steps) is None
        if spent - drawn >= REDRAWN:
            problem.redraw()
            drawn = spent
        spent += (time.process_time() - begun) / torch.get_num_threads()
        while len(errors) < len(marks) and spent > marks[len(errors)]:
            errors.append(last)  # of the last step that ended before
        if not more:
            break
        taken += 1
        last = problem.error()
    errors += [last] * (len(marks) - len(errors))
    loss = float(problem.loss().detach())
    return {"errors": errors, "loss": loss, "steps": taken, "spent": spent}


def chosen(equation: str, method: str, seconds: float, out: Path) -> Any:
    """The setting of the least loss on a seed of its own."""
    settings = METHODS[method].settings
    if len(settings) == 1:
        return settings[0]
    found = []
    for setting in settings:
        cells = finished(out)
        name = f"{equation}, {method}, {setting}, tuning, {seconds / 4:g} s"
        if name not in cells:
            cells[name] = curve(equation, method, setting, TUNING_SEED, seconds / 4)
            keep(cells, out)
        loss = cells[name]["loss"]
        found.append((loss if loss == loss else float("inf"), str(setting), setting))
    return min(found)[2]


def key(equation: str, method: str, seed: int, seconds: float) -> str:
    """The name of a cell in the file."""
    return f"{equation}, {method}, seed {seed}, {seconds:g} s"


def table(cells: dict[str, Any], equation: str, seeds: list[int], seconds: float) -> None:
    """Mean and spread over the seeds, of each method."""
    shown = (5, 8)
    heads = "".join(f" after {SHARES[place] * seconds:.2g} s |" for place in shown)
    print(f"\n{equation}\n\n| method | setting | outer steps |{heads}")
    print("|---|---|---|" + "---|" * len(shown))
    for method in METHODS:
        found = [cells.get(key(equation, method, seed, seconds)) for seed in seeds]
        done = [cell for cell in found if cell]
        if done:
            numbers = [[cell["errors"][place] for cell in done] for place in shown]
            columns = "".join(f" {fmean(each):.1e} ± {pstdev(each):.1e} |" for each in numbers)
            steps = fmean(cell["steps"] for cell in done)
            setting = done[0]["setting"]
            print(f"| {method} (n = {len(done)}) | {setting or '–'} | {steps:.0f} |{columns}")


def curves(cells: dict[str, Any], equation: str, seeds: list[int], seconds: float) -> None:
    """The geometric mean over the seeds at every mark, which docs/figures_equations.py draws."""
    heads = "".join(f" {share * seconds:.3g} s |" for share in SHARES)
    print(f"\n| method |{heads}\n|---|" + "---|" * len(SHARES))
    for method in METHODS:
        found = [cells.get(key(equation, method, seed, seconds)) for seed in seeds]
        errors = [cell["errors"] for cell in found if cell]
        if errors:
            means = [geometric_mean(each) for each in zip(*errors, strict=True)]
            print(f"| {method} |" + "".join(f" {mean:.1e} |" for mean in means))


def main() -> None:
    """Measure what is not in the file yet, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--equation", choices=list(EQUATIONS), default="Poisson, 2-D")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("runs/equations.json"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.set_default_dtype(torch.float64)
    for method in asked.methods:
        if importlib.util.find_spec(METHODS[method].module) is None:
            print(f"{method} is left out: {METHODS[method].module} is not installed.")
            continue
        curve(asked.equation, method, METHODS[method].settings[0], TUNING_SEED, 0.01)
        setting = chosen(asked.equation, method, asked.seconds, asked.out)
        for seed in asked.seeds:
            cells = finished(asked.out)
            name = key(asked.equation, method, seed, asked.seconds)
            if name not in cells:
                cell = curve(asked.equation, method, setting, seed, asked.seconds)
                cells[name] = {"setting": str(setting or ""), **cell}
                keep(cells, asked.out)
                print(name, f"{cell['errors'][-1]:.2e}", f"{cell['steps']} steps", flush=True)
    for show in (table, curves):
        show(finished(asked.out), asked.equation, asked.seeds, asked.seconds)


if __name__ == "__main__":
    main()
