"""The Gauss–Newton rows: gradients along directions of the output, instead of by labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from woodbury.errors import WoodburyError
from woodbury.gradients import regrouped
from woodbury.objective import Batch, Likelihood, Objective, evaluating, samples_in

SAMPLES = 64
"""How many samples the directions are drawn for at once."""


def gauss_newton_rows(objective: Objective, rank: int, seed: int = 0) -> Objective:
    """An objective whose per-sample gradients are rows of the generalised Gauss–Newton matrix, `rank` to a sample  (eq. 29).

    They need no labels, and their expectation is the true Fisher (Martens 2020). Raises WoodburyError when the likelihood
    has no directions.
    """
    if objective.likelihood.directions is None:
        raise WoodburyError(
            "This likelihood has no Gauss–Newton matrix: give it `directions`, or take a Fisher by labels."
        )
    if rank < 1:
        raise WoodburyError(f"{rank} rows for each sample were asked for: give at least 1.")
    likelihood = Likelihood(objective.likelihood.along)
    return replace(objective, batches=_Directions(objective, rank, seed), likelihood=likelihood)


@dataclass(frozen=True, eq=False)
class _Directions:
    """The objective's samples, each repeated for its directions: (inputs, direction)."""

    objective: Objective
    rank: int
    seed: int

    def __iter__(self) -> Iterator[Batch]:
        objective, generator = self.objective, torch.Generator(self.objective.weights.device).manual_seed(self.seed)
        draw = objective.likelihood.directions
        assert draw is not None  # seen before
        for inputs, target in regrouped(objective.batches, max(1, SAMPLES // self.rank)):
            with torch.no_grad(), evaluating(objective.model):
                output = objective.forward(objective.parameters, inputs)
                directions = self.rank**0.5 * draw(output, self.rank, generator)
            ignored = objective.likelihood.ignored
            # Labels are (b, …) for directions (b, r, C, …); probabilities mark nothing.
            if ignored is not None and isinstance(target, Tensor) and not target.is_floating_point():
                directions = directions * (target != ignored)[:, None, None]
            yield _repeated(inputs, self.rank), directions.reshape(-1, *directions.shape[2:])


def _repeated(inputs: Any, times: int) -> Any:
    samples = samples_in(inputs)
    return tree_map(
        lambda leaf: leaf.repeat_interleave(times, 0) if isinstance(leaf, Tensor) and len(leaf) == samples else leaf,
        inputs,
    )
