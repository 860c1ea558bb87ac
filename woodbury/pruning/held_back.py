"""Samples that are held back from a calibration set, to choose a damping on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from woodbury.errors import WoodburyError
from woodbury.estimation.gradients import sampled
from woodbury.model.batches import Batch
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective

SAMPLES_PER_BATCH = 16
"""Samples of one batch of the calibration set; whole batches are held back."""


class Split(NamedTuple):
    """A calibration set in two parts.

    Attributes:
        calibration: What curvature is estimated from.
        held_back: What it does not see, with labels: where there are none, the model draws them.
    """

    calibration: list[Batch]
    held_back: list[Batch]


def split_samples(objective: Objective, fraction: float, samples: int | None = None) -> Split:
    """Hold the last batches of a calibration set back.

    Args:
        objective: The network on its calibration set.
        fraction: Of the samples that are held back, in [0, 1).
        samples: Samples that are used at most; None for all.

    Returns:
        The two parts. At least one batch of 16 samples is left to calibrate on.

    Raises:
        WoodburyError: If there are no samples.

    Example:
        >>> batches = [(torch.zeros(80, 3), torch.arange(80) % 4)]
        >>> dense = Objective.from_model(torch.nn.Linear(3, 4), batches)
        >>> calibration, held_back = split_samples(dense, 0.2)
        >>> len(calibration), len(held_back)
        (4, 1)
    """
    batches = list(objective.batches.in_batches(SAMPLES_PER_BATCH, samples))
    if not batches:
        raise WoodburyError("The batches hold no samples: give some to calibrate on.")
    count = min(round(fraction * len(batches)), len(batches) - 1)
    first_held_back = len(batches) - count
    return Split(batches[:first_held_back], with_labels(objective, batches[first_held_back:]))


def with_labels(objective: Objective, batches: Iterable[Batch]) -> list[Batch]:
    """The batches with labels, which a loss needs: where there are none, the model draws them.

    Args:
        objective: The network, and its likelihood.
        batches: Pairs (inputs, target or None).
    """
    generator = torch.Generator(objective.weights.device).manual_seed(0)
    with eval_mode(objective.model):
        return [
            (inputs, sampled(objective, inputs, None, generator) if target is None else target)
            for inputs, target in batches
        ]
