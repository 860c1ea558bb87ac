"""Schedules: step -> sparsity, as plain functions that return the whole list."""

from __future__ import annotations

from woodbury.errors import WoodburyError


def one_shot(sparsity: float) -> list[float]:
    """One step to `sparsity`."""
    return [check_sparsity(sparsity)]


def rounds(sparsity: float, count: int, start: float = 0.0) -> list[float]:
    """`count` steps from `start` to `sparsity`, each keeping the same fraction of what was left  (eq. 20)."""
    if count < 1:
        raise WoodburyError(f"{count} rounds were asked for: give at least 1.")
    _check_rise(start, sparsity)
    kept = (1 - sparsity) / (1 - start)
    return [1 - (1 - start) * kept ** (step / count) for step in range(1, count)] + [sparsity]


def polynomial(sparsity: float, count: int, start: float = 0.0, power: float = 3.0) -> list[float]:
    """`count` steps from `start` to `sparsity`, fast first and slow last; cubic by default (Zhu & Gupta 2018)  (eq. 21)."""
    if count < 1 or power <= 0:
        raise WoodburyError(
            f"{count} steps of power {power} were asked for: give at least 1 step and a positive power."
        )
    _check_rise(start, sparsity)
    return [sparsity + (start - sparsity) * (1 - step / count) ** power for step in range(1, count)] + [sparsity]


def check_sparsity(sparsity: float) -> float:
    """`sparsity`, or an error unless it lies in [0, 1)."""
    if not 0 <= sparsity < 1:
        raise WoodburyError(f"sparsity is {sparsity}: it is removed ÷ all weights and must lie in [0, 1), such as 0.9.")
    return sparsity


def _check_rise(start: float, sparsity: float) -> None:
    if check_sparsity(start) > check_sparsity(sparsity):
        raise WoodburyError(f"The schedule starts at sparsity {start} and ends at {sparsity}: it must not fall.")
