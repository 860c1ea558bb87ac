"""Parts of a data set that are held out or drawn at random."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset, Subset, random_split

from woodbury.errors import WoodburyError

HELD_OUT_FRACTION = 0.2
"""Of the data, where a part is held out."""


def hold_out(dataset: Dataset, fraction: float, seed: int) -> tuple[Subset, Subset]:
    """Split a data set at random.

    Args:
        dataset: What is split.
        fraction: Of its samples that are held out.
        seed: Of the split.

    Returns:
        The rest, and what is held out.

    Raises:
        WoodburyError: If one of them would be empty.
    """
    total = len(dataset)  # type: ignore[arg-type]
    held_out = round(fraction * total)
    if not 0 < held_out < total:
        raise WoodburyError(
            f"{total} sample(s) are too few to hold {fraction:.0%} out: give more data."
        )
    generator = torch.Generator().manual_seed(seed)
    rest, held = random_split(dataset, [total - held_out, held_out], generator)
    return rest, held


def draw(dataset: Dataset, count: int, seed: int) -> Subset:
    """`count` samples of a data set, or all if it has fewer, drawn by `seed`.

    Args:
        dataset: What is drawn from.
        count: How many.
        seed: Of the draw.

    Returns:
        The samples, in the order drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(dataset), generator=generator)  # type: ignore[arg-type]
    return Subset(dataset, order[:count].tolist())
