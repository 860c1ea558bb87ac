"""Units: every tile, channel and custom unit holds its weights, less those removed already."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.model.space import ParameterSpace
from woodbury.pruning.units import Unit, block, custom, input_channels, output_channels, single

LINEAR, CONV, GROUPED = nn.Linear(8, 4), nn.Conv2d(4, 6, 3), nn.Conv2d(4, 8, 1, groups=2)


def space_of(*modules: nn.Module) -> ParameterSpace:
    return ParameterSpace.from_model(nn.Sequential(*modules), min_ndim=2)


def members(unit: Unit, space: ParameterSpace) -> list[list[int]]:
    return sorted(sorted(own) for some in unit(space) or () for own in some.tolist())


def where(tensor: nn.Module, own: list[int]) -> Tensor:
    """(s, ndim): the places of a unit's weights in the only tensor of a space."""
    shape = tensor.weight.shape  # type: ignore[union-attr]
    return torch.stack(torch.unravel_index(torch.tensor(own), shape), 1)  # type: ignore[arg-type]


def test_single_weights_need_no_list() -> None:
    assert single(space_of(LINEAR)) is None


@pytest.mark.parametrize(
    ("module", "shape", "sides"),
    [
        (LINEAR, (1, 4), (1, 4)),
        (LINEAR, (4, 1), (4, 1)),
        (LINEAR, (2, 4), (2, 4)),
        (CONV, (1, 4), (1, 4, 1, 1)),
        (CONV, (2, 1), (2, 1, 1, 1)),
        (CONV, (1, 2, 3, 3), (1, 2, 3, 3)),
        (CONV, (3, 1, 1, 3), (3, 1, 1, 3)),
        (GROUPED, (4, 2), (4, 2, 1, 1)),
    ],
)
def test_a_tile_spans_its_sides_and_all_weights_are_in_one(
    module: nn.Module, shape: tuple[int, ...], sides: tuple[int, ...]
) -> None:
    space = space_of(module)
    found = members(block(*shape), space)
    assert sorted(weight for own in found for weight in own) == list(range(space.n))
    for own in found:
        places = where(module, own)
        spans = places.amax(0) - places.amin(0) + 1
        assert tuple(spans.tolist()) == sides and len(own) == torch.Size(sides).numel()
        assert (places.amin(0) % torch.tensor(sides) == 0).all()


def test_a_one_dimensional_tile_follows_memory() -> None:
    assert (
        members(block(5), space_of(nn.Linear(4, 5), nn.Linear(5, 2)))
        == torch.arange(30).view(6, 5).tolist()
    )


@pytest.mark.parametrize(("unit", "dim"), [(output_channels, 0), (input_channels, 1)])
def test_channels_of_unequal_sizes(unit: Unit, dim: int) -> None:
    space = space_of(CONV, LINEAR)
    parts = [
        numbers.unbind(dim)
        for numbers in (torch.arange(216).view(6, 4, 3, 3), torch.arange(216, 248).view(4, 8))
    ]
    assert members(unit, space) == sorted(
        sorted(own.flatten().tolist()) for part in parts for own in part
    )


def test_coupled_channels_are_a_unit() -> None:
    space = space_of(nn.Linear(3, 4), nn.Linear(4, 2))
    coupled = [{"0.weight": c, "1.weight": (slice(None), c)} for c in range(4)]
    assert members(custom(coupled), space) == [
        [3 * c, 3 * c + 1, 3 * c + 2, 12 + c, 16 + c] for c in range(4)
    ]


def test_custom_units_of_unequal_sizes_and_of_any_index() -> None:
    space = space_of(LINEAR)
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[3, 2:5] = True
    units = [
        {"0.weight": (0, 1)},
        {"0.weight": mask},
        {"0.weight": (torch.tensor([1, 2]), torch.tensor([0, 7]))},
    ]
    assert members(custom(units), space) == [[1], [8, 23], [26, 27, 28]]


@given(removed=st.sets(st.integers(0, 247), max_size=240))
def test_the_kept_weights_of_a_unit_are_a_unit(removed: set[int]) -> None:
    space = space_of(CONV, LINEAR)
    keep = torch.ones(space.n, dtype=torch.bool)
    keep[list(removed)] = False
    place = {weight: index for index, weight in enumerate(keep.nonzero()[:, 0].tolist())}
    for unit in (block(2, 2), block(8), output_channels, input_channels):
        truth = [
            [place[weight] for weight in own if weight in place] for own in members(unit, space)
        ]
        assert members(unit, space.restrict(keep)) == sorted(own for own in truth if own)


@pytest.mark.parametrize(
    ("unit", "says"),
    [
        (block(3), r"Blocks of 3 do not tile '0\.weight' of 32 weights"),
        (block(), "do not tile"),
        (
            block(1, 3),
            r"Blocks of 1 × 3 do not tile '0\.weight' of 32 weights in the shape \(4, 8\)",
        ),
        (block(1, 4, 1), "do not tile"),
        (custom([]), "no unit"),
        (custom([{"0.weight": 4}]), r"Unit 0 names 4 of '0\.weight', which has shape \(4, 8\)"),
        (custom([{"0.weight": 0}, {"0.weight": (0, 0, 0)}]), "Unit 1 names"),
        (custom([{"0.weight": torch.tensor([-9])}]), "Unit 0 names"),
        (custom([{"0.weight": "first"}]), "Unit 0 names first"),
        (custom([{"weight": 0}]), "Unit 0 names 'weight', which is not in the space: 0.weight"),
        (custom([{"0.weight": slice(0, 0)}]), "Unit 0 holds no weight"),
        (custom([{}]), "Unit 0 holds no weight"),
        (
            custom([{"0.weight": 0}, {"0.weight": 1}, {"0.weight": (slice(None), 3)}]),
            "Units 0 and 2 share a weight of",
        ),
        (custom([{"0.weight": torch.tensor([1, 1])}]), "Units 0 and 0 share"),
    ],
)
def test_bad_units_are_refused(unit: Any, says: str) -> None:
    with pytest.raises(WoodburyError, match=says):
        unit(space_of(LINEAR))


def test_vectors_have_no_input_channels() -> None:
    with pytest.raises(WoodburyError, match="too few dimensions"):
        input_channels(ParameterSpace.from_model(LINEAR))


def test_units_without_a_kept_weight_are_refused() -> None:
    space = space_of(LINEAR)
    keep = torch.ones(32, dtype=torch.bool)
    keep[:8] = False
    with pytest.raises(WoodburyError, match="No unit has a weight left"):
        custom([{"0.weight": 0}])(space.restrict(keep))
