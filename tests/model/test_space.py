"""ParameterSpace: round trips between named tensors and one vector."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.model.space import ParameterSpace

SHAPES = st.lists(
    st.lists(st.integers(1, 4), min_size=1, max_size=3).map(torch.Size), min_size=1, max_size=4
)


@st.composite
def spaces(draw: st.DrawFn) -> ParameterSpace:
    space = ParameterSpace({f"p{i}": shape for i, shape in enumerate(draw(SHAPES))})
    for _ in range(draw(st.integers(0, 2))):
        space = space.restrict(
            torch.tensor(draw(st.lists(st.booleans(), min_size=space.d, max_size=space.d))).bool()
        )
    return space


def numbers(space: ParameterSpace, *lead: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(*lead, *shape, generator=generator)
        for name, shape in space.shapes.items()
    }


@given(space=spaces())
def test_flatten_and_unflatten_are_inverse_on_the_weights_left(space: ParameterSpace) -> None:
    tensors, keep = numbers(space), space.keep
    plain = torch.cat([tensor.flatten() for tensor in tensors.values()])
    vector = space.flatten(tensors)
    assert torch.equal(vector, plain[keep])
    assert torch.equal(space.expand(vector), plain * keep)
    back = space.unflatten(vector)
    assert {name: tensor.shape for name, tensor in back.items()} == dict(space.shapes)
    assert torch.equal(torch.cat([tensor.flatten() for tensor in back.values()]), plain * keep)
    assert torch.equal(space.flatten(back), vector)
    assert (space.n, space.d) == (len(plain), int(keep.sum()))
    assert space.sparsity == pytest.approx(1 - space.d / space.n)


@given(space=spaces(), lead=st.lists(st.integers(1, 3), min_size=1, max_size=2))
def test_leading_dimensions_are_carried_along(space: ParameterSpace, lead: list[int]) -> None:
    tensors = numbers(space, *lead)
    found = space.flatten(tensors)
    assert found.shape == (*lead, space.d)
    first = space.flatten({name: tensor[(0,) * len(lead)] for name, tensor in tensors.items()})
    assert torch.equal(found[(0,) * len(lead)], first)


@given(space=spaces(), data=st.data())
def test_restrictions_compose(space: ParameterSpace, data: st.DataObject) -> None:
    keep = torch.tensor(
        data.draw(st.lists(st.booleans(), min_size=space.d, max_size=space.d))
    ).bool()
    before, vector = space.keep.clone(), torch.arange(1.0, space.d + 1)
    smaller = space.restrict(keep)
    assert smaller.d == int(keep.sum())
    assert torch.equal(smaller.expand(vector[keep]), space.expand(vector * keep))
    assert torch.equal(space.keep, before)
    assert smaller.shapes == space.shapes


@given(space=spaces(), size=st.none() | st.integers(1, 9))
def test_runs_tile_the_weights_left_inside_their_tensors(
    space: ParameterSpace, size: int | None
) -> None:
    runs, owner = space.block_sizes(size), space.tensor_index()[space.keep]
    assert sum(runs) == space.d
    assert all(run >= 1 and (size is None or run <= size) for run in runs)
    pieces = owner.split(list(runs)) if runs else []
    assert all(len(piece.unique()) == 1 for piece in pieces)
    for first, second in pairwise(pieces):  # no run is shorter than it need be
        assert first[0] != second[0] or len(first) == size


def test_labels_and_slices_follow_the_tensors() -> None:
    space = ParameterSpace({"a": torch.Size([2, 2]), "b": torch.Size([1]), "c": torch.Size([3])})
    assert space.tensor_index().tolist() == [0, 0, 0, 0, 1, 2, 2, 2]
    assert space.slices == {"a": slice(0, 4), "b": slice(4, 5), "c": slice(5, 8)}
    assert space.block_sizes(3) == (3, 1, 1, 3)
    assert space.block_sizes() == (4, 1, 3)


def test_weights_are_named_by_their_index_and_by_their_position() -> None:
    space = ParameterSpace({"a": torch.Size([2, 2]), "b": torch.Size([1]), "c": torch.Size([3])})
    assert [space.name_at(position) for position in range(8)] == list("aaaabccc")
    assert [space.name_of(index) for index in range(8)] == list("aaaabccc")
    smaller = space.restrict(torch.tensor([0, 1, 0, 0, 0, 1, 0, 1]).bool())
    assert [smaller.name_of(index) for index in range(3)] == list("acc")
    assert smaller.name_at(4) == "b"


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 5)
        self.head.weight = self.embed.weight
        self.scale, self.empty = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.zeros(0, 3))


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ["embed.weight", "norm.weight", "norm.bias", "head.bias"]),  # tied weights once
        ({"min_ndim": 2}, ["embed.weight"]),
        ({"min_ndim": 0}, ["scale", "embed.weight", "norm.weight", "norm.bias", "head.bias"]),
        ({"include": "norm.*"}, ["norm.weight", "norm.bias"]),
        ({"include": ["norm.bias", "*.weight"]}, ["embed.weight", "norm.weight", "norm.bias"]),
        ({"exclude": "*.bias"}, ["embed.weight", "norm.weight"]),
        ({"include": "norm.*", "exclude": ("*.weight",)}, ["norm.bias"]),
        ({"include": "?orm.[bw]*"}, ["norm.weight", "norm.bias"]),
    ],
)
def test_patterns_choose_by_name(options: dict, names: list[str]) -> None:
    assert list(ParameterSpace.from_model(Tied(), **options).shapes) == names


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"include": "nothing.*"},
            r"include pattern 'nothing\.\*' matches no parameter: the model has scale",
        ),
        ({"include": ["norm.*", "typo"]}, "include pattern 'typo'"),
        ({"exclude": "nothing"}, "exclude pattern 'nothing' matches no parameter"),
        ({"exclude": ["norm.*", "typo"]}, "exclude pattern 'typo'"),
        ({"exclude": "*"}, r"No parameter is left: .*exclude='\*'"),
        ({"include": "norm.*", "min_ndim": 2}, r"No parameter is left: .*at least 2 dimension"),
        ({"include": ()}, "No parameter is left"),
        ({"include": "Norm.*"}, "matches no parameter"),
    ],
)
def test_patterns_that_choose_nothing_are_named(options: dict, says: str) -> None:
    with pytest.raises(WoodburyError, match=says):
        ParameterSpace.from_model(Tied(), **options)


def test_a_model_without_parameters() -> None:
    with pytest.raises(WoodburyError, match="has no parameters"):
        ParameterSpace.from_model(nn.ReLU())


@pytest.mark.parametrize("lead", [(), (2,)])
def test_scalar_parameters(lead: tuple[int, ...]) -> None:
    space = ParameterSpace({"a": torch.Size([]), "b": torch.Size([2])})
    found = space.flatten({"a": torch.full(lead, 3.0), "b": torch.ones(*lead, 2)})
    assert torch.equal(found, torch.tensor([3.0, 1.0, 1.0]).expand(*lead, 3))
    assert space.unflatten(torch.tensor([3.0, 1.0, 1.0]))["a"].shape == ()


def test_tensors_with_different_leading_dimensions_are_named() -> None:
    space = ParameterSpace({"a": torch.Size([2]), "b": torch.Size([2])})
    with pytest.raises(WoodburyError, match="'b'"):
        space.flatten({"a": torch.ones(3, 2), "b": torch.ones(2)})


SPACE = ParameterSpace({"a": torch.Size([2, 2]), "b": torch.Size([3])})


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda: ParameterSpace({}), "space is empty"),
        (lambda: ParameterSpace(SPACE.shapes, torch.ones(6).bool()), "bool mask over all 7"),
        (lambda: ParameterSpace(SPACE.shapes, torch.ones(7)), "bool mask over all 7"),
        (lambda: SPACE.flatten({"a": torch.ones(2, 2)}), "'b' is missing"),
        (
            lambda: SPACE.flatten({"a": torch.ones(2, 3), "b": torch.ones(3)}),
            r"'a' has shape \(2, 3\), not \(2, 2\)",
        ),
        (lambda: SPACE.flatten({"a": torch.ones(2), "b": torch.ones(3)}), r"'a' has shape \(2,\)"),
        (
            lambda: SPACE.expand(torch.ones(6)),
            r"A space of 7 kept weights got a vector of shape .*: give \(7,\)",
        ),
        (
            lambda: SPACE.unflatten(torch.ones(1, 7)),
            r"A space of 7 kept weights got a vector of shape .*: give \(7,\)",
        ),
        (lambda: SPACE.restrict(torch.ones(7)), "bool mask over the 7"),
        (lambda: SPACE.restrict(torch.ones(6).bool()), "bool mask over the 7"),
        (lambda: SPACE.block_sizes(0), "at least 1"),
    ],
)
def test_bad_input_is_named(act, says: str) -> None:
    with pytest.raises(WoodburyError, match=says):
        act()
