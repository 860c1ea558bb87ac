"""LeastSquares: a network that minimises the squares of residuals, such as of an equation."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, check_whole_number
from woodbury.memory.budget import parse_bytes
from woodbury.memory.exhausted import if_memory_runs_out
from woodbury.model.space import ParameterSpace
from woodbury.model.wrappers import checked_model
from woodbury.monitor import report
from woodbury.optim.nonlinear_least_squares.damped_steps import DampedStep, DampedSteps
from woodbury.optim.nonlinear_least_squares.groups import PointsOf, Residual, groups_of
from woodbury.optim.nonlinear_least_squares.outcome import LeastSquaresResult, Step
from woodbury.optim.nonlinear_least_squares.residuals import Residuals, dtype_of, loss_of
from woodbury.optim.nonlinear_least_squares.saved_state import checked_state

GROWTH = 2.0
"""Factor of the damping after a step that does not decrease the loss."""

TARGET_RATIO = 0.8
"""Of the actual decrease to that of the linearised residuals; the damping is moved towards it."""

RATE, LARGEST_CHANGE = 3.0, 8.0
"""How fast it is moved, per unit of the ratio, and the largest factor of one step."""

MAX_DAMPING, MIN_DAMPING = 1e16, 1e-30
"""Where the damping, relative to the squared columns of the Jacobian, stops."""

PROBE = 0.1
"""Share of a step at which the residuals are evaluated for its acceleration."""

LARGEST_ACCELERATION = 1.5
"""|a| ÷ |δ| beyond which an acceleration is left out."""

SMALLEST_SCALE = 1e-12
"""Of a column, relative to the largest."""


class LeastSquares:
    """Levenberg–Marquardt steps on the residuals of a network  (eqs. 87, 88, 89 and 96).

    The loss is the sum over the groups of ½ · weight · mean(residual²). A step is the exact
    least-squares solution for the Jacobian J of all residuals, λ|Dδ|² being added, where D holds
    the largest lengths so far of J's columns (Moré 1978). λ grows until the loss decreases, and is
    then moved to where the decrease is .8 of what the linearised residuals promise. Each step is
    bent by its geodesic acceleration (Transtrum & Sethna 2012), for one evaluation more. The model
    holds the best weights at all times.

    A step costs a Jacobian, O(m d min(m, d)) for a factorization, and two evaluations of the
    residuals; so does a trial that fails, without the Jacobian. Take float64 (`model.double()`)
    where small errors count.

    Args:
        model: The network; its parameters that require a gradient move.
        residual: `residual(u, *point)`, what is left of an equation at one point: a number or a
            vector. u is the network at one point, which torch.func differentiates. Or such a
            function for each name, such as of the interior and of the boundary.
        points: Tensors (n, k), or tuples of tensors of n rows, of which `residual` gets one row of
            each; or a function of the step that gives them, for new points at every step. By name
            where the residuals are.
        weights: Of some of the names; 1 for the others.
        damping: λ of the first step, relative to D².
        momentum: μ in [0, 1): the step is damped towards μ times the last one in place of 0, for
            points that change from step to step (SPRING: Goldshlager, Abrahamsen & Lin 2024).
        acceleration: Whether steps are bent.
        memory: What a step may hold, in bytes or as "6GiB"; None for 60 % of what is available.

    Attributes:
        loss: At the weights of the model, on the points of the last step.
        damping: Of the next step.
        steps: That were taken.

    Raises:
        WrongType: If the model is no module, a residual no function, or points are no tensors.
        WoodburyError: If a number is out of range, or a residual is not finite at the start.

    Example:
        >>> import torch, woodbury
        >>> model = torch.nn.Linear(1, 1).double()
        >>> x = torch.linspace(0, 1, 8).double()[:, None]
        >>> fit = LeastSquares(model, lambda u, x, y: u(x) - y, (x, 3 * x[:, 0] - 1))
        >>> fit.run(steps=30).loss < 1e-20
        True
    """

    @checks_types
    def __init__(
        self,
        model: nn.Module,
        residual: Residual | Mapping[str, Residual],
        points: PointsOf | Mapping[str, PointsOf],
        *,
        weights: Mapping[str, float] | None = None,
        damping: float = 1.0,
        momentum: float = 0.0,
        acceleration: bool = True,
        memory: int | str | None = None,
    ) -> None:
        if not 0 < damping <= MAX_DAMPING or not 0 <= momentum < 1:
            raise WoodburyError(
                f"damping is {damping} and momentum {momentum}: a damping above 0 and up to "
                f"{MAX_DAMPING:g}, and a momentum in [0, 1) are needed."
            )
        if memory is not None:
            parse_bytes(memory)
        self.model = checked_model(model)
        frozen = [name for name, p in self.model.named_parameters() if not p.requires_grad]
        self._space = ParameterSpace.from_model(self.model, exclude=frozen)
        groups = groups_of(residual, points, weights)
        self.damping = damping
        self.momentum = momentum
        self.acceleration = acceleration
        self.steps = 0
        self._drawn = any(not isinstance(g.points, (torch.Tensor, tuple)) for g in groups)
        self._residuals = Residuals(
            self.model, self._space, groups, tuple(g.at_step(0) for g in groups), memory
        )
        self._weights = self._from_model()
        self._scales: Tensor | None = None
        self._last: Tensor | None = None
        self._values = self._residuals.finite_at(self._weights)
        self.loss = loss_of(self._values)

    def step(self) -> Step:
        """Take one step, and write the weights reached into the model.

        Returns:
            The loss reached; the weights are left where no damping decreases it.

        Raises:
            WoodburyError: If the residuals of new points are not finite, or a Jacobian has no room.
        """
        if self._drawn and self.steps:
            groups = self._residuals.groups
            drawn = tuple(group.at_step(self.steps) for group in groups)
            self._residuals = replace(self._residuals, points=drawn, sizes={})
            self._values = self._residuals.finite_at(self._weights)
            self.loss = loss_of(self._values)
        with if_memory_runs_out("give LeastSquares fewer points at once"):
            rows = self._residuals.rows(self._weights)
            self._scales = self._scales_of(rows)
            solver = DampedSteps.of(rows, self._scales)
        start = None if self._last is None else self.momentum * self._last
        while True:
            used = self.damping
            step, predicted = self._step(rows, solver.at(used), start)
            values = self._residuals.at(self._weights + step)
            loss = loss_of(values)
            if loss < self.loss:  # False for NaN
                ratio = (self.loss - loss) / predicted if predicted > 0 else TARGET_RATIO
                self._take(step, values, loss)
                self.damping = max(used * _change(ratio), MIN_DAMPING)
                return Step(loss, used, True)
            if used * GROWTH > MAX_DAMPING:
                self.damping = 1.0
                return Step(self.loss, used, False)
            self.damping = used * GROWTH
            start = None  # what lies behind may be what leads upwards

    def run(
        self,
        steps: int = 1000,
        *,
        seconds: float = math.inf,
        until: float = 0.0,
        tolerance: float = 0.0,
    ) -> LeastSquaresResult:
        """Take steps until one of the rules ends it; Ctrl-C leaves the best weights in the model.

        Args:
            steps: At most.
            seconds: Of the wall clock, after which no step is begun.
            until: The loss at which to end.
            tolerance: Ends where ten steps decrease the loss by less than this share of it.

        Returns:
            The losses, and why it ended.

        Raises:
            WoodburyError: If a number is out of range; as `step`.
        """
        check_whole_number(steps, "steps", "the number of steps at most")
        if not seconds > 0 or not until >= 0 or not 0 <= tolerance < 1:
            raise WoodburyError(
                f"seconds is {seconds}, until {until} and tolerance {tolerance}: positive seconds, "
                "a loss of at least 0 and a share in [0, 1) are needed."
            )
        begun = time.perf_counter()
        losses = [self.loss]
        reason = f"all {steps} steps are taken"
        for done in range(steps):
            if self.loss <= until:
                reason = f"the loss is at most {until:g}"
                break
            if time.perf_counter() - begun >= seconds:
                reason = f"{seconds:g} seconds are over"
                break
            if not self.step().decreased:
                reason = "no step decreases the loss: it is a minimum to rounding"
                break
            losses.append(self.loss)
            report("steps of least squares", done + 1, steps)
            if tolerance and len(losses) > 10 and losses[-1] > (1 - tolerance) * losses[-11]:
                reason = f"ten steps decreased the loss by less than {tolerance:g} of it"
                break
        return LeastSquaresResult(self.loss, tuple(losses), time.perf_counter() - begun, reason)

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on bit for bit, beside the model's own weights."""
        return {
            "damping": self.damping,
            "steps": self.steps,
            "scales": self._scales,
            "last": self._last,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, on a model that holds the weights of then.

        Args:
            state: What `state_dict` gave.

        Raises:
            WrongType: If it is no such state.
            WoodburyError: If it is of another number of weights, or damaged. Nothing has changed.
        """
        checked = checked_state(state, self._weights, MAX_DAMPING)
        weights = self._from_model()
        self._values = self._residuals.finite_at(weights)
        self._weights = weights
        self.loss = loss_of(self._values)
        self.damping, self.steps = checked["damping"], checked["steps"]
        self._scales, self._last = checked["scales"], checked["last"]

    def _step(self, rows: Tensor, solver: DampedStep, start: Tensor | None) -> tuple[Tensor, float]:
        """δ, bent by its acceleration where that is small (eq. 89), and its predicted decrease."""
        values = self._values
        plain = solver.solve(values if start is None else values + rows @ start)
        step = plain if start is None else start + plain
        change = rows @ step
        predicted = self.loss - loss_of(values + change)
        if not self.acceleration:
            return self._cast(step), predicted
        ahead = self._residuals.at(self._weights + self._cast(PROBE * step))
        second = 2 / PROBE * ((ahead - values) / PROBE - change)
        if not bool(torch.isfinite(second).all()):
            return self._cast(step), predicted
        acceleration = solver.solve(second)
        if acceleration.norm() > LARGEST_ACCELERATION * step.norm():
            return self._cast(step), predicted
        return self._cast(step + acceleration / 2), predicted

    def _cast(self, step: Tensor) -> Tensor:
        return step.to(self._weights.dtype)

    def _take(self, step: Tensor, values: Tensor, loss: float) -> None:
        self._weights = self._weights + step
        self._last = step.double() if self.momentum else None
        self._values = values
        self.loss = loss
        self.steps += 1
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, tensor in self._space.unflatten(self._weights).items():
                parameters[name].copy_(tensor)

    def _from_model(self) -> Tensor:
        named = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        return self._space.flatten(named).to(dtype_of(self._space, self.model))

    def _scales_of(self, rows: Tensor) -> Tensor:
        """The largest lengths so far of the Jacobian's columns; none is nearly zero."""
        lengths = rows.norm(dim=0)
        if self._scales is not None:
            lengths = torch.maximum(lengths, self._scales)
        return lengths.clamp(min=SMALLEST_SCALE * float(lengths.max()))


def _change(ratio: float) -> float:
    """The factor of the damping after a step of this ratio of decreases  (eq. 96)."""
    limit = math.log(LARGEST_CHANGE)
    return math.exp(min(max(RATE * (TARGET_RATIO - ratio), -limit), limit))
