"""Numbers in their order where several ranks have them: no rank holds or sees all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from woodbury.linalg.ranks import Ranks

BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
"""Whole numbers of the same width."""


@dataclass(frozen=True, eq=False)
class SortedParts:
    """This rank's numbers of several lists, each sorted.

    Attributes:
        parts: One for each list; a rank may have none of a list.
        dtype: Of the numbers, float32 or float64.
        ranks: Who has the rest of the lists.

    Example:
        >>> numbers = SortedParts.of(torch.tensor([3.0, 1.0, 2.0, 9.0]), [3, 1], Ranks())
        >>> numbers.at(2), numbers.at_each([[0, 2], []])
        (3.0, [[1.0, 3.0], []])
    """

    parts: tuple[np.ndarray, ...]
    dtype: torch.dtype
    ranks: Ranks

    @classmethod
    def of(cls, values: Tensor, sizes: Sequence[int], ranks: Ranks) -> SortedParts:
        """Sort this rank's numbers; they are copied once.

        Args:
            values: (k,), finite, list after list.
            sizes: How many of each list this rank has; Σ = k.
            ranks: Who has the rest.
        """
        copied = values.cpu().numpy().copy()
        parts = tuple(np.split(copied, np.cumsum(sizes)[:-1]))
        for part in parts:
            part.sort()
        return cls(parts, values.dtype, ranks)

    def at(self, place: int) -> float:
        """The number at a place of all lists together, in rising order and of all ranks."""
        parts = self.parts

        def count(limits: np.ndarray) -> np.ndarray:
            return sum((part.searchsorted(limits, "right") for part in parts), np.zeros(1, int))

        return float(self._found(count, [place])[0])

    def at_each(self, places: Sequence[Sequence[int]]) -> list[list[float]]:
        """The numbers at some places of each list, in rising order and of all ranks.

        Args:
            places: From 0, below the length of the list over all ranks.

        Returns:
            As many numbers for each list.
        """
        counts = [len(asked) for asked in places]
        cuts = np.cumsum(counts)[:-1]

        def count(limits: np.ndarray) -> np.ndarray:
            of_lists = zip(self.parts, np.split(limits, cuts), strict=True)
            return np.concatenate([part.searchsorted(own, "right") for part, own in of_lists])

        found = self._found(count, [place for asked in places for place in asked])
        return [part.tolist() for part in found.split(counts)]

    def _found(self, count: Callable[[np.ndarray], np.ndarray], places: Sequence[int]) -> Tensor:
        """The smallest numbers that more than so many are at most, by halving  (eq. 98).

        Args:
            count: (q,) limits -> how many of this rank's numbers are at most each.
            places: q of them.

        Returns:
            (q,): of each, the last bit is decided.
        """
        wanted = torch.tensor(places, dtype=torch.int64)
        low, high = (end.expand(len(wanted)) for end in self._ends())
        while bool((low < high).any()):
            middle = (low >> 1) + (high >> 1) + (low & high & 1)  # a sum could overflow
            own = torch.from_numpy(count(self._numbers(middle).numpy()))
            enough = self.ranks.sum(own) > wanted
            low, high = torch.where(enough, low, middle + 1), torch.where(enough, middle, high)
        return self._numbers(low) + 0.0  # without the sign of a zero

    def _ends(self) -> tuple[Tensor, Tensor]:
        """The keys of the least and the largest number of all ranks."""
        filled = [part for part in self.parts if len(part)]
        ends = torch.tensor([np.inf, -np.inf], dtype=self.dtype)
        if filled:
            least, most = min(part[0] for part in filled), max(part[-1] for part in filled)
            ends = torch.tensor([least, most], dtype=self.dtype)
        of_all = torch.stack(self.ranks.all_gather(ends))
        return self._keys(of_all[:, 0].min()), self._keys(of_all[:, 1].max())

    def _keys(self, numbers: Tensor) -> Tensor:
        """Whole numbers in the order of the numbers."""
        bits = numbers.view(BITS[self.dtype])
        return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits).long()

    def _numbers(self, keys: Tensor) -> Tensor:
        """The numbers of keys."""
        bits = keys.to(BITS[self.dtype])
        return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits).view(self.dtype)


def lowest_over_ranks(scores: Tensor, ordered: SortedParts, count: int) -> Tensor:
    """Which of this rank's numbers are among the lowest of all ranks  (eq. 98).

    Args:
        scores: (k,), this rank's; those of rank 0 come first, and so on.
        ordered: The same, sorted.
        count: How many of all ranks to take; equal ones in the order of their index.

    Returns:
        (k,) bool, `count` times True over all ranks.

    Example:
        >>> scores = torch.tensor([3.0, 1.0, 2.0, 1.0])
        >>> lowest_over_ranks(scores, SortedParts.of(scores, [4], Ranks()), 1)
        tensor([False,  True, False, False])
    """
    if not count:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = ordered.at(count - 1)
    lowest = scores < threshold
    equal = scores == threshold
    ranks = ordered.ranks
    own = torch.tensor([int(lowest.count_nonzero()), int(equal.count_nonzero())])
    counts = torch.stack(ranks.all_gather(own))
    left = count - int(counts[:, 0].sum()) - int(counts[: ranks.rank, 1].sum())
    return lowest.index_fill_(0, equal.nonzero()[:, 0][: max(left, 0)], True)
