"""When to prune and how fast to learn meanwhile: optimizer steps as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from woodbury.errors import WoodburyError


def cosine_restarts(moments: Sequence[int], end: int, floor: float = 0.0) -> Callable[[int], float]:
    """The factor of the learning rate at each step: anew from 1 after every pruning step, down to `floor` by a cosine  (eq. 31).

    For torch.optim.lr_scheduler.LambdaLR(optimizer, cycle(gradual.pruning_steps, end)); end: the step at which training ends.
    """
    if not 0 <= floor <= 1:
        raise WoodburyError(
            f"The learning rate's floor is {floor}: it is a fraction of the rate, from 0 to 1."
        )
    if moments and end < moments[-1]:
        raise WoodburyError(
            f"Training ends at step {end}, before the pruning step at {moments[-1]}: train longer."
        )
    return partial(_factor, sorted({0, *moments, end}), floor)


def _factor(turns: Sequence[int], floor: float, step: int) -> float:
    for begin, end in pairwise(turns):
        if begin <= step < end:
            return (
                floor + (1 - floor) * (1 + math.cos(math.pi * (step - begin) / (end - begin))) / 2
            )
    return floor
