"""Properties that every implementation must have, as checks of anything of the right form.

Each takes an implementation, ours or another's, and raises AssertionError where it is wrong.
`tests/peers` runs known mistakes of this field through them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product

import torch
from torch import Tensor, nn
from torch.testing import assert_close

import woodbury
from support import dense
from support.random import normal
from woodbury.model.batches import Batch
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace

DAMPING = 0.03

MatrixOf = Callable[[Tensor, float], Tensor]
"""(rows (m, d), damping) -> F (d, d)."""

SolveBy = Callable[[Tensor, float, Tensor], Tensor]
"""(rows (m, d), damping, v (d,)) -> F⁻¹ v."""

WindowOf = Callable[[Iterable[Tensor], int, float], Tensor]
"""(gradients as they come, capacity, damping) -> F (d, d) of the last ones."""

RowOf = Callable[[Objective, int], Tensor]
"""(objective, b) -> the row (d,) of its first b samples."""

Estimate = Callable[[Objective, int], Tensor]
"""(objective, count) -> F (d, d) from so many samples."""

Score = Callable[[Tensor, Tensor], Tensor]
"""(F (d, d), w (d,)) -> the least increase of the loss when each weight is removed, (d,)."""

Move = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(F (d, d), w (d,), keep (d,)) -> the weights after the removal, (d,)."""


def is_the_mean_over_all_rows(matrix_of: MatrixOf) -> None:
    """F = damping·I + (1/m) Σ g gᵀ, for one row, few and many, and rows of unequal size."""
    for m, d in ((1, 4), (3, 6), (300, 5)):
        rows = normal(m, d) * torch.linspace(1, 3, m, dtype=torch.float64)[:, None]
        assert_close(matrix_of(rows, DAMPING), dense.low_rank(rows, DAMPING))


def solves_with_its_matrix(solve: SolveBy) -> None:
    """F⁻¹v by a dense solve, with fewer rows than weights and with more; v in no span of rows."""
    for m, d in ((1, 4), (3, 8), (12, 5)):
        rows, v = normal(m, d), normal(d, seed=1)
        truth = torch.linalg.solve(dense.low_rank(rows, DAMPING), v)
        assert_close(solve(rows, DAMPING, v), truth)


def window_is_scaled_by_the_rows_seen(window_of: WindowOf) -> None:
    """F of the last rows, while the window fills and after it."""
    for count in (1, 2, 4, 7):
        rows = normal(count, 5)
        assert_close(window_of(rows, 4, DAMPING), dense.low_rank(rows[-4:], DAMPING))


def batch_rows_keep_the_fisher(row_of: RowOf) -> None:
    """Over all labels, the second moment of the row of two samples is the true Fisher.

    That is the mean of (diag p − p pᵀ) ⊗ x xᵀ for a linear classifier, by its definition.
    """
    torch.manual_seed(2)
    model, x = nn.Linear(2, 3, bias=False).double(), normal(2, 2, seed=5)
    p = model(x).softmax(1).detach()
    parts = [torch.kron(q.diag() - q.outer(q), z.outer(z)) for q, z in zip(p, x, strict=True)]
    moment = torch.zeros(6, 6, dtype=torch.float64)
    for first, second in product(range(3), range(3)):
        labels = torch.tensor([first, second])
        row = row_of(Objective.from_model(model, [(x, labels)]), 2)
        moment += p[0, first] * p[1, second] * row.outer(row)
    assert_close(moment, torch.stack(parts).mean(0))


def is_the_fisher_of_one_sample(estimate: Estimate) -> None:
    """The gradient of a matrix by one sample is δ aᵀ, so that two factors are exact for it."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False).double()
    inputs, target = normal(1, 4), torch.tensor([1])
    error = model(inputs).softmax(1).detach()[0] - torch.eye(3, dtype=torch.float64)[1]
    gradient = error.outer(inputs[0]).flatten()
    truth = gradient.outer(gradient) + DAMPING * torch.eye(12, dtype=torch.float64)
    assert_close(estimate(Objective.from_model(model, [(inputs, target)]), 1), truth)


def does_not_depend_on_the_batches(estimate: Estimate) -> None:
    """The same samples give the same estimate, in one batch or in several of unequal sizes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    inputs, target = normal(11, 3), torch.arange(11) % 2
    together = [(inputs, target)]
    apart = list(zip(inputs.split([2, 5, 4]), target.split([2, 5, 4]), strict=True))
    assert_close(estimate(_matrices(model, apart), 11), estimate(_matrices(model, together), 11))


def _matrices(model: nn.Module, batches: list[Batch]) -> Objective:
    return Objective.from_model(model, batches, space=ParameterSpace.from_model(model, "*.weight"))


def is_the_least_increase(score: Score) -> None:
    """½ δᵀFδ at its minimum with δ_q = −w_q, by the Lagrangian's linear system."""
    d = 5
    matrix, weights = dense.low_rank(normal(9, d), DAMPING), normal(d, seed=1)
    truth = torch.empty(d, dtype=torch.float64)
    for q in range(d):
        system = torch.zeros(d + 1, d + 1, dtype=torch.float64)
        system[:d, :d] = matrix
        system[d, q] = system[q, d] = 1
        right = torch.zeros(d + 1, dtype=torch.float64)
        right[d] = -weights[q]
        step = torch.linalg.solve(system, right)[:d]
        truth[q] = 0.5 * step @ matrix @ step
    assert_close(score(matrix, weights), truth)


def is_the_constrained_minimum(move: Move) -> None:
    """Removed weights are exactly zero, and no other place of the kept ones has a lower loss."""
    d = 6
    matrix, weights = dense.low_rank(normal(4, d), DAMPING), normal(d, seed=1)
    keep = torch.tensor([True, False, True, True, False, False])
    moved = move(matrix, weights, keep)
    assert bool((moved[~keep] == 0).all()), "a removed weight is not zero"
    slope = (matrix @ (moved - weights))[keep]
    assert_close(slope, torch.zeros_like(slope))


def keeps_n_of_every_m(prune: Callable[[nn.Module, list[Batch]], object]) -> None:
    """1:4 keeps one weight of four neighbours along the inputs: the largest, by magnitude."""
    torch.manual_seed(0)
    model = nn.Linear(8, 4, bias=False)
    runs = model.weight.detach().view(-1, 4).clone()
    prune(model, [(torch.randn(8, 8), torch.arange(8) % 4)])
    kept = model.weight.detach().view(-1, 4)
    assert_close(kept, torch.where(runs.abs() == runs.abs().amax(1, keepdim=True), runs, 0))


def sparsity_is_the_removed_share(prune: Callable[[nn.Module, float], object]) -> None:
    """A sparsity of .8 removes four of five weights, the smallest."""
    torch.manual_seed(0)
    model = nn.Linear(5, 4, bias=False)
    weights = model.weight.detach().clone()
    prune(model, 0.8)
    threshold = weights.abs().flatten().sort().values[16]
    assert_close(model.weight.detach(), torch.where(weights.abs() >= threshold, weights, 0))


def identity(d: int) -> Tensor:
    """The columns that write an operator out."""
    return torch.eye(d, dtype=torch.float64)


def written_out(fisher: woodbury.fisher.Fisher) -> Tensor:
    """An operator as its matrix."""
    return fisher @ identity(fisher.d)
