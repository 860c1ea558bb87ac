"""When to prune and how fast to learn meanwhile: optimizer steps as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from woodbury.errors import WoodburyError


def moments(start: int, end: int, *, every: int | None = None, steps: int | None = None) -> list[int]:
    """The optimizer steps after which to prune, from `start` to at most `end`: one every so many, or so many in all  (eq. 30).

    Raises WoodburyError for a schedule that ends before it starts or has no room for its steps.
    """
    if start < 1:
        raise WoodburyError(f"The schedule starts at step {start}: steps count from 1, the first after which to prune.")
    if end < start:
        raise WoodburyError(f"The schedule ends at step {end}, before it starts at step {start}: give a later end.")
    if (every is None) == (steps is None):
        raise WoodburyError("A schedule needs either every=… or steps=…: give one of the two.")
    if every is not None:
        if every < 1:
            raise WoodburyError(f"Pruning every {every} steps is no schedule: give at least 1.")
        return list(range(start, end + 1, every))
    assert steps is not None  # one of the two is given
    if not 1 <= steps <= end - start + 1:
        raise WoodburyError(
            f"{steps} pruning steps do not fit from step {start} to step {end}: give 1 to {end - start + 1}."
        )
    return [end] if steps == 1 else [start + round((end - start) * i / (steps - 1)) for i in range(steps)]


def cycle(moments: Sequence[int], end: int, floor: float = 0.0) -> Callable[[int], float]:
    """The factor of the learning rate at each step: anew from 1 after every pruning step, down to `floor` by a cosine  (eq. 31).

    For torch.optim.lr_scheduler.LambdaLR(optimizer, cycle(gradual.moments, end)); end: the step at which training ends.
    """
    if not 0 <= floor <= 1:
        raise WoodburyError(f"The learning rate's floor is {floor}: it is a fraction of the rate, from 0 to 1.")
    if moments and end < moments[-1]:
        raise WoodburyError(f"Training ends at step {end}, before the pruning step at {moments[-1]}: train longer.")
    return partial(_factor, sorted({0, *moments, end}), floor)


def _factor(turns: Sequence[int], floor: float, step: int) -> float:
    for begin, end in pairwise(turns):
        if begin <= step < end:
            return floor + (1 - floor) * (1 + math.cos(math.pi * (step - begin) / (end - begin))) / 2
    return floor
