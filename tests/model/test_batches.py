"""Samples: batches that are checked while they are read, and regrouped."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.random import normal
from torch import Tensor, nn

from woodbury.errors import WoodburyError, WrongType
from woodbury.estimation.gradients import gradient_rows
from woodbury.model.batches import (
    Batch,
    Samples,
    check_enough_data,
    checked,
    samples_in,
    tensors_in,
)
from woodbury.model.calling import call_model
from woodbury.model.likelihood import Likelihood
from woodbury.model.objective import Objective


@given(
    sizes=st.lists(st.integers(1, 7), max_size=6),
    size=st.integers(1, 9),
    most=st.none() | st.integers(1, 40),
)
def test_in_batches_keeps_every_sample_in_order(
    sizes: list[int], size: int, most: int | None
) -> None:
    total = sum(sizes)
    numbers = list(torch.arange(total).split(sizes)) if sizes else []
    batches = [({"x": part, "y": (part[:, None], "same")}, None) for part in numbers]
    found = list(Samples(batches).in_batches(size, most))
    wanted = total if most is None else min(total, most)
    assert [len(inputs["x"]) for inputs, _ in found] == [size] * (wanted // size) + [
        wanted % size
    ] * bool(wanted % size)
    if found:
        assert torch.cat([inputs["x"] for inputs, _ in found]).tolist() == list(range(wanted))
        assert torch.cat([inputs["y"][0] for inputs, _ in found])[:, 0].tolist() == list(
            range(wanted)
        )
    assert all(target is None for _, target in found)


def test_in_batches_reads_no_further_than_needed() -> None:
    class Batches:
        def __iter__(self) -> Iterator[Batch]:
            yield torch.zeros(3), None
            yield torch.zeros(3), None
            raise AssertionError("a third batch was read")

    assert [len(inputs) for inputs, _ in Samples(Batches()).in_batches(4, 6)] == [4, 2]


def test_a_tensor_that_is_not_per_sample_is_named() -> None:
    batch = ({"x": torch.randn(5, 4), "mask": torch.ones(4, 4)}, torch.zeros(5, dtype=torch.int64))
    with pytest.raises(WoodburyError, match=r"an input of shape \(4, 4\)"):
        list(checked([batch]))


def test_samples_are_wrapped_once() -> None:
    samples = Samples([(torch.zeros(3, 4), None)])
    assert Samples.of(samples) is samples
    objective = Objective.from_model(nn.Linear(4, 2), samples)
    assert objective.batches is samples
    assert objective.at(0 * objective.weights).batches is samples


@pytest.mark.parametrize("batches", [iter([]), (batch for batch in [])])
def test_what_can_be_read_only_once_is_refused(batches: Any) -> None:
    with pytest.raises(WoodburyError, match=r"read only once: give a list or a DataLoader"):
        Samples(batches)


def test_what_cannot_be_read_is_a_wrong_type() -> None:
    with pytest.raises(WrongType, match="batches is a int: give a list or a DataLoader of pairs"):
        list(Samples(5))  # type: ignore[arg-type]


def test_samples_are_checked_each_time_they_are_read() -> None:
    samples = Samples([(torch.zeros(2), None), torch.zeros(2)])  # type: ignore[list-item]
    for _ in range(2):
        with pytest.raises(WoodburyError, match="Batch 1 is a Tensor, not a pair"):
            list(samples)
    assert [len(inputs) for inputs, _ in samples.in_batches(1, 2)] == [1, 1]  # not read so far
    assert len(list(Samples(samples.batches, trusted=True))) == 2


def test_a_stream_is_checked_too() -> None:
    encoding = UserDict({"words": torch.zeros(2, 3)})
    stream = checked(batch for batch in [(encoding, None)])
    assert type(next(stream)[0]) is dict


@pytest.mark.parametrize("limit", [None, 1, 3, 4, 7, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_batches_end_before_samples_of_another_shape(size: int, limit: int | None) -> None:
    lengths = [2, 2, 5, 5, 5, 2]
    samples = Samples([(normal(1, length), None) for length in lengths])
    result = list(samples.in_batches(size, limit))
    seen = [inputs.shape[1] for inputs, _ in result for _ in inputs]
    assert seen == lengths[:limit]
    expected = []  # none is shorter than it need be
    for _, run in groupby(lengths[:limit]):
        whole, rest = divmod(len(list(run)), size)
        expected += [size] * whole + [rest] * (rest > 0)
    assert [len(inputs) for inputs, _ in result] == expected


def test_batches_without_samples_are_left_out() -> None:
    empty = torch.zeros(0, 4)
    samples = Samples([(empty, None), (torch.zeros(3, 4), None), (empty, None)])
    assert [len(inputs) for inputs, _ in samples.in_batches(2)] == [2, 1]
    assert not list(Samples([(empty, None)]).in_batches(2))


class Sum(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        return a if b is None else a - b


@pytest.mark.parametrize(
    "inputs",
    [
        (torch.tensor(5.0), torch.tensor(3.0)),
        [torch.tensor(5.0), torch.tensor(3.0)],
        {"b": torch.tensor(3.0), "a": torch.tensor(5.0)},
        UserDict({"b": torch.tensor(3.0), "a": torch.tensor(5.0)}),
    ],
    ids=lambda inputs: type(inputs).__name__,
)
def test_a_model_is_called_by_position_or_by_name(inputs: Any) -> None:
    assert call_model(Sum(), inputs) == 2
    assert call_model(Sum(), inputs, {}) == 2
    assert call_model(Sum(), torch.tensor(5.0)) == 5


def test_a_model_is_called_with_other_parameters() -> None:
    model = nn.Linear(1, 1)
    other = {"weight": torch.tensor([[2.0]]), "bias": torch.tensor([1.0])}
    assert call_model(model, torch.tensor([3.0]), other) == 7


def test_samples_are_counted_along_the_first_tensor() -> None:
    assert samples_in(("words", torch.zeros(3, 2))) == 3
    with pytest.raises(WoodburyError, match=r"hold no tensor \(str\)"):
        samples_in("words")


def test_tensors_are_found_in_containers_of_every_kind() -> None:
    a, b = torch.zeros(1), torch.zeros(2)
    assert [len(tensor) for tensor in tensors_in(UserDict({"x": a, "y": (b, "word", None)}))] == [
        1,
        2,
    ]
    assert tensors_in("word") == []


def test_too_little_data_is_named() -> None:
    check_enough_data(3, 3)
    with pytest.raises(WoodburyError, match="gave 2 of the 3 rows: give more data or ask for less"):
        check_enough_data(2, 3, "rows")


def boxes(counts: list[int]) -> list[dict[str, Tensor]]:
    return [{"boxes": torch.full((count, 4), float(count))} for count in counts]


def test_a_list_of_one_entry_per_sample_is_cut_and_joined() -> None:
    # Two batches, the second of which could be read as four tensors of four samples.
    batches = [(torch.arange(3.0), boxes([1, 5, 2])), (torch.arange(3.0, 7.0), boxes([4] * 4))]
    regrouped = list(Samples(batches).in_batches(2))
    values = [inputs.tolist() for inputs, _ in regrouped]
    counts = [[len(entry["boxes"]) for entry in target] for _, target in regrouped]
    assert values == [[0, 1], [2, 3], [4, 5], [6]]
    assert counts == [[1, 5], [2, 4], [4, 4], [4]]


def test_strings_beside_a_tensor() -> None:
    batch = ({"x": torch.arange(3), "ids": ["a", "b", "c"]}, None)
    (first, _), _ = Samples([batch]).in_batches(2)
    assert first["ids"] == ["a", "b"]


def test_targets_that_cannot_be_cut_are_refused() -> None:
    labels = (torch.arange(9), torch.tensor([2, 3, 4]))  # as for CTC: all in one row, and lengths
    with pytest.raises(WoodburyError, match=r"labels of shape \(9,\): give one label per sample"):
        list(Samples([(torch.zeros(3, 2), labels)]))


def test_rows_of_lists_are_those_of_single_samples() -> None:
    def loss(output: Tensor, target: list[dict[str, Tensor]]) -> Tensor:
        pairs = zip(output, target, strict=True)
        return torch.stack([(row - one["boxes"]).square().mean() for row, one in pairs]).mean()

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 4)
    batches = [(torch.randn(4, 3), boxes([1, 2, 3, 2])), (torch.randn(4, 3), boxes([4] * 4))]
    objective = Objective.from_model(model, batches, Likelihood(loss))
    rows = gradient_rows(objective, 8)
    for index, row in enumerate(rows):
        inputs, target = batches[index // 4]
        at = slice(index % 4, index % 4 + 1)
        slopes = torch.autograd.grad(loss(model(inputs[at]), target[at]), list(model.parameters()))
        torch.testing.assert_close(row, torch.cat([slope.flatten() for slope in slopes]))
