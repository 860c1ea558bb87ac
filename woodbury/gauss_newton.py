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
from woodbury.likelihood import Likelihood
from woodbury.objective import Batch, Objective, evaluating

SAMPLES = 64
"""How many samples the directions are drawn for at once."""
NO_DIRECTIONS = "This likelihood has no Gauss–Newton matrix: give it `directions`, or take a Fisher by labels."


def gauss_newton_rows(objective: Objective, rank: int, seed: int = 0) -> Objective:
    """An objective whose per-sample gradients are rows of the generalised Gauss–Newton matrix, `rank` to a sample  (eq. 29).

    They need no labels, and their expectation is the true Fisher (Martens 2020). Raises WoodburyError when the likelihood
    has no directions.
    """
    if objective.likelihood.directions is None:
        raise WoodburyError(NO_DIRECTIONS)
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
        for inputs, directions in drawn(self.objective, self.rank, self.seed, max(1, SAMPLES // self.rank)):
            yield repeated(inputs, directions)


def drawn(objective: Objective, rank: int, seed: int, at_once: int) -> Iterator[tuple[Any, Tensor]]:
    """The objective's samples, so many at once, and `rank` directions of the output to each, (b, rank, …)  (eq. 29)."""
    generator = torch.Generator(objective.weights.device).manual_seed(seed)
    draw, ignored = objective.likelihood.directions, objective.likelihood.ignored
    if draw is None:
        raise WoodburyError(NO_DIRECTIONS)
    for inputs, target in regrouped(objective.batches, at_once):
        with torch.no_grad(), evaluating(objective.model):
            directions = rank**0.5 * draw(objective.forward(objective.parameters, inputs), rank, generator)
        # Labels are (b, …) for directions (b, r, C, …); probabilities mark nothing.
        if ignored is not None and isinstance(target, Tensor) and not target.is_floating_point():
            directions = directions * (target != ignored)[:, None, None]
        yield inputs, directions


def repeated(inputs: Any, directions: Tensor) -> Batch:
    """The samples, each as often as it has directions (b, rank, …), and those one after the other, (b·rank, …)."""
    samples, rank = directions.shape[:2]
    return tree_map(
        lambda leaf: leaf.repeat_interleave(rank, 0) if isinstance(leaf, Tensor) and len(leaf) == samples else leaf,
        inputs,
    ), directions.flatten(0, 1)
