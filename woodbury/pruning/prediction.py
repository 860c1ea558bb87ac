"""How far a predicted increase of the loss can be trusted, from samples that nothing else saw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from woodbury.errors import WoodburyError
from woodbury.estimation.labels import sampled
from woodbury.linalg.ranks import Ranks
from woodbury.model.batches import Batch, Samples, samples_in
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.pruning.mean_interval import CONFIDENCE, mean_interval

HELD_BACK_SAMPLES = 256
"""Samples that an interval is made of, where there are as many beside the calibration set."""

LEAST_HELD_BACK = 32
"""Samples below which none are kept for an interval by themselves."""

GROUPS = 32
"""Groups of samples at most, each of which is one forward pass of either network."""

NEGLIGIBLE_SHARE = 0.01
"""Share of the dense network's loss that a prediction may be off by in any case."""

MOST_DAMPING = 0.5
"""Share of a predicted increase that may be the damping's, ½ λ‖δ‖²."""

HOW_TO_HOLD_BACK = "give prune held_back=0.1, or more samples than its effort reads"
"""What a user of `prune` can do about an increase that nothing was held back for."""


@dataclass(frozen=True)
class IncreaseInterval:
    """The increase of the loss over the dense network's, on samples held back  (eq. 71).

    Neither the curvature nor the choice of the weights nor a refit saw them, so that it holds for
    other samples of the same distribution.

    Attributes:
        low: The lower end of the confidence interval.
        mean: The mean increase on the samples.
        high: The upper end.
        confidence: How often such an interval holds the increase in the whole distribution.
        samples: How many were held back.
        dense_loss: The mean loss of the dense network on them.

    Example:
        >>> interval = IncreaseInterval(0.01, 0.02, 0.04, 0.95, 256, 0.3)
        >>> print(interval)
        0.01 to 0.04 (95 % confidence, 256 samples held back)
        >>> interval.refutes(0.03), interval.refutes(0.001)
        (False, True)
    """

    low: float
    mean: float
    high: float
    confidence: float
    samples: int
    dense_loss: float

    def __str__(self) -> str:
        """The interval, its confidence and the samples."""
        sure = f"{100 * self.confidence:g} % confidence"
        return f"{self.ends()} ({sure}, {self.samples:,} samples held back)"

    def ends(self) -> str:
        """Where it begins and ends."""
        return f"{_in_digits(self.low)} to {_in_digits(self.high)}"

    def in_words(self) -> str:
        """A sentence for a report."""
        if not math.isfinite(self.mean):
            return f"On {self.samples:,} samples held back the loss is not finite."
        return f"The increase of the loss on other samples is {self}."

    def refutes(self, predicted: float) -> bool:
        """Whether a predicted increase is no forecast of the one on these samples  (eq. 72).

        Args:
                predicted: By the quadratic, or left by a refit.

        Returns:
            True if it lies outside of the interval, differs from the nearer end by more than a
            factor of two, and by more than a hundredth of the dense loss.
        """
        if not math.isfinite(self.mean) or not math.isfinite(predicted):
            return True
        if self.low <= predicted <= self.high:
            return False
        end = self.low if predicted < self.low else self.high
        small = min(abs(predicted), abs(end)) if predicted * end > 0 else 0.0
        return abs(predicted - end) > max(small, NEGLIGIBLE_SHARE * abs(self.dense_loss))


class _Group(NamedTuple):
    """Some samples: how many, and the mean loss of either network on them."""

    size: int
    dense: float
    pruned: float


@torch.no_grad()
def increase_interval(
    dense: Objective, pruned: Objective, held_back: Iterable[Batch], confidence: float = CONFIDENCE
) -> IncreaseInterval:
    """The increase of the loss from one network to another, on data that neither was made by.

    Args:
        dense: The network before pruning; its own batches are not read.
        pruned: The network after it.
        held_back: (inputs, target), at least two samples; where there is no target the dense
            network draws one, and the increase is its divergence from the pruned one.
        confidence: How often the interval is to hold the mean of the distribution, in (0, 1).

    Returns:
        The interval; infinite if the pruned network's loss is not finite.

    Raises:
        WoodburyError: If there are fewer than two samples, the confidence is out of its range, or
            the loss of the dense network is not finite.

    Example:
        >>> model = torch.nn.Linear(3, 4)
        >>> batches = [(torch.randn(40, 3), torch.arange(40) % 4)]
        >>> dense = Objective.from_model(model, batches)
        >>> increase_interval(dense, dense.at(0 * dense.weights), batches).samples
        40
    """
    if not 0 < confidence < 1:
        raise WoodburyError(f"confidence is {confidence}: it must lie in (0, 1), such as 0.95.")
    data = Samples.of(held_back)
    count = _count(data)
    size = -(-count // GROUPS)
    own = list(_groups(dense, pruned, data.in_batches(size)))
    groups = [_Group(*group) for part in Ranks.current().all_gather_objects(own) for group in part]
    dense_loss = sum(group.size * group.dense for group in groups) / count
    _check_dense_loss(dense_loss)
    differences = [group.pruned - group.dense for group in groups]
    low, mean, high = mean_interval(differences, [group.size for group in groups], confidence)
    return IncreaseInterval(low, mean, high, confidence, count, dense_loss)


@torch.no_grad()
def check_held_back(dense: Objective, held_back: Iterable[Batch]) -> None:
    """Raise for samples that no interval can be made of, before the work that it judges.

    Args:
        dense: The network before pruning.
        held_back: As for `increase_interval`.

    Raises:
        WoodburyError: As `increase_interval`.
    """
    data = Samples.of(held_back)
    groups = data.in_batches(-(-_count(data) // GROUPS))
    _check_dense_loss(sum(group.dense for group in _groups(dense, dense, groups)))


def _count(data: Samples) -> int:
    """How many samples there are, at least two."""
    count = Ranks.current().total(sum(samples_in(inputs) for inputs, _ in data))
    if count < 2:
        raise WoodburyError(
            f"An interval needs at least 2 samples that are held back, not {count}: give more."
        )
    return count


def _check_dense_loss(loss: float) -> None:
    if not math.isfinite(loss):
        raise WoodburyError(
            "The loss of the dense network on the samples held back is not finite: look for NaN in "
            "the data."
        )


def warning_of(
    predicted: float | None,
    interval: IncreaseInterval | None,
    doubt: str = "",
    how_to_hold_back: str = HOW_TO_HOLD_BACK,
) -> str:
    """Why a predicted increase is no forecast, in one sentence  (eq. 72).

    Args:
        predicted: The prediction; None if there is none.
        interval: From samples held back; None if there were none.
        doubt: Why the prediction is none whatever the interval says; empty if no reason is known.
        how_to_hold_back: What the user can do where nothing was held back.

    Returns:
        The sentence; empty if there is no prediction, or nothing is known against it.

    Example:
        >>> print(warning_of(1e-5, IncreaseInterval(0.01, 0.02, 0.04, 0.95, 256, 0.3)))
        The predicted increase of 1e-05 does not hold: on other samples it is 0.01 to 0.04 (95 ...
        >>> warning_of(0.03, IncreaseInterval(0.01, 0.02, 0.04, 0.95, 256, 0.3))
        ''
    """
    if predicted is None:
        return ""
    if not math.isfinite(predicted):
        return "The predicted increase is not finite: raise the damping."
    the_prediction = f"The predicted increase of {_in_digits(predicted)}"
    if interval is None:
        if doubt:
            return f"{the_prediction} is no forecast: {doubt}; {how_to_hold_back}."
        return f"{the_prediction} is not checked, as no sample was held back: {how_to_hold_back}."
    if not math.isfinite(interval.mean):
        on_them = f"on {interval.samples:,} samples held back the loss is not finite"
        return f"{the_prediction} does not hold: {on_them}."
    elsewhere = f"on other samples it is {interval}"
    if interval.refutes(predicted):
        return f"{the_prediction} does not hold: {elsewhere}."
    return f"{the_prediction} is no forecast: {doubt}; {elsewhere}." if doubt else ""


def _in_digits(number: float) -> str:
    """Three digits; a minus is no hyphen, which could be read as a range."""
    text = f"{number:.3g}"
    return f"−{text[1:]}" if text.startswith("-") else text


def _groups(dense: Objective, pruned: Objective, groups: Iterable[Batch]) -> Iterator[_Group]:
    """The losses of both networks on each group of samples."""
    generator = torch.Generator(dense.weights.device).manual_seed(0)
    with eval_mode(dense.model), eval_mode(pruned.model):
        for inputs, target in groups:
            if target is None:
                target = sampled(dense, inputs, None, generator)
            before = after = float(dense.batch_loss(dense.parameters, inputs, target))
            if pruned is not dense:
                after = float(pruned.batch_loss(pruned.parameters, inputs, target))
            yield _Group(samples_in(inputs), before, after)
