"""The proximal step of a quadratic penalty, after a step of an optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher
from woodbury.model.space import ParameterSpace


@dataclass(frozen=True, eq=False)
class ProximalStep:
    """W ← w* + (I + η s F)⁻¹ (w − w*), the minimum of the penalty near w  (eq. 97).

    Attributes:
        fisher: F.
        strength: s.
        space: Which weights they are.
        optimizer: Whose step length η is.
        parameters: Of the space, by name.
        solved: η s -> F with the damping 1/(η s) more, for the last η.
    """

    fisher: Fisher
    strength: float
    space: ParameterSpace
    optimizer: torch.optim.Optimizer
    parameters: Mapping[str, nn.Parameter]
    solved: dict[float, Fisher] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, away: Tensor) -> None:
        """Move the parameters.

        Args:
            away: w − w* (d,).

        Raises:
            WoodburyError: If they are moved by several step lengths.
        """
        reach = self.strength * self._step_length()
        if reach == 0:
            return
        if reach not in self.solved:
            self.solved.clear()
            self.solved[reach] = self.fisher.with_damping(self.fisher.damping + 1 / reach)
        change = self.solved[reach].solve(away) / reach - away
        for name, values in self.space.unflatten(change).items():
            self.parameters[name].add_(values.to(self.parameters[name]))

    def _step_length(self) -> float:
        """How far a constant gradient of one moves these parameters per step in the long run."""
        wanted = {id(parameter) for parameter in self.parameters.values()}
        lengths = {
            float(group["lr"]) / (1 - float(group.get("momentum", 0.0)))
            for group in self.optimizer.param_groups
            if any(id(parameter) in wanted for parameter in group["params"])
        }
        if len(lengths) != 1:
            raise WoodburyError(
                f"The optimizer moves the penalty's parameters by the step lengths "
                f"{sorted(lengths)}: an implicit step needs one learning rate and momentum."
            )
        return lengths.pop()
