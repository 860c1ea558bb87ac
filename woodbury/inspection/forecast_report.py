"""What forecasts of the loss were worth, in numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from woodbury.inspection.agreement import (
    NEGLIGIBLE_SHARE,
    in_digits,
    in_percent,
    is_within_factor,
    last_within_factor,
)
from woodbury.inspection.curvatures import WORDS


@dataclass(frozen=True)
class ForecastPoint:
    """One pruning in one step.

    Attributes:
        sparsity: Removed ÷ all weights, as reached.
        predicted: The increase by the curvature that chose the weights (eq. 14).
        held_back: The increase by rows of samples that it has not seen (eq. 80).
        measured: The increase of the loss on those samples.
    """

    sparsity: float
    predicted: float
    held_back: float
    measured: float


@dataclass(frozen=True)
class MeasuredPoint:
    """One pruning that has no forecast.

    Attributes:
        sparsity: Removed ÷ all weights, as reached.
        measured: The increase of the loss on the samples held back.
    """

    sparsity: float
    measured: float


@dataclass(frozen=True)
class ForecastCalibration:
    """Forecasts beside measured losses.

    Attributes:
        samples: That the loss is measured on.
        dense: The loss on them before pruning.
        points: Name of the curvature -> its prunings, of rising sparsity.
        refused: Name -> why there are no or no more points.
        magnitude: Magnitude pruning to the same sparsities, without an update.
    """

    samples: int
    dense: float
    points: Mapping[str, tuple[ForecastPoint, ...]]
    refused: Mapping[str, str]
    magnitude: tuple[MeasuredPoint, ...] = ()

    def held_up_to(self, name: str, *, held_back: bool = False) -> float | None:
        """The sparsity up to which a forecast holds within a factor of two.

        Args:
            name: Of the curvature.
            held_back: Whether the forecast is that of the samples held back.

        Returns:
            None where it does not at the smallest.
        """
        points = self.points.get(name, ())
        forecasts = [point.held_back if held_back else point.predicted for point in points]
        return last_within_factor(
            [point.sparsity for point in points],
            forecasts,
            [point.measured for point in points],
            self.dense,
        )

    def best_at(self, sparsity: float) -> str | None:
        """The curvature whose pruning has the least loss at a sparsity; None where there is none.

        Args:
            sparsity: One of those reached.
        """
        losses = {
            name: point.measured
            for name, points in self.points.items()
            for point in points
            if point.sparsity == sparsity and math.isfinite(point.measured)
        }
        return min(losses, key=lambda name: losses[name], default=None)

    @property
    def verdict_on_magnitude(self) -> str:
        """Up to which sparsity magnitude pruning is as good as the best curvature."""
        negligible, enough = NEGLIGIBLE_SHARE * abs(self.dense), None
        for point in self.magnitude:
            best = self.best_at(point.sparsity)
            if best is None:
                continue
            least = next(each for each in self.points[best] if each.sparsity == point.sparsity)
            if point.measured > least.measured + negligible:
                before = "nowhere" if enough is None else f"up to {in_percent(enough)}"
                return (
                    f"Magnitude pruning is as good {before}; at {in_percent(point.sparsity)} the "
                    f"loss {moves(point.measured)}, and with the best estimate, "
                    f"{WORDS.get(best, best)}, it {moves(least.measured)}."
                )
            enough = point.sparsity
        return "" if enough is None else "Magnitude pruning is as good at all sparsities tried."

    @property
    def verdict(self) -> str:
        """What it says, in a sentence for each curvature."""
        if not self.points:
            return ""
        sentences = [self._sentence(name) for name in self.points]
        negligible = NEGLIGIBLE_SHARE * abs(self.dense)
        return " ".join([*sentences, f"Differences below {in_digits(negligible)} count as none."])

    def _sentence(self, name: str) -> str:
        points = self.points[name]
        said = WORDS.get(name, name)
        said = said[:1].upper() + said[1:]
        own, other = self.held_up_to(name), self.held_up_to(name, held_back=True)
        first = _reach(own, points)
        if own == points[-1].sparsity:
            return f"{said}: the forecast held within a factor of two {first}."
        wrong = next(
            point
            for point in points
            if not is_within_factor(
                point.predicted, point.measured, NEGLIGIBLE_SHARE * abs(self.dense)
            )
        )
        text = (
            f"{said}: the forecast held within a factor of two {first}; at "
            f"{in_percent(wrong.sparsity)} it was {in_digits(wrong.predicted)} and the loss "
            f"{moves(wrong.measured)}."
        )
        if (other or 0) > (own or 0):
            text += f" Rows of other samples forecast it {_reach(other, points)}."
        return text


def moves(increase: float) -> str:
    """What a loss does, for a sentence.

    Args:
        increase: Of the loss.

    Example:
        >>> moves(0.25), moves(-0.02)
        ('rose by 0.25', 'fell by 0.02')
    """
    return f"{'rose' if increase >= 0 else 'fell'} by {in_digits(abs(increase))}"


def _reach(up_to: float | None, points: Sequence[ForecastPoint]) -> str:
    if up_to is None:
        return f"nowhere, not at {in_percent(points[0].sparsity)}"
    if up_to == points[-1].sparsity:
        return f"at all sparsities tried, up to {in_percent(up_to)}"
    return f"up to {in_percent(up_to)}"
