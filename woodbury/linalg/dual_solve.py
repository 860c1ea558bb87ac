"""Damped least squares through the rows' Gram matrix, which is sketched and never summed."""

from __future__ import annotations

import torch
from torch import Tensor

from woodbury.linalg.cholesky import damped_cholesky
from woodbury.linalg.gram import gram_of
from woodbury.linalg.iterative_solvers import conjugate_gradients
from woodbury.linalg.row_products import combine, times

COLUMNS_PER_ROW = 8
"""Columns that a sketch draws, for each row; twice as many save one iteration of three."""

TOLERANCE = 1e-5
"""Relative residual of a solution: float32 rows say no more."""

MAX_STEPS = 100
"""Iterations at most."""


def is_sketched(rows: Tensor) -> bool:
    """Whether a sketch of the Gram matrix saves work, and the rows are no more exact than it.

    Args:
        rows: G (m, d).

    Returns:
        True for float32 rows of more than twice the columns that a sketch draws.

    Example:
        >>> is_sketched(torch.zeros(3, 100)), is_sketched(torch.zeros(3, 100).double())
        (True, False)
    """
    m, d = rows.shape
    return rows.dtype == torch.float32 and d > 2 * COLUMNS_PER_ROW * m


def solve_dual(rows: Tensor, damping: float, c: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """(GGᵀ/m + λI)⁻¹ c by preconditioned conjugate gradients on the rows  (eq. 68).

    The preconditioner is the Gram matrix of some columns, drawn in proportion to their squares. An
    iteration reads the rows twice.

    Args:
        rows: G (m, d).
        damping: λ > 0.
        c: (m,).
        tolerance: The relative residual at which to end.

    Returns:
        (m,) float64.

    Example:
        >>> rows = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
        >>> solve_dual(rows, 1.0, torch.tensor([2.5, 2.5]))
        tensor([1., 1.], dtype=torch.float64)
    """
    m = len(rows)
    factor = damped_cholesky(_sketched_gram(rows) / m, damping)

    def multiply(v: Tensor) -> Tensor:
        column = v[:, 0]
        product = times(rows, combine(rows, column.to(rows.dtype)))
        return (product / m + damping * column)[:, None]

    def precondition(residual: Tensor) -> Tensor:
        return torch.cholesky_solve(residual, factor)

    b = c.double()[:, None]
    return conjugate_gradients(multiply, b, MAX_STEPS, tolerance, precondition).x[:, 0]


def _sketched_gram(rows: Tensor) -> Tensor:
    """An estimate of GGᵀ without bias, from `COLUMNS_PER_ROW`·m of its columns.

    Column j is drawn with the probability pⱼ = min(1, s gⱼ²/Σ g²) and counts 1/pⱼ times. The draws
    are systematic: one random number, then even steps through the sum of the pⱼ.
    """
    squares = torch.linalg.vector_norm(rows, dim=0).double().square()
    wanted = COLUMNS_PER_ROW * len(rows)
    total = float(squares.sum())
    if total == 0 or wanted >= rows.shape[1]:
        return gram_of(rows, rows.dtype)
    # A tenth of the probability is spread evenly, so that no column counts without bound.
    share = 0.9 * squares / total + 0.1 / len(squares)
    chances = (wanted * share).clamp(max=1)
    generator = torch.Generator().manual_seed(0)
    offset = torch.rand((), generator=generator, dtype=torch.float64).to(chances.device)
    steps = (chances.cumsum(0) + offset).floor()
    columns = steps.diff(prepend=steps.new_zeros(1)).nonzero()[:, 0]
    drawn = rows[:, columns] * chances[columns].rsqrt().to(rows.dtype)
    return gram_of(drawn, rows.dtype)
