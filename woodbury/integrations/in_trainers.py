"""What the callbacks of all trainers share: when they prune, on which samples, what they log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import signature
from itertools import islice
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, IterableDataset, Subset

from woodbury.errors import WoodburyError, WrongType, check_whole_number, user_code
from woodbury.model.batches import Batch
from woodbury.model.random_numbers import seeded_everywhere
from woodbury.pruning.presets import standard
from woodbury.training.calibration import samples_needed
from woodbury.training.gradual import Gradual

Moment = int | float
"""A step of the optimizer, or a fraction of the training: 1.0 is its end."""

OWN = ("self", "model", "optimizer", "batches", "sparsity", "start", "end", "every", "steps")
"""Arguments of `Gradual` that a callback gives by itself."""


@dataclass(frozen=True)
class Schedule:
    """When a callback prunes.

    Attributes:
        start: The first optimizer step after which to prune, or the fraction of the training.
        end: The last one, likewise.
        steps: How many pruning steps there are in all.

    Raises:
        WrongType: If one is no number.
        WoodburyError: If a fraction is not in [0, 1].
    """

    start: Moment
    end: Moment
    steps: int

    def __post_init__(self) -> None:
        check_whole_number(self.steps, "steps", "the number of pruning steps")
        for name in ("start", "end"):
            moment = getattr(self, name)
            if isinstance(moment, Integral) and not isinstance(moment, bool):
                check_whole_number(moment, name, "a step of the optimizer, from 1")
            elif isinstance(moment, bool) or not isinstance(moment, Real):
                raise WrongType(f"{name} is {moment!r}: give a step, or a fraction such as 0.5.")
            elif not 0 <= float(moment) <= 1:
                raise WoodburyError(
                    f"{name} is {moment}: a fraction of the training is from 0 to 1, and a step is "
                    "a whole number."
                )

    def within(self, total: float) -> dict[str, int]:
        """The schedule in optimizer steps.

        Args:
            total: Optimizer steps of the whole training; infinite if nobody knows.

        Returns:
            `start`, `end` and `steps` as `Gradual` takes them.

        Raises:
            WoodburyError: If the training is too short, or its length is not known.

        Example:
            >>> Schedule(0.1, 0.5, steps=3).within(100)
            {'start': 10, 'end': 50, 'steps': 3}
        """
        start, end = (self._step(name, total) for name in ("start", "end"))
        if end > total:
            raise WoodburyError(
                f"The last pruning step is after step {end}, and the training has {int(total)}: "
                "give an earlier end."
            )
        return {"start": start, "end": end, "steps": self.steps}

    def _step(self, name: str, total: float) -> int:
        moment = getattr(self, name)
        if isinstance(moment, Integral):
            return int(moment)
        if total == float("inf"):
            raise WoodburyError(
                f"{name} is the fraction {moment} of a training without an end: give steps."
            )
        return max(1, round(float(moment) * total))


def check_options(options: Mapping[str, Any], owner: str) -> None:
    """Raise for an option that `Gradual` does not take, hours before it is made.

    Args:
        options: Name -> value.
        owner: Who was given them.

    Raises:
        WrongType: If there is no such option; it names the nearest.
    """
    known = [name for name in signature(Gradual.__init__).parameters if name not in OWN]
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, 1) or known[:1]
            raise WrongType(f"{owner} has no option {name!r}: did you mean {near[0]!r}?")


@dataclass(frozen=True)
class TrainingSamples:
    """Calibration samples from a trainer's own data: others for each pruning step.

    Called with an optimizer step, it gives batches that depend on that step alone, so that a
    resumed run and all ranks have the same. The trainer's sampler and its random numbers are left
    alone.

    Attributes:
        loader: The trainer's loader, of whose data set and collation the samples are made.
        batch_size: Samples of a batch.
        samples: How many, or all if there are fewer.
        split: A batch of the loader -> (inputs, target).
        model: On whose device the batches are put.
    """

    loader: DataLoader
    batch_size: int
    samples: int
    split: Callable[[Any], Any]
    model: nn.Module

    def __call__(self, step: int) -> Placed:
        """The batches for an optimizer step."""
        with seeded_everywhere(step), user_code("The training data cannot be read."):
            batches = [self.split(batch) for batch in self._read(step)]
        return Placed(batches, next(self.model.parameters()).device)

    def _read(self, step: int) -> Iterator[Any]:
        data: Any = self.loader.dataset
        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "collate_fn": self.loader.collate_fn,
        }
        if isinstance(data, IterableDataset):
            first = list(islice(data, self.samples))
            return iter(DataLoader(first, **options))  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(step)
        drawn = torch.randperm(len(data), generator=generator)[: self.samples]
        return iter(DataLoader(Subset(data, drawn.tolist()), **options))


@dataclass(frozen=True)
class Placed:
    """Batches that are put on a device as they are read.

    Attributes:
        batches: (inputs, target), in memory.
        device: Where they are put.
    """

    batches: list[Batch]
    device: torch.device

    def __iter__(self) -> Iterator[Batch]:
        """Each batch on the device."""
        for batch in self.batches:
            yield tree_map(
                lambda leaf: leaf.to(self.device) if isinstance(leaf, Tensor) else leaf, batch
            )


def calibration_samples(pruner: Any) -> int:
    """How many samples a pruning step reads, as far as the pruner says.

    Args:
        pruner: As for `Gradual`; None for its default.

    Returns:
        Its count, or that of `prune` at its standard effort.
    """
    return standard.samples if pruner is None else samples_needed(pruner)


def last_step_in_numbers(gradual: Gradual) -> dict[str, float]:
    """What the last pruning step did, as trainers log it.

    Args:
        gradual: After at least one pruning step.

    Returns:
        `sparsity`, and `predicted_loss`, the predicted increase of the loss, where there is one;
        `held_back_loss`, `held_back_loss_low` and `held_back_loss_high`, the increase on samples
        held back and the ends of its interval, where there were some.
    """
    done = gradual.history[-1]
    numbers = {"sparsity": done.sparsity}
    if done.predicted is not None:
        numbers["predicted_loss"] = done.predicted
    if (interval := done.predicted_interval) is not None:
        numbers["held_back_loss"] = interval.mean
        numbers["held_back_loss_low"] = interval.low
        numbers["held_back_loss_high"] = interval.high
    return numbers
