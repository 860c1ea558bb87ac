"""The samples that the curvature is taken on while a model trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch

from woodbury.errors import WoodburyError
from woodbury.model.batches import Batch, checked, samples_in

Calibration = Iterable[Batch] | Callable[[int], Iterable[Batch]]
"""Re-iterable (inputs, target), or optimizer step -> such batches, for fresh samples each time."""


def batches_for_step(calibration: Calibration, step: int) -> Iterable[Batch]:
    """The batches for one optimizer step."""
    return calibration(step) if callable(calibration) else calibration


@contextmanager
def preserving_rng(calibration: Calibration) -> Iterator[None]:
    """The loop's random numbers stay what they were, as a shuffling loader draws from them; an `Ahead` is the loop's own."""
    if isinstance(calibration, PeekingLoader):
        calibration()
    with torch.random.fork_rng(devices=[]):
        yield


class PeekingLoader:
    """A stream of batches that shows what is coming: iterate over it to train, call it for the samples next in line.

    So curvature is taken on the very samples that the training is about to see, and no others are looked at. batches: the
    stream, a DataLoader or an iterator without end; samples: how many are read ahead, and at least as many are shown
    whenever the stream has them: its last ones at its end. A pass that was left in the middle goes on where it was.
    """

    def __init__(self, batches: Iterable[Batch], samples: int) -> None:
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise WoodburyError(f"Ahead got samples={samples}: give a whole number of at least 1.")
        self.batches, self.samples = batches, samples
        self._source: Iterator[Batch] | None = None
        self._shown: deque[Batch] = deque()  # the last of them are waiting to be trained on
        self._waiting = self._samples_shown = self._samples_waiting = 0

    def __iter__(self) -> Iterator[Batch]:
        if (
            self._source is not None and not self._waiting
        ):  # a pass that was left after its last batch
            self._source = None
        self._read()
        while self._waiting:
            batch = self._shown[-self._waiting]
            self._waiting -= 1
            self._samples_waiting -= samples_in(batch[0])
            self._read()
            yield batch
        self._source = None

    def __call__(self, step: int = 0) -> list[Batch]:
        """The batches next in line, whatever the step: `Gradual` and `Preconditioner` take this object as it is."""
        self._read()
        if not self._shown:
            raise WoodburyError("The stream has no batches: give one that does.")
        return list(self._shown)

    def _read(self) -> None:
        begun = self._source is not None
        self._source = self._source or iter(checked(self.batches))
        while (
            self._samples_waiting < self.samples and (batch := next(self._source, None)) is not None
        ):
            if not begun:  # what the pass before has shown last is shown until another begins
                self._shown.clear()
                self._samples_shown, begun = 0, True
            self._shown.append(batch)
            self._waiting += 1
            self._samples_shown += samples_in(batch[0])
            self._samples_waiting += samples_in(batch[0])
        while len(self._shown) > self._waiting:
            first = samples_in(self._shown[0][0])
            if self._samples_shown - first < self.samples:
                break
            self._shown.popleft()
            self._samples_shown -= first
