"""PeekingLoader: a stream of batches that shows what is trained on next."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from woodbury.errors import WoodburyError, WrongType
from woodbury.model.peeking import PeekingLoader, preserving_rng


def numbered(sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [
        (torch.arange(end - size, end), torch.zeros(size))
        for size, end in zip(sizes, ends, strict=True)
    ]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.integers(1, 12))
def test_all_batches_come_in_order_and_the_next_are_shown(sizes: list[int], samples: int) -> None:
    total = sum(sizes)
    loader = PeekingLoader(numbered(sizes), samples)
    assert int(loader()[0][0][0]) == 0  # asked before the training begins
    for _ in range(2):  # epochs
        seen = []
        for x, _ in loader:
            shown = torch.cat([inputs for inputs, _ in loader()])
            assert len(shown) >= min(samples, total)
            assert torch.equal(shown, shown[0] + torch.arange(len(shown)))
            assert shown[0] == x[-1] + 1 or shown[-1] == total - 1  # the next in line, or the last
            seen.append(x)
        assert torch.equal(torch.cat(seen), torch.arange(total))


def test_every_epoch_is_whole_and_has_its_own_order() -> None:
    shuffled = DataLoader(TensorDataset(torch.arange(24), torch.zeros(24)), 4, shuffle=True)
    torch.manual_seed(0)
    loader = PeekingLoader(shuffled, 8)
    with preserving_rng(loader):  # as Gradual asks it before the first pass
        loader()
    orders = []
    for _ in range(3):
        # The range ends first: a pass is left after its last batch.
        orders.append([batch[0].tolist() for batch, _ in zip(loader, range(6), strict=False)])
        with preserving_rng(loader):
            torch.rand(5)
    for order in orders:
        assert sorted(number for batch in order for number in batch) == list(range(24))
    assert orders[0] != orders[1] != orders[2]


def test_no_more_is_read_than_must_be_and_a_pass_that_was_left_goes_on() -> None:
    stream = iter(numbered([2] * 20))
    loader = PeekingLoader(stream, 6)
    first = [int(x[0]) for (x, _), _ in zip(loader, range(3), strict=False)]
    assert first == [0, 2, 4]
    assert int(next(stream)[0][0]) == 14  # one more was taken by zip, three are waiting
    assert int(next(iter(loader))[0][0]) == 8  # the pass goes on


def test_what_shows_no_samples_is_refused() -> None:
    with pytest.raises(WoodburyError, match="at least 1"):
        PeekingLoader([], 0)
    with pytest.raises(WrongType, match=r"samples is 2\.5"):
        PeekingLoader([], 2.5)  # type: ignore[arg-type]
    with pytest.raises(WoodburyError, match="no batches"):
        PeekingLoader([], 4)()
