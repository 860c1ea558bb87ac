"""Kernels in torch's own threads, memory of outputs that is used again, and max pooling."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import woodbury
from woodbury.runtime import buffers, jobs, layouts, products, team
from woodbury.runtime.layouts import Tiling
from woodbury.runtime.pooling import SeparableMaxPool2d, separated

pytest.importorskip("numba", reason="the sparse kernels need Numba")

FLOATS = 2 * buffers.LEAST


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def product(tokens: int) -> tuple[Tensor, Tensor]:
    """A sparse product, and its dense truth in float64."""
    torch.manual_seed(0)
    weight = torch.randn(300, 200) * (torch.rand(300, 200) < 0.1)
    inputs, bias = torch.randn(tokens, 200), torch.randn(300)
    found = products.times_tokens(layouts.pack(weight, bias, Tiling(2, 64)), inputs)
    return found, inputs.double() @ weight.double().T + bias.double()


@pytest.mark.parametrize("tokens", [1, 40, 700])
@pytest.mark.parametrize("in_team", [True, False], ids=["team", "pool"])
@pytest.mark.usefixtures("three_threads")
def test_several_threads_are_right_in_either_pool(
    tokens: int, in_team: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_team and team.team() is None:
        pytest.skip("this torch has no OpenMP")
    if not in_team:
        monkeypatch.setattr(jobs, "team", lambda: None)
    found, truth = product(tokens)
    assert float((found - truth).abs().max()) < 1e-5 * float(truth.abs().max())


@pytest.mark.usefixtures("three_threads")
def test_the_team_does_every_part_once_also_with_more_parts_than_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        jobs,
        "shares",
        lambda packed, units, threads: [(u, u + 1, 0, packed.outer) for u in range(units)],
    )
    found, truth = product(700)
    assert float((found - truth).abs().max()) < 1e-5 * float(truth.abs().max())


def test_a_forked_process_has_no_team(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "_forked", [True])
    assert team.team() is None


def test_memory_is_used_again_once_no_view_of_it_is_left() -> None:
    first = buffers.empty(2, FLOATS // 2)
    place = first.data_ptr()
    view = first[1:].view(-1)
    assert buffers.empty(FLOATS).data_ptr() != place
    del first
    gc.collect()
    view.fill_(7)
    others = [buffers.empty(FLOATS).fill_(0) for _ in range(3)]
    assert all(other.data_ptr() != place for other in others) and bool((view == 7).all())
    del view
    assert buffers.empty(FLOATS).data_ptr() == place


def test_outputs_that_the_user_keeps_are_not_written_over() -> None:
    layer = nn.Conv2d(8, 64, 3, padding=1).eval()
    with torch.no_grad():
        layer.weight.mul_(torch.rand_like(layer.weight) < 0.05)
    fast = woodbury.accelerate(layer, measure=False)
    images = [torch.randn(1, 8, 40, 40) for _ in range(4)]
    with torch.inference_mode():
        kept = [fast(image) for image in images]
        assert buffers.LEAST <= 64 * 40 * 40 and len({each.data_ptr() for each in kept}) == 4
        for image, each in zip(images, kept, strict=True):
            assert torch.allclose(each, layer(image), atol=1e-5)
    again = pickle.loads(pickle.dumps(kept[0].clone()))
    assert torch.equal(again, kept[0])


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_room", buffers._Room())
    monkeypatch.setattr(buffers, "MOST", 4 * FLOATS)
    held = [buffers.empty(FLOATS + size) for size in range(6)]
    assert buffers._room.floats <= buffers.MOST
    assert buffers._room.floats == sum(k * len(v) for k, v in buffers._room.arrays.items())
    assert len({each.data_ptr() for each in held}) == 6
    assert buffers.empty(5 * FLOATS).shape == (5 * FLOATS,)  # too large to be kept


def test_memory_begins_with_a_cache_line() -> None:
    assert all(buffers.empty(FLOATS + n).data_ptr() % 64 == 0 for n in range(3))


@pytest.mark.parametrize("kernel", [2, 3, (2, 3), 5])
@pytest.mark.parametrize("stride", [1, 2, (3, 1), None])
@pytest.mark.parametrize("padding", [0, 1])
def test_separable_pooling_gives_equal_bits(kernel, stride, padding) -> None:
    pool = nn.MaxPool2d(kernel, stride, padding)
    images = torch.randn(2, 3, 11, 9)
    images[0, 0, 3, 4], images[1, 2, 0, 0] = torch.nan, -torch.inf
    want = pool(images)
    assert separated(pool) == [pool] and isinstance(pool, SeparableMaxPool2d)
    assert torch.equal(pool(images).nan_to_num(99), want.nan_to_num(99))
    assert pool(images).is_contiguous()
    assert torch.equal(pool(images[0]).nan_to_num(99), want[0].nan_to_num(99))


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, return_indices=True),
        nn.MaxPool2d(2, dilation=2),
        nn.MaxPool1d(2),
    ],
)
def test_other_pooling_is_left_alone(pool: nn.Module) -> None:
    assert separated(nn.Sequential(pool)) == []


def test_pooling_without_room_for_a_window_is_refused_as_by_torch() -> None:
    pool = nn.MaxPool2d(3)
    separated(pool)
    with pytest.raises(RuntimeError, match="too small"):
        pool(torch.randn(1, 1, 2, 2))


def test_pooling_changes_with_sparse_layers_alone() -> None:
    dense: Any = woodbury.accelerate(nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2)))
    assert type(dense[1]) is nn.MaxPool2d
    layer = nn.Conv2d(1, 4, 3)
    nn.init.zeros_(layer.weight)
    model = nn.Sequential(layer, nn.MaxPool2d(2))
    sparse: Any = woodbury.accelerate(model, measure=False)
    assert type(sparse[1]) is SeparableMaxPool2d
    assert type(model[1]) is nn.MaxPool2d
