"""Damped least squares through the rows' Gram matrix, which is sketched and never summed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from woodbury.limits import Limits
from woodbury.linalg.cholesky import damped_cholesky
from woodbury.linalg.gram import gram_of
from woodbury.linalg.iterative_solvers import conjugate_gradients
from woodbury.linalg.metric import Metric
from woodbury.linalg.row_products import column_squares, combine, times

COLUMNS_PER_ROW = 8
"""Columns of a sketch for each row; twice as many save two iterations of ten."""

TOLERANCE = 1e-4
"""Relative residual of a solution: the network is far less linear than that."""

MAX_STEPS = 100
"""Iterations at most."""

EVEN_SHARE = 0.1
"""Share of the columns that are drawn evenly, so that none counts without bound."""


def is_sketched(rows: Tensor) -> bool:
    """Whether a sketch of the Gram matrix saves work, and the rows are no more exact than it.

    Args:
        rows: G (m, d).

    Returns:
        True for float32 rows of more than twice the columns that a sketch has.

    Example:
        >>> is_sketched(torch.zeros(3, 100)), is_sketched(torch.zeros(3, 100).double())
        (True, False)
    """
    m, d = rows.shape
    return rows.dtype == torch.float32 and d > 2 * COLUMNS_PER_ROW * m


def solve_dual(
    rows: Tensor,
    damping: float,
    c: Tensor,
    metric: Metric = Metric(()),  # noqa: B008 - it is immutable
    tolerance: float = TOLERANCE,
) -> Tensor:
    """(G M⁻¹ Gᵀ/m + λI)⁻¹ c by preconditioned conjugate gradients on the rows  (eq. 68).

    The preconditioner is the inverse of a sketch of the matrix. An iteration reads the rows twice.

    Args:
        rows: G (m, d).
        damping: λ > 0.
        c: (m,).
        metric: M; the identity by default.
        tolerance: The relative residual at which to end.

    Returns:
        (m,) float64.

    Example:
        >>> rows = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
        >>> solve_dual(rows, 1.0, torch.tensor([2.5, 2.5]))
        tensor([1.0000, 1.0000], dtype=torch.float64)
    """
    m = len(rows)
    factor = damped_cholesky(_sketched_gram(rows, metric) / m, damping)

    def multiply(v: Tensor) -> Tensor:
        column = v[:, 0]
        spanned = metric.solved(combine(rows, column.to(rows.dtype)))
        return (times(rows, spanned) / m + damping * column)[:, None]

    def precondition(residual: Tensor) -> Tensor:
        return torch.cholesky_solve(residual, factor)

    b = c.double()[:, None]
    return conjugate_gradients(multiply, b, MAX_STEPS, tolerance, precondition).x[:, 0]


def _sketched_gram(rows: Tensor, metric: Metric) -> Tensor:
    """TTᵀ (m, m) of a sketch T, some of whose columns are in memory at a time."""
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    waiting: list[Tensor] = []
    columns = 0
    for part in _sketch(rows, metric):
        waiting.append(part)
        columns += part.shape[1]
        if columns >= Limits.current().row_columns:
            gram += gram_of(torch.cat(waiting, 1), rows.dtype)
            waiting, columns = [], 0
    if waiting:
        gram += gram_of(torch.cat(waiting, 1), rows.dtype)
    return gram


def _sketch(rows: Tensor, metric: Metric) -> Iterator[Tensor]:
    """Columns T with E[TTᵀ] = G M⁻¹ Gᵀ: random sums of those of each block, some of the rest."""
    m, d = rows.shape
    wanted = COLUMNS_PER_ROW * m
    generator = torch.Generator().manual_seed(0)
    rest = torch.ones(d, dtype=torch.bool, device=rows.device)
    for where, factor in metric.factors:
        rest[where] = False
        size = where.stop - where.start
        count = min(size, max(1, round(wanted * size / d)))
        if count == size:
            combinations = torch.eye(size, dtype=rows.dtype, device=rows.device)
        else:
            signs = torch.randint(2, (size, count), generator=generator).mul(2).sub(1)
            combinations = signs.to(rows) / count**0.5
        whitened = torch.linalg.solve_triangular(factor.mT, combinations, upper=True)
        yield rows[:, where] @ whitened
    left = rest.nonzero()[:, 0]
    if len(left):
        share = max(1, round(wanted * len(left) / d))
        yield _drawn_columns(rows if len(left) == d else rows[:, left], share, generator)


def _drawn_columns(rows: Tensor, wanted: int, generator: torch.Generator) -> Tensor:
    """About so many columns T of the rows with E[TTᵀ] = GGᵀ.

    Column j is drawn with the probability pⱼ = min(1, s gⱼ²/Σ g²) and divided by √pⱼ. The draws are
    systematic: one random number, then even steps through the sum of the pⱼ.
    """
    squares = column_squares(rows).double()
    total = float(squares.sum())
    if total == 0 or wanted >= rows.shape[1]:
        return rows
    share = (1 - EVEN_SHARE) * squares / total + EVEN_SHARE / len(squares)
    chances = (wanted * share).clamp(max=1)
    offset = torch.rand((), generator=generator, dtype=torch.float64).to(chances.device)
    steps = (chances.cumsum(0) + offset).floor()
    columns = steps.diff(prepend=steps.new_zeros(1)).nonzero()[:, 0]
    return rows[:, columns] * chances[columns].rsqrt().to(rows.dtype)
