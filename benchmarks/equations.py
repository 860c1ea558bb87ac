"""How exact is the solution of an equation after so many seconds: python benchmarks/equations.py
[--seconds 30] [--threads 1] [--seeds 3 4 5] [--methods NAME ...]

−Δu = 2π² sin πx sin πy on the unit square, u = 0 on its edge, with the solution sin πx sin πy: 900
points inside, 120 on the edge, a perceptron 2–64–1 of tanh (257 weights), float64: experiment
exp09 of f-dangel/kfac-pinns-experiments (Dangel, Müller & Zeinhofer 2024), whose published numbers
are from a GPU. Seconds are the process's own CPU time by the number of threads, so that a loaded
machine counts as an idle one; measuring the error takes none of them.
Seeds 0 to 2 are those on which a detail of the method was chosen. No data is needed.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev

import torch
from measured import finished, keep
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

import woodbury

INSIDE, ON_EDGE, WIDTH = 900, 120, 64
GRID = 51
"""Points along each side of the square at which the error is measured."""

MARKS = 10.0, 30.0
"""Seconds at which the error is read."""

Residual = Callable[..., Tensor]


def interior(u: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Δu + 2π² sin πx sin πy."""
    second = [_second_derivative(u, x, along) for along in torch.eye(2, dtype=x.dtype)]
    return second[0] + second[1] + 2 * math.pi**2 * torch.sin(math.pi * x).prod()


def edge(u: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """u, which is 0 there."""
    return u(x)


def _second_derivative(u: Callable[[Tensor], Tensor], x: Tensor, along: Tensor) -> Tensor:
    def first(y: Tensor) -> Tensor:
        return jvp(u, (y,), (along,))[1]

    return jvp(first, (x,), (along,))[1]


EQUATIONS: dict[str, Residual] = {"interior": interior, "edge": edge}


@dataclass
class Problem:
    """The network and its points, drawn by a seed.

    Attributes:
        model: The network at its start.
        points: Of each equation.
    """

    model: nn.Module
    points: dict[str, Tensor]

    @classmethod
    def of(cls, seed: int) -> Problem:
        """The problem of a seed."""
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(2, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
        draw = torch.Generator().manual_seed(seed)
        inside = torch.rand(INSIDE, 2, generator=draw)
        along = torch.rand(ON_EDGE, generator=draw)
        side = torch.arange(ON_EDGE) % 4
        on_edge = torch.stack(
            [
                torch.where(side < 2, along, side - 2.0),
                torch.where(side < 2, side.to(along.dtype), along),
            ],
            1,
        )
        return cls(model, {"interior": inside, "edge": on_edge})

    def loss(self) -> Tensor:
        """What all methods minimise: half the mean squares."""
        weights: dict[str, Tensor] = dict(self.model.named_parameters())

        def squares(name: str) -> Tensor:
            def at(x: Tensor) -> Tensor:
                return EQUATIONS[name](
                    lambda y: functional_call(self.model, weights, (y[None],))[0, 0], x
                )

            return vmap(at)(self.points[name]).square().mean() / 2

        return squares("interior") + squares("edge")

    @torch.no_grad()
    def error(self) -> float:
        """The relative error of u in L², on a grid."""
        side = torch.linspace(0, 1, GRID)
        grid = torch.cartesian_prod(side, side)
        exact = torch.sin(math.pi * grid).prod(1)
        return float((self.model(grid)[:, 0] - exact).norm() / exact.norm())


def steps_of_least_squares(problem: Problem) -> Iterator[bool]:
    """Ours; it ends where no step decreases the loss."""
    fit = woodbury.LeastSquares(problem.model, EQUATIONS, problem.points)
    while fit.step().decreased:
        yield True


def steps_of_lbfgs(problem: Problem) -> Iterator[bool]:
    """torch's L-BFGS, twenty iterations at a time."""
    yield from _steps(
        problem,
        torch.optim.LBFGS(
            problem.model.parameters(),
            history_size=100,
            line_search_fn="strong_wolfe",
            tolerance_grad=0,
            tolerance_change=0,
        ),
        1,
    )


def steps_of_adam(problem: Problem) -> Iterator[bool]:
    """Adam on all points, twenty steps at a time."""
    yield from _steps(problem, torch.optim.Adam(problem.model.parameters(), 1e-3), 20)


def _steps(problem: Problem, optimizer: torch.optim.Optimizer, at_once: int) -> Iterator[bool]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problem.loss()
        loss.backward()
        return loss

    while True:
        for _ in range(at_once):
            optimizer.step(closure)  # pyright: ignore[reportCallIssue, reportArgumentType]
        yield True


METHODS: dict[str, Callable[[Problem], Iterator[bool]]] = {
    "woodbury.least_squares": steps_of_least_squares,
    "torch L-BFGS": steps_of_lbfgs,
    "Adam 1e-3": steps_of_adam,
}


def measure(method: str, seed: int, seconds: float) -> dict[str, float]:
    """The errors of a run at the marks within its seconds, and at its end."""
    problem = Problem.of(seed)
    marks = [mark for mark in MARKS if mark < seconds] + [seconds]
    errors: dict[str, float] = {}
    last = problem.error()
    spent = 0.0
    steps = METHODS[method](problem)
    while spent < seconds:
        begun = time.process_time()
        more = next(steps, False)
        spent += (time.process_time() - begun) / torch.get_num_threads()
        for mark in marks:
            if spent > mark:
                errors.setdefault(f"{mark:g}", last)  # of the last step that ended before
        if not more:
            break
        last = problem.error()
    return {f"{mark:g}": errors.get(f"{mark:g}", last) for mark in marks}


def table(cells: dict[str, dict[str, float]], seeds: list[int], seconds: float) -> None:
    """Mean and spread over the seeds, of each method and mark."""
    marks = [f"{mark:g}" for mark in (*(mark for mark in MARKS if mark < seconds), seconds)]
    print("| method |" + "".join(f" after {mark} s |" for mark in marks))
    print("|---|" + "---|" * len(marks))
    for method in METHODS:
        found = [cells.get(key(method, seed, seconds)) for seed in seeds]
        done = [cell for cell in found if cell]
        if done:
            numbers = [[cell[mark] for cell in done] for mark in marks]
            shown = "".join(f" {fmean(each):.1e} ± {pstdev(each):.1e} |" for each in numbers)
            print(f"| {method} (n = {len(done)}) |{shown}")


def key(method: str, seed: int, seconds: float) -> str:
    """The name of a cell in the file."""
    return f"{method}, seed {seed}, {seconds:g} s"


def main() -> None:
    """Measure what is not in the file yet, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("runs/equations.json"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.set_default_dtype(torch.float64)
    for seed in asked.seeds:
        for method in asked.methods:
            cells = finished(asked.out)
            name = key(method, seed, asked.seconds)
            if name not in cells:
                cells[name] = measure(method, seed, asked.seconds)
                keep(cells, asked.out)
                print(name, cells[name], flush=True)
    table(finished(asked.out), asked.seeds, asked.seconds)


if __name__ == "__main__":
    main()
