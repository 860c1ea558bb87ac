"""Samples that are held back: to choose a damping on, or to judge the result on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch

from woodbury.errors import WoodburyError
from woodbury.estimation.labels import sampled
from woodbury.linalg.ranks import Ranks
from woodbury.model.batches import Batch, Samples, samples_in, slice_samples
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective

SAMPLES_PER_BATCH = 16
"""Samples of one batch of the calibration set; whole batches are held back."""

TOO_FEW = (
    "The calibration set is too small to hold a part of it back: give more samples, or "
    "held_back=… of other training data."
)
"""Where not even one batch can be held back."""


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


class FirstSamples(NamedTuple):
    """The samples that are used, and some that follow.

    Attributes:
        used: The first ones.
        beyond: Those after them; empty where there are too few.
    """

    used: list[Batch]
    beyond: list[Batch]


def first_samples(samples: Samples, used: int, beyond: int, least: int) -> FirstSamples:
    """Read the first samples and some that follow, in one pass.

    Args:
        samples: The data.
        used: How many are used at most.
        beyond: How many of those after them are read at most.
        least: Below how many of these none are given.

    Returns:
        Both, in batches of 16 samples at most.

    Example:
        >>> data = Samples([(torch.zeros(50, 3), None)])
        >>> [len(part) for part in first_samples(data, used=32, beyond=16, least=8)]
        [2, 1]
    """
    parts = FirstSamples([], [])
    read = 0
    own = samples.own(used)
    for batch in samples.in_batches(SAMPLES_PER_BATCH, used + beyond):
        size = samples_in(batch[0])
        first = min(max(0, own - read), size)
        if first:
            parts.used.append(slice_samples(batch, 0, first))
        if first < size:
            parts.beyond.append(slice_samples(batch, first, size))
        read += size
    found = Ranks.current().total(max(0, read - own))
    return parts if found >= least else FirstSamples(parts.used, [])


class Aside(NamedTuple):
    """A calibration set, and what the result is judged on.

    Attributes:
        objective: On the samples that are left to calibrate on.
        held_back: Samples that nothing else sees; None where none were asked for.
    """

    objective: Objective
    held_back: Iterable[Batch] | None


def set_aside(
    objective: Objective, held_back: Iterable[Batch] | float | None, samples: int | None = None
) -> Aside:
    """Hold samples back as `prune` is asked to.

    Args:
        objective: The network on its calibration set.
        held_back: A fraction of the calibration set, in (0, 1); or re-iterable batches of other
            data; or None for nothing.
        samples: Samples of the calibration set that are used at most; None for all.

    Returns:
        The two parts.

    Raises:
        WoodburyError: If the fraction is out of its range or the calibration set too small for it,
            or `held_back` can be read only once.
    """
    check_share_or_batches(held_back)
    if not isinstance(held_back, (int, float)):
        return Aside(objective, held_back)
    calibration, aside = split_samples(objective, held_back, samples)
    if not aside:
        raise WoodburyError(TOO_FEW)
    return Aside(
        replace(objective, batches=objective.batches.read(calibration)),
        objective.batches.read(aside),
    )


def check_share_or_batches(held_back: Iterable[Batch] | float | None) -> None:
    """Raise unless samples can be held back as asked.

    Args:
        held_back: As for `set_aside`.

    Raises:
        WoodburyError: If it is a number outside of (0, 1), or can be read only once.
    """
    if isinstance(held_back, (int, float)) and not 0 < held_back < 1:
        raise WoodburyError(
            f"held_back is {held_back}: it is a fraction of the calibration set and must "
            "lie in (0, 1)."
        )
    if isinstance(held_back, Iterator):
        raise WoodburyError(
            "held_back can be read only once: give a list or a DataLoader, not a generator."
        )


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
