"""What the settings that were tried say, in numbers and in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from woodbury.inspection.agreement import NEGLIGIBLE_SHARE, in_digits, in_percent

SAME_CHOICE = 0.99
"""The share of removed weights in common from which on two choices are the same."""

SUBJECTS = {
    "block": "the size of the blocks",
    "kind of rows": "what the rows are of",
    "samples per row": "the samples that one row averages",
    "seed": "the seed of the random directions",
}
"""What a setting is called in a sentence, where its name alone does not do."""


@dataclass(frozen=True)
class Trial:
    """One setting.

    Attributes:
        value: In words.
        rank_correlation: Of its saliencies and those of the reference (Spearman); None where one
            of them was refused.
        shared: The share of its removed weights that the reference removes too.
        increase: Of the loss on the samples held back.
        refused: Why it was refused; empty where it was not.
    """

    value: str
    rank_correlation: float | None = None
    shared: float | None = None
    increase: float | None = None
    refused: str = ""


@dataclass(frozen=True)
class Axis:
    """One setting that changes, all others equal.

    Attributes:
        name: Of the setting.
        reference: The value that the others are compared with.
        trials: The reference first.
    """

    name: str
    reference: str
    trials: tuple[Trial, ...]

    @property
    def others(self) -> tuple[Trial, ...]:
        """All that could be compared with the reference."""
        return tuple(trial for trial in self.trials[1:] if trial.shared is not None)

    @property
    def best(self) -> Trial | None:
        """The trial of least loss; None where all are refused or not finite."""
        measured = [
            trial
            for trial in self.trials
            if trial.increase is not None and math.isfinite(trial.increase)
        ]
        return min(measured, key=lambda trial: trial.increase or 0.0, default=None)


@dataclass(frozen=True)
class Sensitivity:
    """How the choice of weights, and the loss, depend on the settings of the curvature.

    Attributes:
        sparsity: Removed ÷ all weights, of all trials.
        samples: That the loss is measured on.
        dense: The loss on them before pruning.
        rows: Where their number is not changed.
        damping: Where it is not changed.
        largest_eigenvalue: Of the curvature.
        dtype_resolution: The relative step of the numbers that the rows are stored in.
        axes: One for each setting.
    """

    sparsity: float
    samples: int
    dense: float
    rows: int
    damping: float
    largest_eigenvalue: float
    dtype_resolution: float
    axes: tuple[Axis, ...]

    @property
    def least_resolved_damping(self) -> float:
        """A smaller damping is lost in rounding beside the largest eigenvalue."""
        return self.dtype_resolution * self.largest_eigenvalue

    @property
    def verdicts(self) -> dict[str, str]:
        """Name of the setting -> what its trials say, in one or two sentences."""
        makers = {"damping": self._of_damping, "rows": self._of_rows, "samples": self._of_samples}
        return {
            axis.name: makers.get(axis.name, self._of_other)(axis)
            for axis in self.axes
            if axis.others
        }

    @property
    def verdict(self) -> str:
        """All of them."""
        return " ".join(self.verdicts.values())

    def _of_damping(self, axis: Axis) -> str:
        text = self._of_other(axis)
        if self.damping < self.least_resolved_damping:
            text += (
                f" The damping {self.damping:g} is below what float{_bits(self.dtype_resolution)} "
                f"resolves beside the largest eigenvalue {in_digits(self.largest_eigenvalue)}: "
                f"{self.least_resolved_damping:.1g} is the least that counts."
            )
        return text

    def _of_rows(self, axis: Axis) -> str:
        reference = axis.trials[0]
        enough = [
            trial
            for trial in axis.others
            if (trial.shared or 0.0) >= SAME_CHOICE
            and _difference(trial, reference) <= self._slight
        ]
        if enough:
            text = (
                f"From {enough[0].value} rows to {axis.reference} the choice of weights changes by "
                "less than 1 % and the loss hardly: more gradients will not help"
            )
            # One matrix may know too little of so many weights, whatever the rows are.
            return f"{text} one matrix; blocks do." if self._blocks_help else f"{text}."
        last = axis.others[-1]
        moved = 1 - (last.shared or 0.0)
        share = _at_least_one_percent(moved)
        gained = _difference(last, reference)
        change = f"From {last.value} rows to {axis.reference} the choice changes by {share}"
        if gained > self._negligible:
            return f"{change} and the loss falls by {in_digits(gained)}: more gradients will help."
        if gained > self._slight:
            return (
                f"{change} and the loss falls by {in_digits(gained)}, which two halves of the "
                "samples differ by as well: more gradients may help."
            )
        return f"{change}, and the loss hardly: more gradients may not help."

    def _of_samples(self, axis: Axis) -> str:
        other = axis.others[0]
        moved = 1 - (other.shared or 0.0)
        apart = abs(_difference(other, axis.trials[0]))
        return (
            f"Two halves of the samples choose {_at_least_one_percent(moved)} of the weights "
            f"differently, and their losses differ by {in_digits(apart)}: smaller differences are "
            "noise."
        )

    def _of_other(self, axis: Axis) -> str:
        """How much the choice changes, and whether some value is better than the reference."""
        what = SUBJECTS.get(axis.name, f"the {axis.name}")
        least = min(trial.shared or 0.0 for trial in axis.others)
        share = "Less than 1 %" if least > SAME_CHOICE else f"Up to {in_percent(1 - least)}"
        choice = f"{share} of the choice of weights changes with {what}"
        best, reference = axis.best, axis.trials[0]
        if best is None:
            return f"{choice}, and no loss is finite."
        gained = _difference(reference, best)
        if best is reference or gained <= self._negligible:
            return f"{choice}, and no value is much better than {axis.reference}."
        lower = f"a loss {in_digits(gained)} lower than {axis.reference}"
        return f"{choice}; {best.value} is best, with {lower}."

    @property
    def _blocks_help(self) -> bool:
        """Whether blocks leave a loss that is much lower than that of the whole matrix."""
        return any(
            axis.best is not None and _difference(axis.trials[0], axis.best) > self._negligible
            for axis in self.axes
            if axis.name == "block"
        )

    @property
    def _negligible(self) -> float:
        """A difference of losses that says nothing, as that of two halves of the samples."""
        halves = [axis for axis in self.axes if axis.name == "samples" and axis.others]
        noise = [abs(_difference(axis.others[0], axis.trials[0])) for axis in halves]
        known = [apart for apart in noise if math.isfinite(apart)]
        return max(self._slight, *known, 0.0)

    @property
    def _slight(self) -> float:
        """A difference of losses that does not count, however well it is known."""
        return NEGLIGIBLE_SHARE * abs(self.dense)


def _at_least_one_percent(share: float) -> str:
    return "less than 1 %" if share <= 1 - SAME_CHOICE else in_percent(share)


def _difference(first: Trial, second: Trial) -> float:
    """Of two losses; infinite where one of them is not known."""
    if first.increase is None or second.increase is None:
        return math.inf
    apart = first.increase - second.increase
    return apart if math.isfinite(apart) else math.inf


def _bits(resolution: float) -> int:
    """The width of a float of this relative step."""
    return {-7: 16, -10: 16, -23: 32}.get(round(math.log2(resolution)), 64)
