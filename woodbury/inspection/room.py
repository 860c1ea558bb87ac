"""How many rows an inspection has room for."""

from __future__ import annotations

from woodbury.errors import WoodburyError
from woodbury.memory.budget import bytes_in_words, row_bytes
from woodbury.model.objective import Objective

MATRICES = 3
"""Of rows that are held at once: Gauss–Newton, observed labels, and those of one setting."""
VECTORS = 80
"""Over all weights beside them: of Lanczos, random ones, steps, scores and masks."""
FEWEST = 8
"""Rows of a curvature that is worth looking at."""


def rows_that_fit(objective: Objective, count: int) -> int:
    """How many rows of each kind fit what the gradient rows of a run may take.

    Args:
        objective: The network.
        count: As many as are wanted.

    Returns:
        At most `count`.

    Raises:
        WoodburyError: If there is not even room for a few.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 2)
        >>> rows_that_fit(Objective.from_model(model, [(torch.zeros(4, 3), None)]), 400)
        400
    """
    row = objective.weights.element_size() * objective.space.d
    room = row_bytes() // row - VECTORS
    if room < MATRICES * FEWEST:
        least = 2 * row * (VECTORS + MATRICES * FEWEST)
        raise WoodburyError(
            f"Inspecting {objective.space.d:,} weights takes at least {bytes_in_words(least)}: "
            "give more memory, or fewer parameters with include=…."
        )
    return min(count, room // MATRICES)
