"""The equations of a least-squares problem: residuals, their points and weights, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from woodbury.errors import WoodburyError, WrongType, user_code

Network = Callable[..., Tensor]
"""u(x): the network at one point x (k,), a number where it has one output, else (outputs,)."""

Residual = Callable[..., Tensor]
"""residual(u, *point) -> a number, or (r,): what is left of an equation at one point."""

Points = Tensor | tuple[Tensor, ...]
"""(n, k), or several tensors of n rows each, such as inputs and measured values."""

PointsOf = Points | Callable[[int], Points]
"""Fixed points, or those of each step: points(step)."""


@dataclass(frozen=True, eq=False)
class Group:
    """One equation with its points.

    Attributes:
        name: For the sentences of errors.
        residual: As in `Residual`.
        points: As in `PointsOf`.
        weight: Of its mean square in the loss; positive.
    """

    name: str
    residual: Residual
    points: PointsOf
    weight: float

    def at_step(self, step: int) -> tuple[Tensor, ...]:
        """The tensors of the points of a step, each of n rows."""
        points = self.points
        if not isinstance(points, (Tensor, tuple)):
            with user_code(f"The points of {self.name!r} cannot be drawn for step {step}."):
                points = points(step)
        return _checked_points(self.name, points)


def groups_of(
    residual: Residual | Mapping[str, Residual],
    points: PointsOf | Mapping[str, PointsOf],
    weights: Mapping[str, float] | None,
) -> tuple[Group, ...]:
    """The groups that a user gives, checked.

    Args:
        residual: One function, or one for each name.
        points: One set of points, or one for each of these names.
        weights: Of some of these names; 1 for the others.

    Returns:
        In the order of the names.

    Raises:
        WrongType: If a residual is no function, or points are no tensors.
        WoodburyError: If the names differ, or a weight is not positive.
    """
    single = "residual"
    residuals: Mapping[str, Any] = residual if isinstance(residual, Mapping) else {single: residual}
    by_name: Mapping[str, Any] = points if isinstance(points, Mapping) else {single: points}
    if set(residuals) != set(by_name) or not residuals:
        raise WoodburyError(
            f"There are residuals {sorted(residuals)} and points {sorted(by_name)}: "
            "give both the same names."
        )
    shares = dict(weights or {})
    if unknown := sorted(set(shares) - set(residuals)):
        raise WoodburyError(f"There is a weight for {unknown[0]!r}, which is no residual.")
    groups = []
    for name, function in residuals.items():
        if not callable(function):
            raise WrongType(f"The residual {name!r} is a {type(function).__name__}: a function.")
        weight = float(shares.get(name, 1.0))
        if not 0 < weight < float("inf"):
            raise WoodburyError(f"The weight of {name!r} is {weight}: it must be positive.")
        given = by_name[name]
        if isinstance(given, (Tensor, tuple)):
            _checked_points(name, given)
        elif not callable(given):
            raise WrongType(
                f"The points of {name!r} are a {type(given).__name__}: give a tensor, a tuple of "
                "tensors, or a function of the step."
            )
        groups.append(Group(name, residuals[name], by_name[name], weight))
    return tuple(groups)


def _checked_points(name: str, points: Any) -> tuple[Tensor, ...]:
    """The points as a tuple of tensors, each of n ≥ 1 rows."""
    tensors = points if isinstance(points, tuple) else (points,)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise WrongType(f"The points of {name!r} hold a {type(tensor).__name__}: give tensors.")
        if tensor.is_meta or tensor.layout != torch.strided:
            raise WrongType(f"The points of {name!r} are sparse or on meta: give dense tensors.")
    rows = {len(tensor) if tensor.ndim else 0 for tensor in tensors}
    if len(rows) != 1 or rows == {0}:
        raise WoodburyError(
            f"The points of {name!r} have {sorted(rows)} rows: give at least one point, and "
            "tensors of as many rows each."
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise WoodburyError(f"A point of {name!r} is not finite: look at the data.")
    return tensors
