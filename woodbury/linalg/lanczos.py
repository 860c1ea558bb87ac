"""Lanczos: the ends of the spectrum of a symmetric matrix that is known by its products."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

REORTHOGONALIZATIONS = 2
"""Once leaves what rounding has left of the first time."""


class Ritz(NamedTuple):
    """Approximate eigenpairs of a symmetric matrix.

    Attributes:
        values: (k,) float64, the largest first.
        vectors: (d, k), orthonormal.
        residuals: (k,) float64, |A v − λ v|: each value is as near to an eigenvalue.
        least: The smallest value that was seen.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    least: float


def lanczos(product: Callable[[Tensor], Tensor], start: Tensor, steps: int, largest: int) -> Ritz:
    """The largest eigenvalues of a symmetric matrix, with full reorthogonalization  (eq. 79).

    Args:
        product: v (d,) -> A v (d,), one call for each step.
        start: (d,), not zero; mostly random.
        steps: At most, at least 1. They end sooner where the start spans an invariant space.
        largest: Eigenpairs that are asked for.

    Returns:
        At most so many, the largest first.

    Example:
        >>> matrix = torch.diag(torch.tensor([3.0, 1.0, -2.0]))
        >>> ritz = lanczos(lambda v: matrix @ v, torch.ones(3), steps=3, largest=2)
        >>> [round(value, 4) for value in ritz.values.tolist()], round(ritz.least, 4)
        ([3.0, 1.0], -2.0)

    Source:
        Golub & Van Loan, Matrix Computations, chapter 10.
    """
    steps = min(steps, len(start))
    basis = start.new_empty(steps, len(start))
    diagonal: list[float] = []
    couplings: list[float] = []
    v = start / start.norm()
    for step in range(steps):
        basis[step] = v
        w = product(v).to(start.dtype)
        diagonal.append(float(w.double() @ v.double()))
        known = basis[: step + 1]
        for _ in range(REORTHOGONALIZATIONS):
            w = w - known.mT @ (known @ w)
        couplings.append(float(w.norm()))
        scale = max(map(abs, [*diagonal, *couplings]))
        if couplings[-1] <= torch.finfo(start.dtype).eps * scale:
            break
        v = w / couplings[-1]
    return _ritz(basis, diagonal, couplings, largest)


def _ritz(basis: Tensor, diagonal: list[float], couplings: list[float], largest: int) -> Ritz:
    """The eigenpairs of the tridiagonal matrix, in the space of the basis (steps, d)."""
    size = len(diagonal)
    beside = torch.tensor(couplings[: size - 1], dtype=torch.float64)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    matrix += torch.diag(beside, 1) + torch.diag(beside, -1)
    values, vectors = torch.linalg.eigh(matrix)
    order = torch.arange(size - 1, max(size - 1 - largest, -1), -1)
    chosen = vectors[:, order]
    return Ritz(
        values=values[order],
        vectors=basis[:size].mT @ chosen.to(basis),
        residuals=couplings[-1] * chosen[-1].abs(),
        least=float(values[0]),
    )
