"""What of ours has each of the `properties`, in the form that its check takes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

import woodbury
from support.properties import DAMPING, identity, written_out
from woodbury.estimation.engines import looped
from woodbury.estimation.gradients import gradient_rows
from woodbury.estimation.labels import observed
from woodbury.fisher import BlockDiagonal, Dense, LowRank, Window, dense_blocks
from woodbury.model.batches import Batch
from woodbury.model.objective import Objective
from woodbury.pruning.quadratic import Quadratic


def low_rank(rows: Tensor, damping: float) -> Tensor:
    return written_out(LowRank(rows, damping))


def spectral(rows: Tensor, damping: float) -> Tensor:
    return written_out(LowRank(rows, damping).spectral())


def in_one_block(rows: Tensor, damping: float) -> Tensor:
    return written_out(dense_blocks(rows, [rows.shape[1]], damping))


def full_window(rows: Tensor, damping: float) -> Tensor:
    return window(rows, len(rows), damping)


def window(gradients: Iterable[Tensor], capacity: int, damping: float) -> Tensor:
    gradients = list(gradients)
    filled = Window(capacity, len(gradients[0]), damping, dtype=torch.float64)
    for gradient in gradients:
        filled.push(gradient)
    return written_out(filled.fisher())


def solve(rows: Tensor, damping: float, v: Tensor) -> Tensor:
    return LowRank(rows, damping).solve(v)


def solve_as_one_of_two_blocks(rows: Tensor, damping: float, v: Tensor) -> Tensor:
    twice = BlockDiagonal((LowRank(rows, damping), LowRank(2 * rows, damping)))
    return twice.solve(torch.cat([v, v]))[: len(v)]


def solve_in_the_span(rows: Tensor, damping: float, v: Tensor) -> Tensor:
    """v is made a combination of the rows and of what is orthogonal to all of them."""
    c = torch.linalg.lstsq(rows.T, v, driver="gelsd").solution
    rest = v - rows.T @ c
    return LowRank(rows, damping).solve_range(c) + rest / damping


def batch_row(objective: Objective, b: int) -> Tensor:
    return gradient_rows(objective, 1, batch=b)[0]


def batch_row_by_a_loop(objective: Objective, b: int) -> Tensor:
    return gradient_rows(objective, 1, batch=b, engine=looped)[0]


def kfac(objective: Objective, count: int) -> Tensor:
    return written_out(woodbury.kfac(count, DAMPING, labels=observed)(objective))


def mfac(objective: Objective, count: int) -> Tensor:
    return written_out(woodbury.mfac(count, DAMPING)(objective))


def woodfisher(objective: Objective, count: int) -> Tensor:
    return written_out(woodbury.woodfisher(count, 4, DAMPING)(objective))


def diagonal_fisher(objective: Objective, count: int) -> Tensor:
    return written_out(woodbury.diagonal_fisher(count, DAMPING)(objective))


def hessian_diagonal(objective: Objective, count: int) -> Tensor:
    return written_out(woodbury.hessian_diagonal(count, DAMPING)(objective))


def obs(matrix: Tensor, weights: Tensor) -> Tensor:
    return woodbury.saliencies.obs(Quadratic(weights, damped(matrix)))


def obs_of_units(matrix: Tensor, weights: Tensor) -> Tensor:
    groups = torch.arange(len(weights))[:, None]
    return woodbury.saliencies.obs(Quadratic(weights, damped(matrix)), groups)


def damped(matrix: Tensor) -> Dense:
    return Dense(matrix - DAMPING * identity(len(matrix)), DAMPING)


def joint(matrix: Tensor, weights: Tensor, keep: Tensor) -> Tensor:
    return weights + woodbury.updates.joint(Quadratic(weights, damped(matrix)), keep)


def optimum_of_a_restriction(matrix: Tensor, weights: Tensor, keep: Tensor) -> Tensor:
    moved = torch.zeros_like(weights)
    moved[keep] = Quadratic(weights, damped(matrix)).restrict(keep).weights
    return moved


def by_magnitude() -> woodbury.Pruner:
    return woodbury.Pruner(None, woodbury.saliencies.magnitude, woodbury.updates.zero)


def one_of_four(model: nn.Module, batches: list[Batch]) -> None:
    sparsity, pruner = woodbury.n_of_m(1, 4, by_magnitude())
    woodbury.prune(model, batches, sparsity, pruner=pruner)


def smallest(model: nn.Module, sparsity: float) -> None:
    batches = [(torch.randn(4, 5), torch.arange(4) % 4)]
    woodbury.prune(model, batches, sparsity, pruner=by_magnitude())
