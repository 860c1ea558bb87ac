"""Residuals of a network at points, and their Jacobian: what least squares is built from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import grad, jacrev, vmap

from woodbury.errors import WoodburyError, WrongType, user_code
from woodbury.linalg.precision import wide_dtype
from woodbury.memory.budget import budget_bytes, bytes_in_words
from woodbury.model.attributes import attributes_kept
from woodbury.model.calling import run_model
from woodbury.model.modes import eval_mode
from woodbury.model.space import ParameterSpace
from woodbury.optim.nonlinear_least_squares.groups import Group

COPIES = 4
"""Of the Jacobian at the peak of a step: its parts, itself, scaled, and its orthogonal factor."""

AT_ONCE_BYTES = 2**28
"""Bytes of the rows that are differentiated at once; what their graph takes comes on top."""


@dataclass(frozen=True, eq=False)
class Residuals:
    """The scaled residuals r(w) (m,) of all groups at some points: the loss is ½|r|²  (eq. 87).

    Attributes:
        model: The network, which is never written to.
        space: The weights that move.
        groups: The equations.
        points: Of each group.
        memory: As for `LeastSquares`.
        sizes: Group -> residuals at one point, once they have been evaluated.
    """

    model: nn.Module
    space: ParameterSpace
    groups: tuple[Group, ...]
    points: tuple[tuple[Tensor, ...], ...]
    memory: int | str | None = None
    sizes: dict[str, int] = field(default_factory=dict)

    def at(self, weights: Tensor) -> Tensor:
        """r(w).

        Args:
            weights: w (d,).

        Returns:
            (m,) float64; not finite where the network is not.
        """
        parts = []
        with self._evaluating():
            for group, points in zip(self.groups, self.points, strict=True):
                with user_code(f"The residual of {group.name!r} fails."):
                    function = self._single(group)
                    values = vmap(function, (None, *(0 for _ in points)))(weights, *points)
                values = values.detach().reshape(len(points[0]), -1).double()
                self.sizes[group.name] = values.shape[1]
                parts.append(self._scale(group, values).flatten())
        return torch.cat(parts)

    def rows(self, weights: Tensor) -> Tensor:
        """The Jacobian of r at w, one row for each residual.

        Args:
            weights: w (d,), where `at` has been called before.

        Returns:
            (m, d) float64.

        Raises:
            WoodburyError: If it has no room, or a residual does not depend on the weights.
        """
        self._check_room(weights)
        parts = []
        with self._evaluating():
            for group, points in zip(self.groups, self.points, strict=True):
                scalar = self.sizes[group.name] == 1
                function = self._single(group)
                by_point = grad(function) if scalar else jacrev(function)
                at_once = max(1, AT_ONCE_BYTES // (8 * len(weights) * self.sizes[group.name]))
                with user_code(f"The residual of {group.name!r} cannot be differentiated."):
                    rows = vmap(by_point, (None, *(0 for _ in points)), chunk_size=at_once)(
                        weights, *points
                    )
                rows = rows.detach().reshape(len(points[0]), -1, len(weights)).double()
                _check_derivatives(group, rows)
                parts.append(self._scale(group, rows).flatten(0, 1))
        rows = torch.cat(parts)
        if not bool(rows.any()):
            raise WoodburyError(
                "No residual depends on the weights: does it use u, without detaching it?"
            )
        return rows

    @property
    def m(self) -> int:
        """The number of residuals, once they have been evaluated."""
        return sum(
            len(points[0]) * self.sizes[group.name]
            for group, points in zip(self.groups, self.points, strict=True)
        )

    def finite_at(self, weights: Tensor) -> Tensor:
        """r(w), seen to be finite.

        Args:
            weights: w (d,).

        Raises:
            WoodburyError: If a residual is not finite; it names the group and the point.
        """
        residuals = self.at(weights)
        start = 0
        for group, points in zip(self.groups, self.points, strict=True):
            size = self.sizes[group.name]
            end = start + len(points[0]) * size
            bad = (~torch.isfinite(residuals[start:end])).nonzero()
            if len(bad):
                raise WoodburyError(
                    f"The residual {group.name!r} is not finite at point {int(bad[0]) // size}: "
                    "look at the equation."
                )
            start = end
        return residuals

    def _single(self, group: Group) -> Callable[..., Tensor]:
        """(w, *point) -> the residual of one point, as a number where it has one entry."""

        def residual(weights: Tensor, *point: Tensor) -> Tensor:
            parameters = self.space.unflatten(weights)

            def network(x: Tensor) -> Tensor:
                output = run_model(self.model, x.unsqueeze(0), parameters)
                return output.reshape(()) if output.numel() == 1 else output.squeeze(0)

            value = group.residual(network, *point)
            if not isinstance(value, Tensor):
                raise WrongType(f"it gave a {type(value).__name__}: let it return a tensor")
            if not value.is_floating_point():
                raise WrongType(f"it gave {value.dtype}: let it return real numbers")
            return value.reshape(()) if value.numel() == 1 else value.flatten()

        return residual

    def _scale(self, group: Group, values: Tensor) -> Tensor:
        """(n, r, …) -> the same, so that half the sum of squares is weight · half the mean."""
        return (group.weight / (values.shape[0] * values.shape[1])) ** 0.5 * values

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        with attributes_kept(self.model), eval_mode(self.model), torch.enable_grad():
            yield

    def _check_room(self, weights: Tensor) -> None:
        need = COPIES * 8 * self.m * len(weights)
        budget = budget_bytes(self.memory, weights.device)
        if need > budget:
            fitting = max(1, self.m * budget // need)
            raise WoodburyError(
                f"A step on {self.m:,} residuals of {len(weights):,} weights takes "
                f"{bytes_in_words(need)} and may hold {bytes_in_words(budget)}: "
                f"give points for {fitting:,} residuals at a time, such as a function of the step."
            )


def dtype_of(space: ParameterSpace, model: nn.Module) -> torch.dtype:
    """The dtype that the weights are kept in, which is that of the model, float32 at least."""
    parameters = dict(model.named_parameters())
    return wide_dtype(parameters[next(iter(space.shapes))].dtype)


def loss_of(residuals: Tensor) -> float:
    """½|r|².

    Args:
        residuals: r (m,).
    """
    return 0.5 * float(residuals.square().sum())


def _check_derivatives(group: Group, rows: Tensor) -> None:
    """Raise unless the rows (n, r, d) of a group are finite."""
    bad = (~torch.isfinite(rows)).flatten(1).any(1).nonzero()
    if len(bad):
        raise WoodburyError(
            f"A derivative of the residual {group.name!r} by the weights is not finite at point "
            f"{int(bad[0])}: does the equation divide by zero, or take the root of it?"
        )
