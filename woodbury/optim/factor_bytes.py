"""What a recipe's Fisher holds between the steps of an optimizer, where that is known before."""

from __future__ import annotations

import torch

from woodbury.errors import WoodburyError
from woodbury.estimation.recipes import Estimate, gauss_newton, kfac, mfac
from woodbury.limits import Limits
from woodbury.memory.budget import available_bytes, budget_bytes, bytes_in_words
from woodbury.model.space import ParameterSpace

BYTES_PER_ROW_NUMBER = 4
"""Of a gradient row."""


def check_room(
    estimate: Estimate, space: ParameterSpace, memory: int | str | None, device: torch.device
) -> None:
    """Raise unless a budget holds the Fisher of a recipe.

    Args:
        estimate: The recipe; of other ones than K-FAC and M-FAC without blocks nothing is known.
        space: The parameters.
        memory: The budget; None for 60 % of what is available.
        device: Where the parameters live.

    Raises:
        WoodburyError: If there is no room; the sentence says for how much there is.
    """
    budget = budget_bytes(memory, device)
    if memory is not None:
        budget = min(budget, available_bytes(device))
    needed = fisher_bytes(estimate, space)
    if needed <= budget:
        return
    raise WoodburyError(
        f"The Fisher of {space.d:,} weights takes {bytes_in_words(needed)} while it is estimated, "
        f"and may hold {bytes_in_words(budget)}: {_way_out(estimate, space, budget)}."
    )


def fisher_bytes(estimate: Estimate, space: ParameterSpace) -> int:
    """The bytes of a recipe's Fisher, at their highest, with the vectors of one step.

    Args:
        estimate: The recipe.
        space: The parameters.

    Returns:
        Bytes; those of the vectors alone for a recipe that is not known.
    """
    if isinstance(estimate, gauss_newton):
        return fisher_bytes(estimate.recipe, space)
    vectors = 24 * space.d  # the gradient, F⁻¹g and its products in float64
    if isinstance(estimate, mfac) and estimate.block is None:
        rows = BYTES_PER_ROW_NUMBER * estimate.count * space.d
        passing = 2 * min(rows, Limits.current().gradient_chunk)  # gradients as they are computed
        return rows + passing + 32 * estimate.count**2 + vectors
    if isinstance(estimate, kfac):
        return _kfac_bytes(space, estimate.skip_unknown) + vectors
    return vectors


def _kfac_bytes(space: ParameterSpace, skip_unknown: bool) -> int:
    """Both factors of each tensor, their sums and eigenvectors in float64, and the spectra."""
    squares = [
        rows**2 + columns**2
        for name, (rows, columns) in zip(
            space.shapes, map(_sides, space.shapes.values()), strict=True
        )
        if not skip_unknown or space.channels_of(name).is_matrix
    ]
    return 20 * sum(squares) + 24 * max(squares, default=0) + 8 * space.d


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    rows = shape[0]
    size = 1
    for side in shape[1:]:
        size *= side
    return rows, size


def _way_out(estimate: Estimate, space: ParameterSpace, budget: int) -> str:
    recipe = estimate.recipe if isinstance(estimate, gauss_newton) else estimate
    if isinstance(recipe, mfac):
        fits = (budget - 24 * space.d) // (3 * BYTES_PER_ROW_NUMBER * space.d)
        if fits > 0:
            return f"give mfac({fits}), or more memory"
    if isinstance(recipe, kfac):
        costs = {
            name: _kfac_bytes(ParameterSpace({name: shape}), False)
            for name, shape in space.shapes.items()
        }
        largest = max(costs, key=costs.__getitem__)
        return (
            f"leave out {largest!r} with exclude={largest!r}, as it takes most, or give more memory"
        )
    return "give a space of fewer parameters, or more memory"
