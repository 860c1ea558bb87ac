"""Learning rates: a factor for every optimizer step, for torch's LambdaLR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError


@dataclass(frozen=True, init=False)
class cosine_restarts:
    """A cosine from 1 down to `floor` that starts again after every pruning step  (eq. 31).

    With no pruning step it is half a cosine from 1 to `floor`.

    Args:
        pruning_steps: Optimizer steps after which the rate starts again, such as
            `gradual.pruning_steps`; increasing.
        end: The optimizer step at which the training ends.
        floor: The factor at the end of each cosine, in [0, 1].

    Raises:
        WoodburyError: If the training ends before the last pruning step, or `floor` is no fraction.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1)
        >>> schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine_restarts([10], end=20))
        >>> [cosine_restarts([10], end=20)(step) for step in (0, 5, 10, 20)]
        [1.0, 0.5, 1.0, 0.0]
    """

    turns: tuple[int, ...]
    floor: float

    @checks_types
    def __init__(self, pruning_steps: Sequence[int], end: int, floor: float = 0.0) -> None:
        if not 0 <= floor <= 1:
            raise WoodburyError(
                f"The learning rate's floor is {floor}: it is a fraction of the rate, from 0 to 1."
            )
        if len(pruning_steps) and end < pruning_steps[-1]:
            raise WoodburyError(
                f"Training ends at step {end}, before the pruning step at {pruning_steps[-1]}: "
                "train longer."
            )
        object.__setattr__(self, "turns", tuple(sorted({0, *pruning_steps, end})))
        object.__setattr__(self, "floor", floor)

    @checks_types
    def __call__(self, step: float) -> float:
        """The factor of the learning rate at an optimizer step."""
        for begin, end in pairwise(self.turns):
            if begin <= step < end:
                cosine = math.cos(math.pi * (step - begin) / (end - begin))
                return self.floor + (1 - self.floor) * (1 + cosine) / 2
        return self.floor
