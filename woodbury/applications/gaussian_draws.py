"""gaussian_draws(): random vectors whose covariance is the inverse of a Fisher."""

from __future__ import annotations

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher
from woodbury.fisher.block_diagonal import BlockDiagonal
from woodbury.fisher.diagonal import Diagonal
from woodbury.fisher.lowrank import LowRank
from woodbury.linalg.cholesky import damped_cholesky

WRITTEN_OUT = 2048
"""Weights up to which the inverse of any other operator is written out."""


def gaussian_draws(fisher: Fisher, count: int, generator: torch.Generator) -> Tensor:
    """Draws from a normal distribution of mean 0 and covariance F⁻¹  (eq. 85).

    For rows a draw of covariance F, √λ ε + GᵀS ε', is solved for: nothing of size d × d is made.

    Args:
        fisher: `LowRank`, `Diagonal`, any operator of up to 2,048 weights, or a `BlockDiagonal` of
            these.
        count: How many.
        generator: Of the random numbers, on the device of the operator.

    Returns:
        (count, d).

    Raises:
        WoodburyError: If the operator is another of more weights.

    Example:
        >>> fisher = Diagonal(torch.zeros(2), damping=4.0)
        >>> draws = gaussian_draws(fisher, 1000, torch.Generator().manual_seed(0))
        >>> bool((draws.std(0) - 0.5).abs().max() < 0.05)
        True
    """
    if isinstance(fisher, BlockDiagonal):
        return torch.cat([gaussian_draws(part, count, generator) for part in fisher.parts], dim=1)

    def normal(rows: int) -> Tensor:
        shape = (rows, count)
        return torch.randn(shape, generator=generator, dtype=fisher.dtype, device=fisher.device)

    if isinstance(fisher, Diagonal):
        return (fisher.diagonal().rsqrt()[:, None] * normal(fisher.d)).mT
    if not isinstance(fisher, LowRank):
        return (_factor_of_the_inverse(fisher).to(fisher.dtype) @ normal(fisher.d)).mT
    # F⁻¹ Gᵀ S ε' in the range form: the coefficients of the rows are S ε'.
    spanned = fisher.solve_range(_row_scale(fisher)[:, None] * normal(fisher.m).double())
    return (spanned + fisher.solve(fisher.damping**0.5 * normal(fisher.d))).mT


def _row_scale(fisher: LowRank) -> Tensor:
    """(m,) float64: √(wᵢ/m)."""
    ones = torch.ones(fisher.m, dtype=torch.float64, device=fisher.device)
    return ((ones if fisher.weights is None else fisher.weights.double()) / fisher.m).sqrt()


def _factor_of_the_inverse(fisher: Fisher) -> Tensor:
    """(d, d) float64, lower triangular L with L Lᵀ = F⁻¹."""
    if fisher.d > WRITTEN_OUT:
        raise WoodburyError(
            f"A {type(fisher).__name__} of {fisher.d} weights is too large to draw from: give a "
            f"Fisher by mfac or diagonal_fisher, or blocks of at most {WRITTEN_OUT} weights."
        )
    eye = torch.eye(fisher.d, dtype=torch.float64, device=fisher.device)
    inverse = fisher.solve(eye.to(fisher.dtype)).double()
    return damped_cholesky((inverse + inverse.mT) / 2, 0.0)
