"""Refit: what stays moves until the network says again what the dense one said, by Gauss–Newton and without labels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.lowrank import LowRank
from woodbury.fisher.operator import check_damping
from woodbury.gauss_newton import SAMPLES, gauss_newton_rows
from woodbury.gradients import Engine, Progress, losses, regrouped, rows
from woodbury.objective import Objective
from woodbury.pruning.pruner import Pruned, Recipe
from woodbury.pruning.schedule import Targets
from woodbury.pruning.select import Cost
from woodbury.space import ParameterSpace

SHARES = (1.0, 0.5, 0.25, 0.125)
"""How much of a step is tried, until the outputs come closer."""


@dataclass(frozen=True)
class Refit:
    """Steps of damped Gauss–Newton towards the outputs of another network, on the objective's own samples  (eq. 61).

    The distance is the one that the Fisher measures, in `rank` directions to a sample, drawn anew in each of the `steps`;
    to second order it is the divergence between what the two networks predict. Needs rank × samples × d floats.
    """

    steps: int = 1
    rank: int = 2
    damping: float = 1e-3
    seed: int = 0
    engine: Engine | None = None
    progress: Progress | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_damping(self.damping)
        if min(self.steps, self.rank) < 1:
            raise WoodburyError(
                f"A refit of {self.steps} steps in {self.rank} directions does nothing: give at least 1."
            )

    def __call__(self, objective: Objective, dense: Objective) -> Objective:
        """The objective where its outputs are closest to those of `dense`; no model is touched. Raises WoodburyError."""
        for step in range(self.steps):
            objective = self._step(objective, dense, step)
        return objective

    def distance(self, objective: Objective, dense: Objective) -> float:
        """How far the outputs are from those of `dense`, in directions that no step has fitted  (eq. 61)."""
        goal, here = self._directed(objective, dense, self.steps)
        return _half_square(losses(here) - losses(goal))

    def _directed(self, objective: Objective, dense: Objective, draw: int) -> tuple[Objective, Objective]:
        """Both networks with their outputs along the same directions for losses; another draw after each pruning."""
        held = list(regrouped(objective.batches, SAMPLES))  # a loader may shuffle, and they are read several times
        goal = gauss_newton_rows(replace(dense, batches=held), self.rank, self.seed + objective.space.d + draw)
        return goal, replace(objective, batches=goal.batches, likelihood=goal.likelihood)

    def _step(self, objective: Objective, dense: Objective, draw: int) -> Objective:
        goal, here = self._directed(objective, dense, draw)
        told = losses(goal)
        residuals = losses(here) - told
        jacobian = rows(here, len(residuals), engine=self.engine, progress=self.progress)
        step = LowRank(jacobian, self.damping).solve_range(residuals / len(residuals)).to(here.weights.dtype)
        for share in SHARES:
            moved = here.at(here.weights - share * step)
            if _half_square(losses(moved) - told) < _half_square(residuals):  # never with a NaN
                return objective.at(moved.weights)
        return objective


@dataclass(frozen=True)
class Refitted:
    """A recipe, and after each of its steps a refit to the outputs of `dense`  (eq. 61).

    dense: where it all started; its own batches are not read. Each step remembers the distance that is left.
    """

    recipe: Recipe
    dense: Objective
    refit: Refit = field(default_factory=Refit)

    def __post_init__(self) -> None:
        if self.dense.likelihood.directions is None:
            raise WoodburyError("This likelihood has no directions of the output: prune without a refit.")

    @property
    def cost(self) -> Cost:
        """What counts towards the sparsity."""
        return self.recipe.cost

    def check(self, space: ParameterSpace, sparsity: Targets) -> None:
        """Raises WoodburyError if steps that end at `sparsity` cannot be."""
        self.recipe.check(space, sparsity)

    def __call__(self, objective: Objective, sparsity: Targets) -> Pruned:
        """Prune once, to `sparsity` of the original weights, and refit; the model is untouched. Raises WoodburyError."""
        pruned = self.recipe(objective, sparsity)
        objective = self.refit(pruned.objective, self.dense)
        left = self.refit.distance(objective, self.dense)
        return replace(
            pruned, objective=objective, steps=(*pruned.steps[:-1], replace(pruned.steps[-1], distance=left))
        )


def _half_square(residuals: Tensor) -> float:
    return 0.5 * float(residuals.double().square().mean())
