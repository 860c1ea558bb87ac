"""The samples that the curvature is taken on while a model trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from woodbury.errors import WoodburyError
from woodbury.objective import Batch, samples_in

Calibration = Iterable[Batch] | Callable[[int], Iterable[Batch]]
"""Re-iterable (inputs, target), or optimizer step -> such batches, for fresh samples each time."""


def at_step(calibration: Calibration, step: int) -> Iterable[Batch]:
    """The batches for one optimizer step."""
    return calibration(step) if callable(calibration) else calibration


class Ahead:
    """A stream of batches that shows what is coming: iterate over it to train, call it for the samples next in line.

    So curvature is taken on the very samples that the training is about to see, and no others are looked at. batches: the
    stream, a DataLoader or an iterator without end; samples: how many are read ahead, and at least as many are shown
    whenever the stream has them: its last ones at its end. A pass that was left in the middle goes on where it was.
    """

    def __init__(self, batches: Iterable[Batch], samples: int) -> None:
        if not isinstance(samples, int) or samples < 1:
            raise WoodburyError(f"Ahead got samples={samples}: give a whole number of at least 1.")
        self.batches, self.samples = batches, samples
        self._source: Iterator[Batch] | None = None
        self._turned = True
        self._waiting: deque[Batch] = deque()
        self._shown: deque[Batch] = deque()

    def __iter__(self) -> Iterator[Batch]:
        self._read()
        while self._waiting:
            batch = self._waiting.popleft()
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
        if self._source is None:
            self._source, self._turned = iter(self.batches), True
        while _count(self._waiting) < self.samples and (batch := next(self._source, None)) is not None:
            if self._turned:  # what the pass before has shown last is shown until another begins
                self._shown.clear()
            self._turned = False
            self._waiting.append(batch)
            self._shown.append(batch)
        while len(self._shown) > len(self._waiting) and _count(list(self._shown)[1:]) >= self.samples:
            self._shown.popleft()


def _count(batches: Iterable[Batch]) -> int:
    return sum(samples_in(inputs) for inputs, _ in batches)
