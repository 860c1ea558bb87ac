"""The order of numbers that lie with several ranks is that of one list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import on_ranks
from torch import Tensor

from woodbury.linalg.order_over_ranks import SortedParts, lowest_over_ranks
from woodbury.linalg.ranks import Ranks

BOUNDS = (0, 5, 5, 40)
"""Of three ranks; the second has nothing."""
SIZES = (17, 3, 20)
"""Of the lists, none of which begins where a rank does."""
COUNTS = (0, 1, 7, 20, 39, 40)
PLACES = ((0, 8, 16), (), (19,))


def values(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    normal = torch.randn(40, generator=generator, dtype=torch.float64)
    if kind == "ties":
        return (2 * normal).round()
    if kind == "signs":
        return torch.where(normal > 0, 0.0, -0.0)
    if kind == "extremes":
        return normal * 10 ** (250 * torch.rand(40, generator=generator, dtype=torch.float64))
    return normal.float()


KINDS = ("float32", "ties", "signs", "extremes")


def own_sizes(start: int, stop: int) -> list[int]:
    ends = torch.tensor(SIZES).cumsum(0)
    return [max(min(int(end), stop) - max(int(end) - size, start), 0)
            for end, size in zip(ends, SIZES, strict=True)]  # fmt: skip


def work(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with Ranks.of(None).started("an order") as ranks:
        start, stop = BOUNDS[rank], BOUNDS[rank + 1]
        for kind in KINDS:
            own = values(kind)[start:stop]
            ordered = SortedParts.of(own, own_sizes(start, stop), ranks)
            sent = ranks.traffic.sent
            lowest = [lowest_over_ranks(own, ordered, count) for count in COUNTS]
            found[kind] = lowest, ordered.at_each(PLACES), ranks.traffic.sent - sent
    return found


@pytest.fixture(scope="module")
def on_three(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(3, Path(tmp_path_factory.mktemp("order")), work)


@pytest.mark.parametrize("kind", KINDS)
def test_three_ranks_have_one_order(kind: str, on_three: list[dict[str, Any]]) -> None:
    numbers = values(kind)
    order = numbers.argsort(stable=True)  # equal ones in the order of their index
    for index, count in enumerate(COUNTS):
        found = torch.cat([one[kind][0][index] for one in on_three])
        expected = torch.zeros(40, dtype=torch.bool).index_fill_(0, order[:count], True)
        assert torch.equal(found, expected), count
    lists = [part.sort().values for part in numbers.split(SIZES)]
    for one in on_three:
        for part, places, got in zip(lists, PLACES, one[kind][1], strict=True):
            assert got == [float(part[place]) for place in places]


def test_what_is_sent_does_not_grow_with_the_numbers(on_three: list[dict[str, Any]]) -> None:
    """Of each bit of a number, one count for each place."""
    for one in on_three:
        asked = len(COUNTS) + sum(map(len, PLACES))
        assert 0 < one["float32"][2] < asked * 34 * 3 * 8 * 2
