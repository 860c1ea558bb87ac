"""The Gauss–Newton rows: gradients along directions of the output, instead of by labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from woodbury.errors import WoodburyError
from woodbury.limits import Limits
from woodbury.model.batches import Batch, regrouped
from woodbury.model.likelihood import Likelihood
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective

NO_DIRECTIONS = (
    "This likelihood has no Gauss–Newton matrix: give it `directions`, or take a Fisher by labels."
)


def gauss_newton_rows(objective: Objective, mc_samples: int, seed: int = 0) -> Objective:
    """An objective whose per-sample gradients are rows of the generalised Gauss–Newton matrix, `mc_samples` to a sample  (eq. 29).

    They need no labels, and their expectation is the true Fisher (Martens 2020). Raises WoodburyError when the likelihood
    has no directions.
    """
    if objective.likelihood.directions is None:
        raise WoodburyError(NO_DIRECTIONS)
    if mc_samples < 1:
        raise WoodburyError(f"{mc_samples} rows for each sample were asked for: give at least 1.")
    likelihood = Likelihood(objective.likelihood.directional)
    return replace(
        objective, batches=_Directions(objective, mc_samples, seed), likelihood=likelihood
    )


@dataclass(frozen=True, eq=False)
class _Directions:
    """The objective's samples, each repeated for its directions: (inputs, direction)."""

    objective: Objective
    mc_samples: int
    seed: int

    def __iter__(self) -> Iterator[Batch]:
        for inputs, directions in draw_directions(
            self.objective,
            self.mc_samples,
            self.seed,
            max(1, Limits.current().ggn_samples // self.mc_samples),
        ):
            yield repeat_per_direction(inputs, directions)


def draw_directions(
    objective: Objective, mc_samples: int, seed: int, at_once: int
) -> Iterator[tuple[Any, Tensor]]:
    """The objective's samples, so many at once, and `mc_samples` directions of the output to each, (b, mc_samples, …)  (eq. 29)."""
    generator = torch.Generator(objective.weights.device).manual_seed(seed)
    draw, ignored = objective.likelihood.directions, objective.likelihood.ignored
    if draw is None:
        raise WoodburyError(NO_DIRECTIONS)
    for inputs, target in regrouped(objective.batches, at_once):
        with torch.no_grad(), eval_mode(objective.model):
            directions = mc_samples**0.5 * draw(
                objective.forward(objective.parameters, inputs), mc_samples, generator
            )
        # Labels are (b, …) for directions (b, r, C, …); probabilities mark nothing.
        if ignored is not None and isinstance(target, Tensor) and not target.is_floating_point():
            directions = directions * (target != ignored)[:, None, None]
        yield inputs, directions


def repeat_per_direction(inputs: Any, directions: Tensor) -> Batch:
    """The samples, each as often as it has directions (b, mc_samples, …), and those one after the other, (b·mc_samples, …)."""
    samples, mc_samples = directions.shape[:2]
    return tree_map(
        lambda leaf: (
            leaf.repeat_interleave(mc_samples, 0)
            if isinstance(leaf, Tensor) and len(leaf) == samples
            else leaf
        ),
        inputs,
    ), directions.flatten(0, 1)
