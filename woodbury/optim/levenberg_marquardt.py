"""How the damping of an MFAC moves while it trains: objects beside the optimizer, as torch's schedules of the rate are."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.optim.optimizer import MFAC

POOR, GOOD = 0.25, 0.75
"""The share of the predicted decrease below which the quadratic is trusted less, and above which more."""


class LevenbergMarquardt:
    """Damping that grows where the loss falls short of what the quadratic predicted, and shrinks where it keeps its word.

    Call `step(loss)` before every step of the optimizer, with the loss there *on the samples of the step before*: for a fixed
    set of points that is the loss at hand. The predicted decrease, (lr − lr²/2)·gᵀF⁻¹g, costs nothing  (eq. 41, 42;
    Levenberg 1944; Marquardt 1963). It is that of a plain step, hence no momentum and one lr for all groups, which must all
    minimise or all maximise.

    factor: by which the damping grows or shrinks; least, most: where it ends.
    """

    def __init__(
        self, optimizer: MFAC, *, factor: float = 2.0, least: float = 1e-12, most: float = 1e12
    ) -> None:
        if not 1 < factor < math.inf or not 0 < least <= most < math.inf:
            raise WoodburyError(
                f"factor is {factor}, least {least} and most {most}: a finite factor above 1 and 0 < least ≤ most are needed."
            )
        self.optimizer, self.factor, self.least, self.most = optimizer, factor, least, most
        self.loss: float | None = None
        self._rate()

    def step(self, loss: Any) -> None:
        """Compare the loss, a number or a tensor, with that of the call before, and move every group's damping."""
        loss, before, rate = (
            float(loss.detach() if isinstance(loss, Tensor) else loss),
            self.loss,
            self._rate(),
        )
        self.loss = loss
        if before is None:
            return
        predicted = (rate - rate**2 / 2) * self.optimizer.slope
        fallen = loss - before if self.optimizer.param_groups[0]["maximize"] else before - loss
        share = fallen / predicted if predicted > 0 else 0.0
        if POOR <= share <= GOOD:
            return
        factor = (
            1 / self.factor if share > GOOD else self.factor
        )  # a loss that is not finite is a poor one
        for group in self.optimizer.param_groups:
            group["damping"] = min(max(group["damping"] * factor, self.least), self.most)

    def state_dict(self) -> dict[str, Any]:
        """The loss of the last call: the damping itself is in the optimizer's state."""
        return {"loss": self.loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loss = state_dict["loss"]

    def _rate(self) -> float:
        groups = self.optimizer.param_groups
        rates = {float(group["lr"]) for group in groups}
        if len({bool(group["maximize"]) for group in groups}) > 1:
            raise WoodburyError(
                "LevenbergMarquardt compares one loss: let all groups minimise it, or all maximise."
            )
        if len(rates) > 1 or max(rates) >= 2 or any(group["momentum"] for group in groups):
            raise WoodburyError(
                "LevenbergMarquardt predicts plain steps: give all groups one lr below 2, and no momentum."
            )
        return rates.pop()
