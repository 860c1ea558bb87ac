"""LevenbergMarquardt: adapts the damping of an MFAC to how well its quadratic predicts the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from woodbury.argument_types import checks_types, is_of
from woodbury.errors import WoodburyError, WrongType
from woodbury.optim.optimizer import MFAC

LOW_REDUCTION_RATIO = 0.25
"""Actual ÷ predicted decrease below which the damping grows."""

HIGH_REDUCTION_RATIO = 0.75
"""Actual ÷ predicted decrease above which the damping shrinks."""


class LevenbergMarquardt:
    """Moves the damping of an MFAC by how well its quadratic predicts the loss (eq. 42).

    The damping grows where the loss decreases by less than a quarter of the prediction, and shrinks
    where it decreases by more than three quarters.

    Call `step(loss)` before every step of the optimizer, with the loss there *on the samples of the
    step before*; for a fixed set of points that is the loss at hand. The predicted decrease,
    (lr − lr²/2)·gᵀF⁻¹g, costs nothing (eq. 41). It is that of a plain step, hence no momentum and
    one lr for all parameter groups, which must all minimize or all maximize. The object stands
    beside the optimizer, as torch's learning rate schedulers do.

    Sources: Levenberg 1944; Marquardt 1963; for the damping of a Fisher Martens & Grosse 2015,
    section 6.5.

    Args:
        optimizer: The optimizer whose damping is set, in all parameter groups alike.
        factor: By which the damping grows or shrinks in one step; above 1.
        min_damping: Where it stops shrinking, so that F stays positive definite.
        max_damping: Where it stops growing, should the loss be NaN from step to step.

    Attributes:
        optimizer: As given.
        factor: As given.
        min_damping: As given.
        max_damping: As given.
        loss: The loss of the last call, None before the first.

    Raises:
        WoodburyError: If an argument is out of range, or the optimizer makes no plain steps.

    Example:
        >>> import torch
        >>> import woodbury
        >>> weights = torch.nn.Parameter(torch.zeros(2))
        >>> points = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])
        >>> optimizer = woodbury.MFAC([weights], lr=1.0, window=3, damping=0.1)
        >>> damping = woodbury.LevenbergMarquardt(optimizer)
        >>> for _ in range(5):
        ...     residuals = points @ weights.detach() - torch.tensor([1.0, 3.0, 5.0])
        ...     damping.step(residuals.square().mean() / 2)
        ...     optimizer.step(rows=[points], residuals=residuals)
        >>> optimizer.param_groups[0]["damping"]  # halved four times: a line is predicted well
        0.00625
    """

    @checks_types
    def __init__(
        self,
        optimizer: MFAC,
        *,
        factor: float = 2.0,
        min_damping: float = 1e-12,
        max_damping: float = 1e12,
    ) -> None:
        if not 1 < factor < math.inf or not 0 < min_damping <= max_damping < math.inf:
            raise WoodburyError(
                f"factor is {factor}, min_damping {min_damping} and max_damping {max_damping}: "
                "a finite factor above 1 and 0 < min_damping ≤ max_damping are needed."
            )
        self.optimizer = optimizer
        self.factor = factor
        self.min_damping = min_damping
        self.max_damping = max_damping
        self.loss: float | None = None
        self._lr()

    def step(self, loss: float | Tensor) -> None:
        """Compare the loss with that of the call before, and set the damping of all groups.

        Args:
            loss: The loss at the weights reached, on the samples of the step that led there.

        Raises:
            WoodburyError: If the optimizer makes no plain steps any more.
        """
        given = loss.detach() if isinstance(loss, Tensor) else loss
        if not is_of(given, float):
            raise WrongType(f"loss is a {type(loss).__name__}: give a number.")
        now = float(given)
        before = self.loss
        lr = self._lr()
        self.loss = now
        if before is None:
            return
        predicted = (lr - lr**2 / 2) * self.optimizer.slope
        maximize = self.optimizer.param_groups[0]["maximize"]
        decrease = now - before if maximize else before - now
        ratio = decrease / predicted if predicted > 0 else 0.0
        if LOW_REDUCTION_RATIO <= ratio <= HIGH_REDUCTION_RATIO:
            return
        # NaN is above no number: with a loss that is not finite the damping grows.
        factor = 1 / self.factor if ratio > HIGH_REDUCTION_RATIO else self.factor
        for group in self.optimizer.param_groups:
            damping = group["damping"] * factor
            group["damping"] = min(max(damping, self.min_damping), self.max_damping)

    def state_dict(self) -> dict[str, Any]:
        """The loss of the last call; the damping itself is in the optimizer's state."""
        return {"loss": self.loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state.

        Args:
            state_dict: What `state_dict` gave; load the optimizer's beside it.
        """
        if not isinstance(state_dict, Mapping) or "loss" not in state_dict:
            raise WoodburyError("This is no state of a LevenbergMarquardt: it lacks the loss.")
        if not is_of(state_dict["loss"], float | None):
            raise WrongType("The saved loss is no number: the state is damaged.")
        self.loss = state_dict["loss"]

    def _lr(self) -> float:
        """The learning rate of all groups, or an error unless the steps are plain ones."""
        groups = self.optimizer.param_groups
        if len({bool(group["maximize"]) for group in groups}) > 1:
            raise WoodburyError(
                "LevenbergMarquardt compares one loss: let all groups minimize it, or all maximize."
            )
        rates = {float(group["lr"]) for group in groups}
        if len(rates) > 1 or max(rates) >= 2 or any(group["momentum"] for group in groups):
            raise WoodburyError(
                "LevenbergMarquardt predicts plain steps: "
                "give all groups one lr below 2, and no momentum."
            )
        return rates.pop()
