"""Gauss–Newton rows: gradients along random directions of the output, in place of labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from woodbury.errors import WoodburyError, check_whole_number
from woodbury.limits import Limits
from woodbury.linalg.conversion import seeded
from woodbury.model.batches import Batch, Samples, samples_in, slice_samples
from woodbury.model.likelihood import Likelihood
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.model.spread import per_run, runs_of, whole_runs

MC_SAMPLES_MEANING = "the number of GGN samples per input"


def gauss_newton_rows(objective: Objective, mc_samples: int, seed: int = 0) -> Objective:
    """An objective whose per-sample gradients are rows of the Gauss–Newton matrix  (eq. 29).

    They need no labels, and in expectation their Fisher is the true one (Martens 2020).

    Args:
        objective: The model, its data and its likelihood.
        mc_samples: Rows per input, each along a random direction of the output.
        seed: Of the directions.

    Returns:
        An objective of `mc_samples` times as many samples, to be read by `gradient_rows`.

    Raises:
        WoodburyError: If the likelihood has no directions, or `mc_samples` is below 1.

    Example:
        >>> from woodbury.estimation.gradients import gradient_rows
        >>> objective = Objective.from_model(torch.nn.Linear(3, 2), [(torch.ones(4, 3), None)])
        >>> gradient_rows(gauss_newton_rows(objective, mc_samples=2), 8).shape
        torch.Size([8, 8])
    """
    check_directions(objective.likelihood)
    check_whole_number(mc_samples, "mc_samples", MC_SAMPLES_MEANING)
    spread = objective.batches.spread
    if spread is not None:
        spread = replace(spread, is_dealt=False, entries=mc_samples)
    return replace(
        objective,
        batches=Samples(_Directions(objective, mc_samples, seed), trusted=True, spread=spread),
        likelihood=Likelihood(objective.likelihood.directional),
    )


class DirectedBatch(NamedTuple):
    """Some samples and their directions.

    Attributes:
        inputs: The inputs of b samples.
        directions: (b, mc_samples, …), directions s of the output  (eq. 29).
        output: What the model returned.
        target: The labels, or None.
    """

    inputs: Any
    directions: Tensor
    output: Any
    target: Any


def check_directions(likelihood: Likelihood) -> None:
    """Raise unless a likelihood has a Gauss–Newton matrix.

    Args:
        likelihood: The likelihood.

    Raises:
        WoodburyError: If it has no `directions`.
    """
    if likelihood.directions is None:
        raise WoodburyError(
            "This likelihood has no Gauss–Newton matrix: "
            "give it `directions`, or take a Fisher by labels."
        )


def draw_directions(
    objective: Objective, mc_samples: int, seed: int, batch_size: int
) -> Iterator[DirectedBatch]:
    """The objective's samples with random directions of the output  (eq. 29).

    Args:
        objective: The model at its weights, and its data. Labels may be None.
        mc_samples: Directions per sample.
        seed: Of the directions.
        batch_size: Samples at once. Another size draws other directions.

    Returns:
        Batches whose directions are scaled by √mc_samples, so that the mean over rows of s sᵀ is
        the Hessian by the output.

    Raises:
        WoodburyError: If the likelihood has no directions.
    """
    check_directions(objective.likelihood)
    generator = seeded(seed, objective.weights.device)
    done = 0
    for inputs, target in objective.batches.in_batches(whole_runs(batch_size)):
        with torch.no_grad(), eval_mode(objective.model):
            output = objective.forward(objective.parameters, inputs)
        count = samples_in(inputs)
        directions = directions_after(
            done, count, objective.likelihood, output, target, mc_samples, generator
        )
        done += count
        yield DirectedBatch(inputs, directions, output, target)


def directions_after(
    first: int,
    count: int,
    likelihood: Likelihood,
    output: Any,
    target: Any,
    mc_samples: int,
    generator: torch.Generator,
) -> Tensor:
    """Random directions of some samples of this rank, which depend on the samples alone.

    Args:
        first: How many samples of this rank came before.
        count: How many these are.
        likelihood: As for `directions_at`, and so are the others.
        output: Of the model.
        target: The labels, or None.
        mc_samples: Directions per sample.
        generator: Of all directions.

    Returns:
        (count, mc_samples, …).
    """
    parts = []
    for run in runs_of(first, count):
        outputs, targets = output, target
        if run.stop - run.start < count:
            outputs, targets = slice_samples((output, target), run.start, run.stop)
        drawn_by = per_run(generator, first + run.start)
        parts.append(directions_at(likelihood, outputs, targets, mc_samples, drawn_by))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


@torch.no_grad()
def directions_at(
    likelihood: Likelihood, output: Any, target: Any, mc_samples: int, generator: torch.Generator
) -> Tensor:
    """Random directions at known outputs  (eq. 29).

    Args:
        likelihood: With directions.
        output: What the model returned for b samples.
        target: Their labels, or None. They count where they mark positions without an observation,
            or where the loss weighs labels differently.
        mc_samples: Directions per sample.
        generator: Of the directions.

    Returns:
        (b, mc_samples, …), scaled by √mc_samples, so that the mean over rows of s sᵀ is the Hessian
        by the output.
    """
    draw = likelihood.directions
    assert draw is not None
    return mc_samples**0.5 * draw(output, target, mc_samples, generator)


def repeat_per_direction(inputs: Any, directions: Tensor) -> Batch:
    """Each sample as often as it has directions, one copy after the other.

    Args:
        inputs: The inputs of b samples.
        directions: (b, mc_samples, …).

    Returns:
        (inputs, directions) of b·mc_samples samples.
    """
    samples, mc_samples = directions.shape[:2]

    def repeat(leaf: Any) -> Any:
        per_sample = isinstance(leaf, Tensor) and len(leaf) == samples
        return leaf.repeat_interleave(mc_samples, 0) if per_sample else leaf

    return tree_map(repeat, inputs), directions.flatten(0, 1)


@dataclass(frozen=True, eq=False)
class _Directions:
    """The objective's samples, each repeated for its directions: (inputs, direction)."""

    objective: Objective
    mc_samples: int
    seed: int

    def __iter__(self) -> Iterator[Batch]:
        batch_size = max(1, Limits.current().ggn_samples // self.mc_samples)
        for batch in draw_directions(self.objective, self.mc_samples, self.seed, batch_size):
            yield repeat_per_direction(batch.inputs, batch.directions)
