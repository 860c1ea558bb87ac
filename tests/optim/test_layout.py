"""Partitions, and where the weights of an optimizer lie in its vector."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from woodbury.errors import WoodburyError, WrongType
from woodbury.optim import Partition, blocks, per_group, per_parameter, whole
from woodbury.optim.layout import Layout, ParameterSlice


def test_a_mask_follows_its_parameter_to_another_device() -> None:
    part = ParameterSlice(
        nn.Parameter(torch.ones(5, device="meta")), 0, torch.tensor([0, 3]), slice(0, 2)
    )
    assert part.gather(torch.ones(5, device="meta")).shape == (2,)
    assert part.scatter(torch.ones(2, device="meta")).shape == (5,)


def test_scatter_is_the_inverse_of_gather() -> None:
    parameter = nn.Parameter(torch.arange(6.0).view(2, 3))
    part = ParameterSlice(parameter, 0, torch.tensor([0, 4]), slice(0, 2))
    assert part.gather(parameter).tolist() == [0.0, 4.0]
    assert part.scatter(torch.tensor([7.0, 8.0])).tolist() == [[7.0, 0.0, 0.0], [0.0, 8.0, 0.0]]


SIZES = [[20, 5], [15, 3]]


@pytest.mark.parametrize(
    ("partition", "windows"),
    [
        (whole, [43]),
        (per_group, [25, 18]),
        (per_parameter, [20, 5, 15, 3]),
        (blocks(20), [20, 20, 3]),
        (blocks(50), [43]),
    ],
)
def test_partitions_tile_the_weights(partition: Partition, windows: list[int]) -> None:
    assert partition(SIZES) == windows
    assert pickle.loads(pickle.dumps(partition)) == partition


def test_blocks_are_values() -> None:
    assert blocks(7) == blocks(7) != blocks(8)
    assert repr(blocks(7)) == "blocks(size=7)"


def test_blocks_of_no_weight_are_refused() -> None:
    with pytest.raises(WoodburyError, match=r"size is 0: .* at least 1"):
        blocks(0)
    with pytest.raises(WrongType, match=r"size is 2\.5"):
        blocks(2.5)  # type: ignore[arg-type]


def test_windows_that_do_not_tile_the_vector_are_refused() -> None:
    layout = Layout.of([{"params": [nn.Parameter(torch.ones(2, 3))]}], {})
    assert layout.window_spans(blocks(4)) == [slice(0, 4), slice(4, 6)]
    for sizes in ([3], [7, -1]):
        with pytest.raises(WoodburyError, match="tile"):
            layout.window_spans(lambda _, sizes=sizes: sizes)
