"""What pruning one layer after the other takes: bytes and FLOPs, from one sample and the shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from woodbury.estimation.layer_problems import factored_layers
from woodbury.estimation.row_layers import RowLayout
from woodbury.limits import Limits
from woodbury.model.objective import Objective
from woodbury.model.profile import ModelProfile

FLOAT, DOUBLE = 4, 8
"""Bytes of float32 and float64."""

ACTIVATIONS_AT_ONCE = 3
"""Outputs of the size of the largest one that lie in memory at once: with a branch beside it."""

COPIES_OF_PATCHES = 3
"""Of one chunk of patches: gathered, in the order of rows, and a padded input."""

MATRICES, ROW_MATRICES = 5, 8
"""Float64 copies of a layer's moments, and of its weight, while it is solved."""

EIGEN_PRODUCTS = 6
"""Products of i³ multiplications that an eigendecomposition counts for."""

ADMM_STEPS = 120
"""Steps of ADMM until the support is settled, measured 110 to 140 (docs/log)."""

CG_STEPS = 60
"""Steps of the conjugate gradients on both supports."""

MOST_COLUMNS = 2048
"""Inputs of one row at most: an eigendecomposition of 3,136 took most of a minute (docs/log)."""


class _Layer(NamedTuple):
    """One layer: how its weight is rows, and its positions in each sample that are compared."""

    layout: RowLayout
    positions: int


@dataclass(frozen=True)
class TurnCost:
    """What one pruning by `LayerSequence` takes.

    Attributes:
        bytes: At its fullest moment, beside the model and the data.
        equations_flops: FLOPs of the layers' moments, in float32.
        solves_flops: FLOPs of the eigendecompositions, of ADMM and of the last solves, in those of
            float64: of float32 half as many.
        columns: Inputs of a row, at most.
    """

    bytes: int
    equations_flops: float
    solves_flops: float
    columns: int


def turn_cost(objective: Objective, samples: int, positions: int) -> TurnCost:
    """The cost of pruning by `LayerSequence`.

    Args:
        objective: The model and its space; one sample is read.
        samples: That go through the network at once.
        positions: Of each that are compared, at most.

    Returns:
        The cost.

    Example:
        >>> import torch
        >>> dense = Objective.from_model(torch.nn.Linear(3, 4), [(torch.randn(20, 3), None)])
        >>> turn_cost(dense, samples=20, positions=64).equations_flops  # 2 · 20 · 3 · (3 + 4)
        840.0
    """
    profile = ModelProfile.measure(objective)
    layers = list(_layers(objective, profile, positions))
    goals = sum(samples * layer.positions * layer.layout.rows for layer in layers)
    widest = max(profile.activation_elements, profile.input_elements)
    patches = max((_patches(layer, samples) for layer in layers), default=0)
    held = FLOAT * (
        goals
        + ACTIVATIONS_AT_ONCE * samples * widest
        + COPIES_OF_PATCHES * patches
        + 2 * objective.space.n
    )
    solving = max((_solve_elements(layer.layout) for layer in layers), default=0)
    return TurnCost(
        bytes=held + DOUBLE * solving,
        equations_flops=float(sum(_equations(layer, samples) for layer in layers)),
        solves_flops=float(sum(_solves(layer.layout) for layer in layers)),
        columns=max((layer.layout.columns for layer in layers), default=0),
    )


def _layers(objective: Objective, profile: ModelProfile, positions: int) -> Iterator[_Layer]:
    for name, module in factored_layers(objective):
        weight: Any = module.weight
        used = profile.flops.per_weight.get(name, 2.0) / 2
        yield _Layer(RowLayout.of(module, weight), max(1, min(positions, round(used))))


def _patches(layer: _Layer, samples: int) -> int:
    """Elements of one chunk."""
    elements = samples * layer.positions * layer.layout.columns * layer.layout.groups
    return min(Limits.current().patches, elements)


def _solve_elements(layout: RowLayout) -> int:
    weights = layout.rows * layout.columns
    return MATRICES * layout.groups * layout.columns**2 + ROW_MATRICES * weights


def _equations(layer: _Layer, samples: int) -> int:
    layout = layer.layout
    of_position = layout.columns * (layout.groups * layout.columns + layout.rows)
    return 2 * samples * layer.positions * of_position


def _solves(layout: RowLayout) -> int:
    product = 2 * layout.rows * layout.columns**2
    eigen = 2 * EIGEN_PRODUCTS * layout.groups * layout.columns**3
    return eigen // 2 + (ADMM_STEPS + CG_STEPS) * product
