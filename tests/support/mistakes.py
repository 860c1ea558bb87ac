"""Mistakes that implementations of this field have made, a few lines each."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

import woodbury
from support.implementations import batch_row, by_magnitude, mfac, smallest
from support.properties import DAMPING, identity, written_out
from woodbury.estimation.kfac_factors import factors
from woodbury.estimation.labels import observed
from woodbury.fisher import Kronecker
from woodbury.model.batches import Batch
from woodbury.model.objective import Objective


def all_rows_but_the_last(rows: Tensor, damping: float) -> Tensor:
    """A recursion over rows whose loop ends one too early."""
    matrix = damping * identity(rows.shape[1])
    for i in range(len(rows) - 1):
        matrix += rows[i].outer(rows[i]) / len(rows)
    return matrix


def only_the_last_chunk(rows: Tensor, damping: float) -> Tensor:
    """The sum over chunks is assigned where it should be added to."""
    total = torch.zeros(rows.shape[1], rows.shape[1], dtype=rows.dtype)
    for chunk in rows.split(128):
        total = chunk.T @ chunk
    return total / len(rows) + damping * identity(rows.shape[1])


def square_of_the_mean(rows: Tensor, damping: float) -> Tensor:
    """The gradient of a whole batch is squared, not that of each sample."""
    mean = rows.mean(0)
    return mean.outer(mean) + damping * identity(len(mean))


def sum_in_place_of_the_mean(rows: Tensor, damping: float) -> Tensor:
    return rows.T @ rows + damping * identity(rows.shape[1])


def damping_as_its_reciprocal(rows: Tensor, damping: float) -> Tensor:
    """One project's damping is another's 1/λ."""
    return rows.T @ rows / len(rows) + identity(rows.shape[1]) / damping


def no_complement(rows: Tensor, damping: float, v: Tensor) -> Tensor:
    """v/λ is left out in the directions that no row has."""
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    values, vectors = values[-len(rows) :], vectors[:, -len(rows) :]
    return vectors @ (vectors.T @ v / (values + damping))


def damping_of_the_sum(rows: Tensor, damping: float, v: Tensor) -> Tensor:
    """λ where the Gram matrix, a sum over m rows, needs mλ."""
    gram = rows @ rows.T + damping * identity(len(rows))
    return (v - rows.T @ torch.linalg.solve(gram, rows @ v)) / damping


def plus_in_woodbury(rows: Tensor, damping: float, v: Tensor) -> Tensor:
    gram = rows @ rows.T + len(rows) * damping * identity(len(rows))
    return (v + rows.T @ torch.linalg.solve(gram, rows @ v)) / damping


def scaled_by_capacity(gradients: Iterable[Tensor], capacity: int, damping: float) -> Tensor:
    """Rows that have not come yet count as zeros."""
    rows = torch.stack(list(gradients))[-capacity:]
    return rows.T @ rows / capacity + damping * identity(rows.shape[1])


def newest_row_overwrites_the_first(
    gradients: Iterable[Tensor], capacity: int, damping: float
) -> Tensor:
    """The place in the ring is not counted on once it is full."""
    rows: list[Tensor] = []
    for gradient in gradients:
        if len(rows) < capacity:
            rows.append(gradient)
        else:
            rows[0] = gradient
    stacked = torch.stack(rows)
    return stacked.T @ stacked / len(rows) + damping * identity(stacked.shape[1])


def unscaled_batch_mean(objective: Objective, b: int) -> Tensor:
    """Without √b the Fisher shrinks b-fold."""
    return batch_row(objective, b) / b**0.5


def batch_sum(objective: Objective, b: int) -> Tensor:
    """With b in place of √b it grows b-fold."""
    return batch_row(objective, b) * b**0.5


def kronecker_reversed(objective: Objective, count: int) -> Tensor:
    """A ⊗ B is that of a weight stored by columns; torch's are stored by rows."""
    left, right = factors(objective, count, labels=observed)["weight"]
    return written_out(Kronecker(right, left, DAMPING))


def damping_of_each_factor(objective: Objective, count: int) -> Tensor:
    """(B + √λ I) ⊗ (A + √λ I) is another matrix than B ⊗ A + λI."""
    left, right = factors(objective, count, labels=observed)["weight"]
    root = DAMPING**0.5
    return torch.kron(left + root * identity(len(left)), right + root * identity(len(right)))


def only_the_last_batch(objective: Objective, count: int) -> Tensor:
    """Each batch's estimate replaces the one before."""
    estimate = torch.empty(0)
    for batch in objective.batches:
        one = Objective.from_model(objective.model, [batch], space=objective.space)
        estimate = mfac(one, len(batch[1]))
    return estimate


def mean_of_batch_estimates(objective: Objective, count: int) -> Tensor:
    """Batches of unequal size weigh alike."""
    estimates = [
        mfac(Objective.from_model(objective.model, [batch], space=objective.space), len(batch[1]))
        for batch in objective.batches
    ]
    return torch.stack(estimates).mean(0)


def curvature_in_place_of_the_inverse(matrix: Tensor, weights: Tensor) -> Tensor:
    """½ w² F_qq is Optimal Brain Damage; the others are not moved."""
    return 0.5 * weights.square() * matrix.diagonal()


def multiplied_by_the_inverse(matrix: Tensor, weights: Tensor) -> Tensor:
    return 0.5 * weights.square() * torch.linalg.inv(matrix).diagonal()


def without_the_half(matrix: Tensor, weights: Tensor) -> Tensor:
    return weights.square() / torch.linalg.inv(matrix).diagonal()


def single_updates_added(matrix: Tensor, weights: Tensor, keep: Tensor) -> Tensor:
    """Each removal is made up for as if it were the only one."""
    inverse = torch.linalg.inv(matrix)
    moved = weights.clone()
    for q in (~keep).nonzero()[:, 0]:
        moved -= weights[q] / inverse[q, q] * inverse[:, q]
    return moved * keep


def no_mask_after_the_update(matrix: Tensor, weights: Tensor, keep: Tensor) -> Tensor:
    """The same, and what the updates have left of the removed weights is kept."""
    inverse = torch.linalg.inv(matrix)
    moved = weights.clone()
    for q in (~keep).nonzero()[:, 0]:
        moved -= weights[q] / inverse[q, q] * inverse[:, q]
    return moved


def inverse_restricted(matrix: Tensor, weights: Tensor, keep: Tensor) -> Tensor:
    """[F⁻¹]_KK where [F_KK]⁻¹ is needed."""
    force = matrix[keep][:, ~keep] @ weights[~keep]
    moved = torch.zeros_like(weights)
    moved[keep] = weights[keep] + torch.linalg.inv(matrix)[keep][:, keep] @ force
    return moved


def one_of_four_removed(model: nn.Module, batches: list[Batch]) -> None:
    """1:4 read as one weight that is removed."""
    sparsity, pruner = woodbury.n_of_m(3, 4, by_magnitude())
    woodbury.prune(model, batches, sparsity, pruner=pruner)


def one_of_four_down_the_columns(model: nn.Module, batches: list[Batch]) -> None:
    """Runs along the outputs, which no sparse tensor core reads."""
    weight = model.get_parameter("weight")
    sizes = weight.detach().abs()
    weight.data = weight.detach() * (sizes == sizes.amax(0))


def density_for_sparsity(model: nn.Module, sparsity: float) -> None:
    smallest(model, round(1 - sparsity, 6))
