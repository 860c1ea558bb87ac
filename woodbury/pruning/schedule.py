"""Schedules: step -> sparsity, as plain functions that return the whole list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from woodbury.errors import WoodburyError

Targets = float | Mapping[str, float]
"""A sparsity for all, or one for each shell pattern of tensor names, of which the first that matches counts."""


def one_shot(sparsity: Targets) -> list[Targets]:
    """One step to `sparsity`."""
    return [check_targets(sparsity)]


def geometric(sparsity: Targets, count: int, start: Targets = 0.0) -> list[Targets]:
    """`count` steps from `start` to `sparsity`, each keeping the same fraction of what was left  (eq. 20)."""
    if count < 1:
        raise WoodburyError(f"{count} stages were asked for: give at least 1.")
    return _for_each(sparsity, start, partial(_geometric, count=count))


def polynomial(
    sparsity: Targets, count: int, start: Targets = 0.0, power: float = 3.0
) -> list[Targets]:
    """`count` steps from `start` to `sparsity`, fast first and slow last; cubic by default (Zhu & Gupta 2018)  (eq. 21)."""
    if count < 1 or power <= 0:
        raise WoodburyError(
            f"{count} steps of power {power} were asked for: give at least 1 step and a positive power."
        )
    return _for_each(sparsity, start, partial(_polynomial, count=count, power=power))


def check_sparsity(sparsity: float) -> float:
    """`sparsity`, or an error unless it lies in [0, 1)."""
    if isinstance(sparsity, str) or not 0 <= sparsity < 1:
        raise WoodburyError(
            f"sparsity is {sparsity}: it is removed ÷ all weights and must lie in [0, 1), such as 0.9."
        )
    return sparsity


def check_targets(targets: Targets) -> Targets:
    """`targets`, or an error unless all of them lie in [0, 1)."""
    if isinstance(targets, Mapping) and not targets:
        raise WoodburyError(
            "No target is given: give a sparsity, or one for each of several patterns of names."
        )
    for sparsity in targets.values() if isinstance(targets, Mapping) else (targets,):
        check_sparsity(sparsity)
    return targets


def _geometric(sparsity: float, start: float, count: int) -> list[float]:
    _check_rise(start, sparsity)
    kept = (1 - sparsity) / (1 - start)
    return [1 - (1 - start) * kept ** (step / count) for step in range(1, count)] + [sparsity]


def _polynomial(sparsity: float, start: float, count: int, power: float) -> list[float]:
    _check_rise(start, sparsity)
    return [
        sparsity + (start - sparsity) * (1 - step / count) ** power for step in range(1, count)
    ] + [sparsity]


def _for_each(
    targets: Targets, start: Targets, path: Callable[[float, float], list[float]]
) -> list[Targets]:
    """The path of one sparsity, or of each of several side by side, each from its own start."""
    if not isinstance(targets, Mapping):
        if isinstance(start, Mapping):
            raise WoodburyError(
                "The schedule starts at several sparsities and ends at one: give as many of both."
            )
        return list(path(targets, start))
    starts = start if isinstance(start, Mapping) else dict.fromkeys(targets, start)
    paths = {
        pattern: path(sparsity, starts.get(pattern, 0.0)) for pattern, sparsity in targets.items()
    }
    return [dict(zip(paths, step, strict=True)) for step in zip(*paths.values(), strict=True)]


def _check_rise(start: float, sparsity: float) -> None:
    if check_sparsity(start) > check_sparsity(sparsity):
        raise WoodburyError(
            f"The schedule starts at sparsity {start} and ends at {sparsity}: it must not fall."
        )


def pruning_steps(
    start: int, end: int, *, every: int | None = None, steps: int | None = None
) -> list[int]:
    """The optimizer steps after which to prune, from `start` to at most `end`: one every so many, or so many in all  (eq. 30).

    Raises WoodburyError for a schedule that ends before it starts or has no room for its steps.
    """
    if start < 1:
        raise WoodburyError(
            f"The schedule starts at step {start}: steps count from 1, the first after which to prune."
        )
    if end < start:
        raise WoodburyError(
            f"The schedule ends at step {end}, before it starts at step {start}: give a later end."
        )
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
    return (
        [end]
        if steps == 1
        else [start + round((end - start) * i / (steps - 1)) for i in range(steps)]
    )
