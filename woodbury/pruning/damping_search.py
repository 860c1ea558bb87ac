"""Tuned: the damping, and how much of the gradient to follow, chosen by the measured loss on data held back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from woodbury.errors import WoodburyError
from woodbury.fisher.checks import check_damping
from woodbury.fisher.lowrank import LowRank
from woodbury.model.batches import Batch
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.pruning.costs import Cost
from woodbury.pruning.pruner import Pruned, Pruner
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.schedule import Targets
from woodbury.pruning.scopes import Scope

DAMPINGS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


TRUST = (1.0, 0.5, 0.25, 0.1, 0.03, 0.0)


@dataclass(frozen=True)
class DampingSearch:
    """A Pruner that tries several dampings at every step, and keeps the weights of least measured loss.

    held_back: batches that the Fisher does not see, of the *training* data; neither the test data. dampings: candidates, all
    on one estimate of the curvature  (eq. 60). trust: with the first-order term, the shares of the gradient to follow: the
    quadratic promises most for all of it, the measured loss decides (a trust region by trial).
    """

    pruner: Pruner
    held_back: Iterable[Batch]
    dampings: tuple[float, ...] = DAMPINGS
    trust: tuple[float, ...] = TRUST

    def __post_init__(self) -> None:
        if not isinstance(self.pruner, Pruner):
            raise WoodburyError(
                f"Tuned got a {type(self.pruner).__name__}: give it a Pruner, and put others around Tuned."
            )
        if self.pruner.fisher is None:
            raise WoodburyError(
                "This pruner has no Fisher and so no damping to choose: use it as it is."
            )
        if isinstance(self.held_back, Iterator):
            raise WoodburyError(
                "held_back can be read only once: give a list or a DataLoader, not a generator."
            )
        if not self.dampings or not self.trust:
            raise WoodburyError(
                "There is nothing to choose from: give at least one damping and one share of the gradient."
            )
        for damping in self.dampings:
            check_damping(damping)
        if any(not 0 <= share <= 1 for share in self.trust):
            raise WoodburyError(
                f"The shares of the gradient are {self.trust}: each must lie in [0, 1]."
            )

    @property
    def cost(self) -> Cost:
        """What counts towards the sparsity."""
        return self.pruner.cost

    @property
    def scope(self) -> Scope:
        """What competes."""
        return self.pruner.scope

    def check(self, space: ParameterSpace, sparsity: Targets) -> None:
        """Raises WoodburyError if steps that end at `sparsity` cannot be."""
        self.pruner.check(space, sparsity)

    def __call__(self, objective: Objective, sparsity: Targets) -> Pruned:
        """Prune once, to `sparsity` of the original weights; the model is untouched. Raises WoodburyError."""
        self.pruner.budget(objective.space, sparsity)
        quadratic = self.pruner.quadratic(objective)
        fisher = quadratic.curvature("Choosing a damping")
        if isinstance(fisher, LowRank) and len(self.dampings) > 1:
            fisher = fisher.spectral()
        best, least = None, math.inf
        for damping in self.dampings:
            for candidate in self._candidates(
                replace(quadratic, fisher=fisher.with_damping(damping)), objective, sparsity
            ):
                loss = candidate.objective.loss(self.held_back)
                if loss < least:  # never a NaN
                    best, least = candidate, loss
        if best is None:
            raise WoodburyError(
                "Every damping gave a network whose held-back loss is not finite: add larger dampings."
            )
        return best

    def _candidates(
        self, quadratic: Quadratic, objective: Objective, sparsity: Targets
    ) -> Iterable[Pruned]:
        gradient = quadratic.gradient
        for share in (1.0,) if gradient is None else self.trust:
            scaled = (
                quadratic if gradient is None else replace(quadratic, gradient=share * gradient)
            )
            pruned = self.pruner.on_quadratic(scaled, objective, sparsity)
            followed = None if gradient is None else share
            yield replace(
                pruned, steps=tuple(replace(step, trust=followed) for step in pruned.steps)
            )
