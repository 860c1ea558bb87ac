"""Optimizers that solve a least-squares problem step by step, for `equations.py`.

A method is (problem, setting) -> an iterator that takes one or a few steps each time; it yields as
long as it can go on. Those of other packages import them when they are asked for.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from residual_problems import Problem
from torch import Tensor, nn

import woodbury

Steps = Iterator[None]


@dataclass(frozen=True)
class Method:
    """A way to solve it.

    Attributes:
        steps: (problem, setting) -> the iterator.
        settings: What it is tuned over; one where nothing is.
        module: The package that it needs beside woodbury and torch.
    """

    steps: Callable[[Problem, Any], Steps]
    settings: tuple[Any, ...] = (None,)
    module: str = "torch"


def least_squares(problem: Problem, _: None) -> Steps:
    """Ours; it ends where no step decreases the loss."""
    points: dict[str, Any] = problem.points
    if problem.equation.candidates is not None:
        points = {name: lambda _, name=name: problem.points[name] for name in points}
    fit = woodbury.LeastSquares(problem.model, problem.equation.residuals, points)
    while fit.step().decreased:
        yield


def lbfgs(problem: Problem, _: None) -> Steps:
    """torch's L-BFGS, twenty iterations at a time; new points begin a new history."""
    while True:
        optimizer = torch.optim.LBFGS(
            problem.model.parameters(),
            history_size=100,
            line_search_fn="strong_wolfe",
            tolerance_grad=0,
            tolerance_change=0,
        )
        points = problem.points["interior"]
        for _ in _with_closure(problem, optimizer, 1):
            yield
            if problem.points["interior"] is not points:
                break


def adam(problem: Problem, lr: float) -> Steps:
    """Adam on all points."""
    return _with_closure(problem, torch.optim.Adam(problem.model.parameters(), lr), 20)


def adamw(problem: Problem, lr: float) -> Steps:
    """AdamW on all points, with torch's weight decay of .01."""
    return _with_closure(problem, torch.optim.AdamW(problem.model.parameters(), lr), 20)


def soap(problem: Problem, lr: float) -> Steps:
    """SOAP of pytorch_optimizer, vectors preconditioned too, without weight decay."""
    from pytorch_optimizer import SOAP

    optimizer = SOAP(problem.model.parameters(), lr, weight_decay=0.0, precondition_1d=True)
    return _with_closure(problem, optimizer, 20)


def shampoo(problem: Problem, lr: float) -> Steps:
    """ScalableShampoo of pytorch_optimizer, grafted to AdaGrad, its roots taken every ten steps.

    Its plain Shampoo was worse on seed 100 of the heat equation.
    """
    from pytorch_optimizer import ScalableShampoo

    optimizer = ScalableShampoo(
        problem.model.parameters(),
        lr,
        start_preconditioning_step=5,
        preconditioning_compute_steps=10,
        graft_type=2,
    )
    return _with_closure(problem, optimizer, 20)


def _with_closure(problem: Problem, optimizer: Any, at_once: int) -> Steps:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problem.loss()
        loss.backward()
        return loss

    while True:
        for _ in range(at_once):
            optimizer.step(closure)
        yield


@dataclass(frozen=True)
class _PresentPoints:
    """One batch for K-FAC: the points of now, with targets that its squared error does not use."""

    problem: Problem

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batch."""
        inputs = torch.cat(list(self.problem.points.values()))
        yield inputs, torch.zeros(len(inputs), 1)


def kfac(problem: Problem, setting: tuple[float, float]) -> Steps:
    """SGD with momentum .9 behind K-FAC of the network's own output, estimated every 50 steps."""
    lr, damping = setting
    optimizer = torch.optim.SGD(problem.model.parameters(), lr, momentum=0.9)
    samples = sum(len(points) for points in problem.points.values())
    woodbury.Preconditioner(
        optimizer,
        problem.model,
        woodbury.kfac(samples, damping=damping),
        _PresentPoints(problem),
        every=50,
        likelihood=woodbury.squared_error,
    )
    while True:
        for _ in range(20):
            optimizer.zero_grad()
            problem.loss().backward()
            optimizer.step()
        yield


def dense_gauss_newton(problem: Problem, least: float) -> Steps:
    """ENGD (Müller & Zeinhofer 2023): the dense pseudo-inverse, and a search over 2⁰ … 2⁻³⁰.

    `least` is the share of the largest singular value below which the others count as zero.
    """
    names = dict(problem.model.named_parameters())
    sizes = [parameter.numel() for parameter in names.values()]

    def unflatten(vector: Tensor) -> dict[str, Tensor]:
        parts = vector.split(sizes)
        return {n: part.view_as(names[n]) for n, part in zip(names, parts, strict=True)}

    def residuals(vector: Tensor) -> Tensor:
        with torch.no_grad():
            return problem.residuals(unflatten(vector))

    weights = torch.cat([parameter.detach().flatten() for parameter in names.values()])
    while True:
        values = residuals(weights)
        rows = problem.rows(unflatten(weights))
        found = torch.linalg.lstsq(rows, values[:, None], rcond=least, driver="gelsd")
        step = found.solution[:, 0]
        tried = [(float(residuals(weights - step / 2**k).norm()), k) for k in range(31)]
        norm, k = min((each for each in tried if math.isfinite(each[0])), default=(math.inf, 0))
        if not norm < float(values.norm()):
            return
        weights = weights - step / 2**k
        with torch.no_grad():
            for name, part in unflatten(weights).items():
                names[name].copy_(part)
        yield


class _Residuals(nn.Module):
    """A model whose outputs are the residuals, which torch-levenberg-marquardt fits to zeros."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.network = problem.model
        self._residuals = problem.equation.residuals

    def forward(self, points: Tensor) -> Tensor:
        """(n, k + groups), a point and its scale in each group -> (n, 1)."""
        groups = len(self._residuals)

        def u(x: Tensor) -> Tensor:
            return self.network(x[None])[0, 0]

        def at(row: Tensor) -> Tensor:
            x, scales = row[:-groups], row[-groups:]
            each = [residual(u, x) for residual in self._residuals.values()]
            return (torch.stack(each) * scales).sum()[None]

        return torch.vmap(at)(points)


def _with_scales(points: dict[str, Tensor]) -> Tensor:
    """All points (n, k + groups), each with its scale in every group."""
    rows = []
    for place, each in enumerate(points.values()):
        scales = torch.zeros(len(each), len(points))
        scales[:, place] = len(each) ** -0.5
        rows.append(torch.cat([each, scales], 1))
    inputs = torch.cat(rows)
    inputs[:, -len(rows) :] *= len(inputs) ** 0.5  # the package divides by their number
    return inputs


def torch_levenberg_marquardt(problem: Problem, damping: float) -> Steps:
    """LevenbergMarquardtModule of torch-levenberg-marquardt, its damping free to go to 1e-20."""
    from torch_levenberg_marquardt.damping import StandardDampingStrategy
    from torch_levenberg_marquardt.training import LevenbergMarquardtModule

    strategy = StandardDampingStrategy(starting_value=damping, min_value=1e-20)
    module = LevenbergMarquardtModule(_Residuals(problem), damping_strategy=strategy)
    for _ in itertools.count():
        inputs = _with_scales(problem.points)
        targets = torch.zeros(len(inputs), 1)
        _, _, stop, _ = module.training_step(inputs, targets)
        if stop:
            return
        yield


LEARNING_RATES = 0.03, 0.01, 0.003, 0.001

METHODS: dict[str, Method] = {
    "woodbury.least_squares": Method(least_squares),
    "dense Gauss–Newton (ENGD)": Method(dense_gauss_newton, (1e-15, 1e-10, 1e-6, 1e-3)),
    "torch-levenberg-marquardt": Method(
        torch_levenberg_marquardt, (1e-1, 1e-3, 1e-5), "torch_levenberg_marquardt"
    ),
    "torch L-BFGS": Method(lbfgs),
    "SOAP": Method(soap, LEARNING_RATES, "pytorch_optimizer"),
    "Shampoo": Method(shampoo, (0.1, 0.03, 0.01, 0.003), "pytorch_optimizer"),
    "K-FAC before SGD": Method(kfac, ((1e-1, 1e-1), (1e-2, 1e-1), (1e-2, 1e-2), (1e-3, 1e-2))),
    "Adam": Method(adam, LEARNING_RATES),
    "AdamW": Method(adamw, LEARNING_RATES),
}
