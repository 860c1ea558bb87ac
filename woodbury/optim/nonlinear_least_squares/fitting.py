"""least_squares: the short way to train a network on residuals."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from woodbury.argument_types import checks_types
from woodbury.optim.nonlinear_least_squares.groups import PointsOf, Residual
from woodbury.optim.nonlinear_least_squares.outcome import LeastSquaresResult
from woodbury.optim.nonlinear_least_squares.solver import LeastSquares


@checks_types
def least_squares(
    model: nn.Module,
    residual: Residual | Mapping[str, Residual],
    points: PointsOf | Mapping[str, PointsOf],
    *,
    weights: Mapping[str, float] | None = None,
    steps: int = 1000,
    seconds: float = math.inf,
    until: float = 0.0,
    tolerance: float = 0.0,
    damping: float = 1.0,
    momentum: float = 0.0,
    memory: int | str | None = None,
) -> LeastSquaresResult:
    """Train a network by least squares, in place, such as to solve a differential equation.

    Args:
        model: As for `LeastSquares`; so are `residual`, `points`, `weights`, `damping`, `momentum`
            and `memory`.
        residual: As there.
        points: As there.
        weights: As there.
        steps: As for `LeastSquares.run`; so are `seconds`, `until` and `tolerance`.
        seconds: As there.
        until: As there.
        tolerance: As there.
        damping: As for `LeastSquares`.
        momentum: As there.
        memory: As there.

    Returns:
        The losses, and why it ended; the model has the best weights.

    Raises:
        WrongType: As `LeastSquares`.
        WoodburyError: As `LeastSquares` and its `run`.

    Example:
        >>> import torch, woodbury
        >>> from torch.func import grad
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(1, 10), torch.nn.Tanh(), torch.nn.Linear(10, 1)
        ... ).double()
        >>> times = torch.linspace(0, 1, 20).double()[:, None]
        >>> equations = {
        ...     "decay": lambda u, t: grad(u)(t)[0] + u(t),  # u' = −u
        ...     "start": lambda u, t: u(t) - 1,
        ... }
        >>> done = least_squares(model, equations, {"decay": times, "start": times[:1]}, steps=30)
        >>> done.loss < 1e-8
        True
        >>> bool((model(times)[:, 0] - (-times[:, 0]).exp()).abs().max() < 1e-4)
        True
    """
    problem = LeastSquares(
        model,
        residual,
        points,
        weights=weights,
        damping=damping,
        momentum=momentum,
        memory=memory,
    )
    return problem.run(steps, seconds=seconds, until=until, tolerance=tolerance)
