"""Refit: what stays moves until the network says again what the dense one said, by Gauss–Newton and without labels."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.lowrank import LowRank
from woodbury.fisher.operator import check_damping
from woodbury.gauss_newton import gauss_newton_rows
from woodbury.gradients import Engine, Progress, losses, regrouped, rows
from woodbury.objective import Objective
from woodbury.pruning.pruner import Pruned, Recipe
from woodbury.pruning.schedule import Targets
from woodbury.pruning.select import Cost, Scope
from woodbury.space import ParameterSpace

SHARES = (1.0, 0.5, 0.25, 0.125)
"""How much of a step is tried, until the outputs come closer."""


@dataclass(frozen=True)
class Refit:
    """Steps of damped Gauss–Newton towards the outputs of another network, on the objective's own samples  (eq. 61).

    The distance is the one that the Fisher measures, in `rank` directions to a sample, drawn anew in each of the `steps`;
    to second order it is the divergence between what the two networks predict. samples: the first so many of the batches,
    None for all; rank × samples × d floats are needed.
    """

    steps: int = 1
    rank: int = 2
    damping: float = 1e-3
    samples: int | None = None
    seed: int = 0
    engine: Engine | None = None
    progress: Progress | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_damping(self.damping)
        numbers = {"steps": self.steps, "rank": self.rank, "samples": 1 if self.samples is None else self.samples}
        for name, number in numbers.items():
            if not isinstance(number, int) or number < 1:
                raise WoodburyError(f"A refit with {name}={number} cannot be: give a whole number of at least 1.")

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
        seed = self.seed + objective.space.d * (self.steps + 1) + draw
        batches = objective.batches if self.samples is None else list(regrouped(objective.batches, 64, self.samples))
        goal = gauss_newton_rows(replace(dense, batches=batches), self.rank, seed)
        drawn = list(goal.batches)  # once, as they are read several times and a loader may shuffle
        return replace(goal, batches=drawn), replace(objective, batches=drawn, likelihood=goal.likelihood)

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

    dense: where it all started, of which a copy is kept; its own batches are not read. Each step remembers the distance that is
    left.
    """

    recipe: Recipe
    dense: Objective
    refit: Refit = field(default_factory=Refit)

    def __post_init__(self) -> None:
        if not isinstance(self.dense, Objective) or not hasattr(self.recipe, "check"):
            raise WoodburyError(
                f"Refitted got a {type(self.recipe).__name__} and a {type(self.dense).__name__}: give a Pruner, or a Tuned "
                "one, and the Objective of the dense network."
            )
        if self.dense.likelihood.directions is None:
            raise WoodburyError("This likelihood has no directions of the output: prune without a refit.")
        # its biases and statistics must not follow a model that is trained on
        object.__setattr__(self, "dense", replace(self.dense, model=copy.deepcopy(self.dense.model)))

    @property
    def cost(self) -> Cost:
        """What counts towards the sparsity."""
        return self.recipe.cost

    @property
    def scope(self) -> Scope:
        """What competes."""
        return self.recipe.scope

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
