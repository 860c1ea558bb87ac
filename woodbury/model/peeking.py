"""Calibration samples for the curvature that is estimated while a model trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, WrongType, check_whole_number
from woodbury.model.batches import Batch, checked, samples_in
from woodbury.model.random_numbers import random_kept

Calibration = Iterable[Batch] | Callable[[int], Iterable[Batch]]
"""The calibration set: batches (inputs, target) that can be iterated over again and again.

Or a function, optimizer step -> such batches, for fresh samples each time."""


def batches_for_step(calibration: Calibration, step: int) -> Iterable[Batch]:
    """The calibration batches for one optimizer step.

    Args:
        calibration: Batches, or step -> batches.
        step: How many steps the optimizer has made.

    Returns:
        The batches, the same ones for every step unless `calibration` is a function.

    Raises:
        WrongType: If it is a model.
    """
    if isinstance(calibration, nn.Module):
        raise WrongType(
            f"calibration is a {type(calibration).__name__}: give batches, or step -> batches."
        )
    return calibration(step) if callable(calibration) else calibration


@contextmanager
def preserving_rng(calibration: Calibration) -> Iterator[None]:
    """A context that leaves the random numbers of torch, NumPy and Python as it found them.

    A loader that shuffles draws from them, and the training loop would see another order. A
    `PeekingLoader` reads ahead before they are set aside, as what it draws belongs to the loop.

    Args:
        calibration: What is iterated over in the context.
    """
    if isinstance(calibration, PeekingLoader):
        calibration()
    with random_kept():
        yield


class PeekingLoader:
    """A stream of batches that can be asked for the next samples before they are trained on.

    Iterate over it to train; call it for the batches that come next. Curvature is then estimated on
    the samples that training is about to see, and on no others. It is a peekable iterator (as
    `more_itertools.peekable`) that counts samples, may be iterated over for many epochs, and never
    shows less than asked for: at the end of the stream it shows the last batches once more. A pass
    that was left in the middle goes on where it was.

    Args:
        batches: The stream of (inputs, target): a DataLoader, or an iterator without end.
        samples: Samples that are read ahead, and the least number that a call shows, if the stream
            has as many.

    Attributes:
        batches: As given.
        samples: As given.

    Raises:
        WrongType: If `samples` is no whole number.
        WoodburyError: If `samples` is below 1, or the stream has no batches when they are asked
            for.

    Example:
        >>> import torch
        >>> import woodbury
        >>> batches = [(torch.tensor([i]), torch.tensor([0])) for i in range(4)]
        >>> loader = woodbury.PeekingLoader(batches, samples=2)
        >>> for inputs, target in loader:
        ...     print(int(inputs), [int(upcoming) for upcoming, _ in loader()])
        0 [1, 2]
        1 [2, 3]
        2 [2, 3]
        3 [2, 3]
    """

    @checks_types
    def __init__(self, batches: Iterable[Batch], samples: int) -> None:
        check_whole_number(samples, "samples", "the number of samples to read ahead")
        self.batches = batches
        self.samples = samples
        self._source: Iterator[Batch] | None = None  # of the pass that goes on, if one does
        self._waiting = _Queue()  # read ahead, not trained on yet
        self._trained = _Queue()  # trained on, and still shown where too few are waiting

    def __iter__(self) -> Iterator[Batch]:
        """The batches in order: those waiting, then the rest of the pass."""
        if self._source is not None and not self._waiting.batches:
            self._source = None  # the pass before was left after its last batch: begin another
        self._read_ahead()
        while self._waiting.batches:
            batch = self._waiting.pop()
            self._trained.push(batch)
            self._read_ahead()  # before the loop has the batch: it may ask for the next at once
            yield batch
        self._source = None

    def __call__(self, step: int = 0) -> list[Batch]:
        """The batches that come next; at the end of the stream the last ones.

        Args:
            step: Not used: with it the loader is a function of the step, as `Gradual` and
                `Preconditioner` take one for their calibration set.

        Returns:
            Batches of at least `samples` samples in all, if the stream has as many.

        Raises:
            WoodburyError: If the stream has no batches.
        """
        self._read_ahead()
        shown = [*self._trained.batches, *self._waiting.batches]
        if not shown:
            raise WoodburyError("The stream has no batches: give one that does.")
        return shown

    def _read_ahead(self) -> None:
        """Read until enough samples are waiting; forget what need not be shown any more."""
        begins = self._source is None
        source = iter(checked(self.batches)) if self._source is None else self._source
        self._source = source
        while self._waiting.samples < self.samples:
            batch = next(source, None)
            if batch is None:
                break
            if begins:  # only now: an exhausted stream goes on showing its last batches
                self._trained = _Queue()
                begins = False
            self._waiting.push(batch)
        while self._trained.batches:
            rest = self._trained.samples - samples_in(self._trained.batches[0][0])
            if rest + self._waiting.samples < self.samples:
                break
            self._trained.pop()


class _Queue:
    """Batches, first in, first out, and how many samples they hold."""

    def __init__(self) -> None:
        self.batches: deque[Batch] = deque()
        self.samples = 0

    def push(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.samples += samples_in(batch[0])

    def pop(self) -> Batch:
        batch = self.batches.popleft()
        self.samples -= samples_in(batch[0])
        return batch
