"""Results of a comparison, one a cell, and their means over the seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

from woodbury.pruning.prediction import IncreaseInterval


@dataclass(frozen=True)
class Result:
    """One cell of a comparison: a method at a sparsity, with the calibration set of a seed.

    Losses are means over the samples of the calibration set, in the loss's own unit.

    Attributes:
        method: Its name.
        sparsity: Removed ÷ all weights, as asked for.
        reached: Removed ÷ all weights, as reached.
        seed: Of the calibration set.
        accuracy: The score on test data, such as a fraction of correct classes.
        loss_before: The dense network's loss.
        loss_after: The pruned network's loss.
        predicted: The increase of the loss that the quadratic predicted; None without a Fisher.
        measured: `loss_after` − `loss_before`.
        seconds: Wall-clock time of the Fisher and one pruning, without evaluation and without the
            choice among dampings.
        memory: The process's peak resident memory meanwhile, in MB of 2²⁰ bytes.
        damping: Of the Fisher; None without one, and in several stages unless it was chosen.
        settings: Facts to write beside the numbers.
        removed: As `measured`, right after the removal and before the update: the removed weights
            are zero and the others as in the dense network.
        accuracy_removed: As `accuracy`, right after the removal and before the update.
        perplexity_before: exp(`loss_before` ÷ tokens that a sample predicts), by `woodbury compare`
            on a causal language model; None elsewhere.
        perplexity_after: The same of `loss_after`.
        predicted_interval: The increase of the loss on samples held back, which no part of the
            method saw  (eq. 71); None where none were.
        predicted_warning: Why `predicted` is no forecast of it  (eq. 72); empty where nothing is
            known against it.
    """

    method: str
    sparsity: float
    reached: float
    seed: int
    accuracy: float
    loss_before: float
    loss_after: float
    predicted: float | None
    measured: float
    seconds: float
    memory: float
    damping: float | None
    settings: Mapping[str, Any]
    removed: float | None = None
    accuracy_removed: float | None = None
    perplexity_before: float | None = None
    perplexity_after: float | None = None
    predicted_interval: IncreaseInterval | None = None
    predicted_warning: str = ""


@dataclass(frozen=True)
class Summary:
    """One cell of a comparison over its seeds: means of the fields of `Result`.

    Attributes:
        method: Its name.
        sparsity: Removed ÷ all weights, as asked for.
        seeds: How many results there are.
        accuracy: The mean.
        spread: The population standard deviation of the accuracy; NaN where one is not finite.
        predicted: The mean; None if no result has one.
        measured: The mean.
        seconds: The mean.
        memory: The largest, in MB of 2²⁰ bytes.
        removed: The mean; None if no result has one.
        accuracy_removed: The mean; None if no result has one.
        perplexity_before: The mean; None if no result has one.
        perplexity_after: The mean; None if no result has one.
        held_back: The mean increase of the loss on samples held back; None if none were.
        held_back_low: The mean of the lower ends of its intervals.
        held_back_high: The mean of the upper ends.
        warnings: In how many results the prediction is no forecast.
    """

    method: str
    sparsity: float
    seeds: int
    accuracy: float
    spread: float
    predicted: float | None
    measured: float
    seconds: float
    memory: float
    removed: float | None = None
    accuracy_removed: float | None = None
    perplexity_before: float | None = None
    perplexity_after: float | None = None
    held_back: float | None = None
    held_back_low: float | None = None
    held_back_high: float | None = None
    warnings: int = 0


def summary(results: Iterable[Result]) -> list[Summary]:
    """Average the results of each method and sparsity over their seeds.

    Args:
        results: What `compare` gave.

    Returns:
        One summary for each (method, sparsity), in the order of first appearance.

    Example:
        >>> cell = Result("obs", 0.9, 0.9, 0, 0.8, 0.1, 0.3, 0.1, 0.2, 1.0, 100.0, 1e-3, {})
        >>> from dataclasses import replace
        >>> [mean] = summary([cell, replace(cell, seed=1, seconds=2.0)])
        >>> mean.seeds, mean.seconds
        (2, 1.5)
    """
    cells: dict[tuple[str, float], list[Result]] = {}
    for result in results:
        cells.setdefault((result.method, result.sparsity), []).append(result)
    return [_summarized(name, sparsity, cell) for (name, sparsity), cell in cells.items()]


def _summarized(name: str, sparsity: float, cell: Sequence[Result]) -> Summary:
    accuracies = [result.accuracy for result in cell]
    intervals = [each.predicted_interval for each in cell if each.predicted_interval is not None]
    return Summary(
        method=name,
        sparsity=sparsity,
        seeds=len(cell),
        accuracy=fmean(accuracies),
        spread=_spread(accuracies),
        predicted=_mean(result.predicted for result in cell),
        measured=fmean(result.measured for result in cell),
        seconds=fmean(result.seconds for result in cell),
        memory=max(result.memory for result in cell),
        removed=_mean(result.removed for result in cell),
        accuracy_removed=_mean(result.accuracy_removed for result in cell),
        perplexity_before=_mean(result.perplexity_before for result in cell),
        perplexity_after=_mean(result.perplexity_after for result in cell),
        held_back=_mean(interval.mean for interval in intervals),
        held_back_low=_mean(interval.low for interval in intervals),
        held_back_high=_mean(interval.high for interval in intervals),
        warnings=sum(bool(result.predicted_warning) for result in cell),
    )


def _spread(scores: Sequence[float]) -> float:
    """The population standard deviation; NaN where a network has diverged."""
    return pstdev(scores) if all(map(math.isfinite, scores)) else math.nan


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
