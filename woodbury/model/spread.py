"""Spread: how the samples of a data set lie with the ranks that share a computation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from woodbury.errors import RankError
from woodbury.io.fingerprint import digest
from woodbury.linalg.ranks import Ranks

RUN = 4
"""Samples that are dealt to a rank one after the other; random numbers are drawn for so many."""


@dataclass(frozen=True)
class Spread:
    """How samples lie with the ranks: sample i belongs to rank (i ÷ run) mod ranks.

    Attributes:
        run: Samples in a row that belong to one rank.
        is_dealt: Whether every rank reads all samples and takes its own out of them; else it reads
            no others.
        entries: How many entries of the data set come of one sample, one after the other.
    """

    run: int = RUN
    is_dealt: bool = True
    entries: int = 1

    @property
    def read(self) -> Spread:
        """That of samples that were read by it: a rank's own."""
        return replace(self, is_dealt=False)

    def own(self, count: int) -> int:
        """How many of the first `count` entries of all ranks are this rank's."""
        ranks = Ranks.current()
        samples, rest = divmod(count, self.entries)
        is_mine = samples // self.run % ranks.size == ranks.rank
        return self.entries * ranks.share(samples, self.run) + is_mine * rest

    def own_indices(self, first: int, count: int) -> list[int]:
        """Which samples of a batch are this rank's.

        Args:
            first: The number of the batch's first sample.
            count: How many it has.
        """
        ranks = Ranks.current()
        mine = range(first, first + count)
        return [i - first for i in mine if i // self.run % ranks.size == ranks.rank]


DEALT = Spread()
"""The same data on every rank, dealt out."""


def spread_of(batches: Iterable[Any]) -> Spread:
    """How a data set lies with the ranks, by its first samples on each.

    Args:
        batches: Pairs (inputs, target). The same data everywhere is dealt out; other data on each
            rank, as a DistributedSampler gives, is each rank's own.

    Raises:
        RankError: If some ranks have the same first samples and others do not.
    """
    ranks = Ranks.current()
    if ranks.size == 1:
        return Spread()
    marks = ranks.all_gather_objects(digest(next(iter(batches), None)))
    different = len(set(marks))
    if different == 1:
        return Spread()
    if different == ranks.size:
        return Spread(run=1, is_dealt=False)
    raise RankError(
        "Some ranks read the same first batch and others do not: give all ranks the same data, or "
        "each its own share, such as by a DistributedSampler."
    )


def per_run(generator: torch.Generator, first: int) -> torch.Generator:
    """The generator that random numbers of some own samples are drawn by.

    Among ranks it depends on the samples alone, so that any number of ranks draws the same.

    Args:
        generator: That of all samples, which a process alone draws by.
        first: How many samples of this rank came before.
    """
    ranks = Ranks.current()
    if ranks.is_alone:
        return generator
    run = first // RUN * ranks.size + ranks.rank
    mixed = hashlib.sha256(f"{generator.initial_seed()} {run}".encode()).digest()
    return torch.Generator(generator.device).manual_seed(int.from_bytes(mixed[:7], "big"))


def whole_runs(samples: int) -> int:
    """So many samples or a few less, so that no run is cut; a process alone has no runs."""
    return samples if Ranks.current().is_alone else max(RUN, samples - samples % RUN)


def runs_of(first: int, count: int) -> Iterator[slice]:
    """Where the runs of some own samples lie among them; a process alone takes them as one.

    Args:
        first: How many samples of this rank came before.
        count: How many there are.
    """
    if Ranks.current().is_alone:
        yield slice(0, count)
        return
    start = 0
    while start < count:
        stop = min(count, start + RUN - (first + start) % RUN)
        yield slice(start, stop)
        start = stop


def drawn_at_once(samples: int) -> int:
    """Of how many samples random numbers may be drawn together, where a process takes `samples`."""
    return samples if Ranks.current().is_alone else min(samples, RUN)
