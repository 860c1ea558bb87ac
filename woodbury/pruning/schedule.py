"""Schedules: the sparsity after each stage, and the training steps after which to prune."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial

from woodbury.argument_types import checks_types, is_of
from woodbury.errors import WoodburyError, WrongType

MAX_STAGES = 100_000
"""Stages, or steps of a schedule, at most: what is beyond is a slip, and would never end."""

Targets = float | Mapping[str, float]
"""A sparsity for all, or one for each of several name patterns, of which the first match counts."""


@checks_types
def one_shot(sparsity: Targets) -> list[Targets]:
    """One stage to the sparsity.

    Args:
        sparsity: In [0, 1), or one for each name pattern.

    Returns:
        The sparsity alone.

    Raises:
        WoodburyError: If a sparsity is not in [0, 1).

    Example:
        >>> one_shot(0.9)
        [0.9]
    """
    return [check_targets(sparsity)]


@checks_types
def geometric(sparsity: Targets, count: int, start: Targets = 0.0) -> list[Targets]:
    """Stages that each keep the same fraction of the weights  (eq. 20).

    Args:
        sparsity: Of the last stage, in [0, 1), or one for each name pattern.
        count: Stages, at least 1.
        start: Sparsity before the first stage, or one for each pattern.

    Returns:
        The sparsity after each of the `count` stages.

    Raises:
        WoodburyError: If there is no stage, or a sparsity is not in [start, 1).

    Example:
        >>> geometric(0.75, 2)
        [0.5, 0.75]
    """
    _check_count(count)
    return _for_each(sparsity, start, partial(_geometric, count=count))


def stage_count(sparsity: Targets, start: Targets, keep_per_stage: float) -> int:
    """The fewest stages of `geometric` that keep at least a fraction of the weights each.

    Args:
        sparsity: Of the last stage, in [0, 1), or one for each name pattern.
        start: Sparsity before the first stage, or one for each pattern.
        keep_per_stage: The least fraction that a stage keeps, in [0, 1); 0 for one stage.

    Returns:
        At least 1.

    Example:
        >>> stage_count(0.9, 0.0, keep_per_stage=0.5)
        4
    """
    if not keep_per_stage:
        return 1
    goals = sparsity if isinstance(sparsity, Mapping) else {"*": sparsity}
    starts = start if isinstance(start, Mapping) else dict.fromkeys(goals, start)
    kept = min((1 - goal) / (1 - starts[pattern]) for pattern, goal in goals.items())
    # Where a whole number of stages fits exactly, rounding must not ask for one more.
    return max(1, math.ceil(math.log(kept) / math.log(keep_per_stage) - 1e-9))


@checks_types
def polynomial(
    sparsity: Targets, count: int, start: Targets = 0.0, power: float = 3.0
) -> list[Targets]:
    """Stages that remove much at first and little at the end  (eq. 21).

    The schedule of gradual pruning (Zhu & Gupta, ICLR workshop 2018).

    Args:
        sparsity: Of the last stage, in [0, 1), or one for each name pattern.
        count: Stages, at least 1.
        start: Sparsity before the first stage, or one for each pattern.
        power: Of the polynomial, positive; 3, as in the paper, is cubic, 1 linear.

    Returns:
        The sparsity after each of the `count` stages.

    Raises:
        WoodburyError: If there is no stage, the power is not positive, or a sparsity is not in
            [start, 1).

    Example:
        >>> polynomial(0.875, 2)
        [0.765625, 0.875]
    """
    _check_count(count)
    if not 0 < power < math.inf:
        raise WoodburyError(f"power is {power}: give a positive, finite number.")
    return _for_each(sparsity, start, partial(_polynomial, count=count, power=power))


def _check_count(count: int) -> None:
    if not 1 <= count <= MAX_STAGES:
        raise WoodburyError(f"{count} stages were asked for: give 1 to {MAX_STAGES:,}.")


def check_sparsity(sparsity: float) -> float:
    """The sparsity, if it is one.

    Args:
        sparsity: Removed ÷ all weights.

    Returns:
        The same.

    Raises:
        WrongType: If it is not a number.
        WoodburyError: If it is not in [0, 1).
    """
    kind: type[WoodburyError] = WrongType
    valid = False
    if is_of(sparsity, float):
        with suppress(RuntimeError):  # complex numbers have no order
            kind, valid = WoodburyError, bool(0 <= sparsity < 1)
    if not valid:
        raise kind(
            f"sparsity is {sparsity}: it is removed ÷ all weights and must lie in [0, 1), "
            "such as 0.9."
        )
    return float(sparsity)


def check_targets(targets: Targets) -> Targets:
    """The targets, if each of them is a sparsity.

    Args:
        targets: A sparsity, or one for each of several name patterns.

    Returns:
        The same.

    Raises:
        WrongType: If one is not a number.
        WoodburyError: If there is none, or one is not in [0, 1).
    """
    if isinstance(targets, Mapping) and not targets:
        raise WoodburyError(
            "No target is given: give a sparsity, or one for each of several patterns of names."
        )
    if not isinstance(targets, Mapping):
        return check_sparsity(targets)
    for pattern, sparsity in targets.items():
        if not isinstance(pattern, str):
            raise WrongType(f"A target is for {pattern!r}: give patterns of names, such as '*'.")
        check_sparsity(sparsity)
    return targets


def _geometric(sparsity: float, start: float, count: int) -> list[float]:
    _check_rise(start, sparsity)
    kept = (1 - sparsity) / (1 - start)
    return [1 - (1 - start) * kept ** (step / count) for step in range(1, count)] + [sparsity]


def _polynomial(sparsity: float, start: float, count: int, power: float) -> list[float]:
    _check_rise(start, sparsity)
    before = [
        sparsity + (start - sparsity) * (1 - step / count) ** power for step in range(1, count)
    ]
    return [*before, sparsity]


def _for_each(
    targets: Targets, start: Targets, path: Callable[[float, float], list[float]]
) -> list[Targets]:
    """The path of one sparsity, or those of several side by side, each from its own start."""
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


@checks_types
def pruning_steps(
    start: int, end: int, *, every: int | None = None, steps: int | None = None
) -> list[int]:
    """The optimizer steps after which to prune  (eq. 30).

    Args:
        start: The first of them; steps count from 1.
        end: No pruning after this step.
        every: Optimizer steps from one pruning to the next; the last may lie before `end`.
        steps: Prunings in all, spread evenly from `start` to `end`. Give this or `every`.

    Returns:
        The steps, ascending.

    Raises:
        WoodburyError: If the schedule ends before it starts or has no room for its steps, or if not
            exactly one of `every` and `steps` is given.

    Example:
        >>> pruning_steps(10, 50, every=15)
        [10, 25, 40]
        >>> pruning_steps(10, 50, steps=3)
        [10, 30, 50]
    """
    if start < 1:
        raise WoodburyError(
            f"The schedule starts at step {start}: "
            "steps count from 1, the first after which to prune."
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
        if (end - start) // every >= MAX_STAGES:
            raise WoodburyError(
                f"Pruning every {every} steps from {start} to {end} are more than "
                f"{MAX_STAGES:,} times: give a larger every or an earlier end."
            )
        return list(range(start, end + 1, every))
    assert steps is not None  # one of the two is given
    longest = end - start + 1
    most = min(longest, MAX_STAGES)
    if not 1 <= steps <= most:
        raise WoodburyError(
            f"{steps} pruning steps do not fit from step {start} to step {end}: give 1 to {most}."
        )
    if steps == 1:
        return [end]
    return [start + round((end - start) * i / (steps - 1)) for i in range(steps)]
