"""What O(m) numbers tell about the error of a window's solution, and about its slope."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from woodbury.linalg.row_products import COLUMNS_PER_CONVERSION, COLUMNS_PER_PRODUCT

FLOAT32_ROUNDOFF = 2.0**-24
"""Relative error of one float32 operation."""


SIMD_LANES = 8
"""Partial sums of a float32 dot product: the lanes of a 256-bit register."""


class Estimates(NamedTuple):
    """What O(m) numbers tell about a solution F⁻¹g = m·Gᵀa, a the small solution.

    Attributes:
        cancellation: By how much the terms aᵢgᵢ exceed their sum Gᵀa, √(Σ‖aᵢgᵢ‖²)/‖Gᵀa‖; 1 for
            orthogonal rows. The rounding of the combination is multiplied by it.
        gram_error: The relative error of F⁻¹g that a float32 Gram matrix causes.
        slope: gᵀF⁻¹g, how steeply the loss falls along the step  (eq. 41).
    """

    cancellation: float
    gram_error: float
    slope: float


def estimated(
    gram: Tensor, shift: float, c: Tensor, column: Tensor, places: slice | Tensor, error: float
) -> Estimates:
    """Errors and slope of m·Gᵀa for a = M⁻¹c, M = gram + shift·I.

    Args:
        gram: (m, m) float64, G Gᵀ.
        shift: m·λ.
        c: (m,) float64, g = Gᵀc.
        column: (m,) float64, a.
        places: The rows pushed last.
        error: The `product_error`.

    Returns:
        The estimates.

    Example:
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> estimated(one[None], 1.0, one, one / 2, slice(0, 1), error=0.0).slope
        0.5
    """
    m = len(c)
    lengths = gram.diagonal()  # ‖gᵢ‖²
    square = column.square()
    terms = lengths @ square  # Σ‖aᵢgᵢ‖²
    # ‖Gᵀa‖² = aᵀ gram a = aᵀ(c − m·λ·a).
    summed = c @ column - shift * square.sum()
    # One over the share of a new row that is independent of the others: a single new row r has
    # a_r = [M⁻¹]_rr, one over its Schur complement. With much damping that says less than 1.
    dependence = (lengths[places] * column[places]).amax().clamp(min=1)
    slope = m * (c[places] @ (gram[places] @ column))
    # All numbers in one transfer, as they may lie on a GPU.
    terms, summed, dependence, slope = torch.stack([terms, summed, dependence, slope]).tolist()
    cancellation = 0.0
    if terms > 0:  # rounding may leave nothing of the sum: then the cancellation is 1e15
        cancellation = (terms / max(summed, 1e-30 * terms)) ** 0.5
    # An error E of the Gram matrix changes a by M⁻¹Ea. 1. The entries of Ea are independent
    # sums of roundings, about error·‖g_r‖·√terms. 2. ‖GᵀM⁻¹e_r‖ is at most
    # √[M⁻¹]_rr. 3. The product of both, over ‖Gᵀa‖, is error·cancellation·√dependence,
    # and m such rows have independent errors.
    gram_error = error * cancellation * (m * dependence) ** 0.5
    return Estimates(cancellation, gram_error, slope)


def product_error(rows: Tensor) -> float:
    """The relative error of one entry of the Gram matrix whose products are float32's.

    1. A chunk of c columns is summed in float32 in k SIMD lanes. Each of the c additions rounds
       a partial sum of a k-th of the chunk: a random walk of √c/k roundoffs, relative to it.
    2. The chunks are summed in float64. The errors of d/c chunks are independent, so that their
       sum has √(c/d) of that: c/(k √d) roundoffs.
    3. It is at least one roundoff, that of a product.

    Measured for d from 1e3 to 1e6: a third to a half of this if all terms have one sign (a
    walk along growing sums has 1/3 of the last step's size), less if they have not.

    Args:
        rows: (m, d), of which the shape and the dtype are looked at.
    """
    d = max(rows.shape[1], 1)
    float32 = rows.dtype == torch.float32
    chunk = min(d, COLUMNS_PER_PRODUCT if float32 else COLUMNS_PER_CONVERSION)
    return FLOAT32_ROUNDOFF * max(1.0, chunk / SIMD_LANES / d**0.5)
