"""Refit: what stays moves until the network says again what the dense one said, by Gauss–Newton and without labels."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

from woodbury.errors import WoodburyError
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.pruning.costs import Cost
from woodbury.pruning.pruner import Pruned, Recipe
from woodbury.pruning.refit.least_squares import Refit
from woodbury.pruning.schedule import Targets
from woodbury.pruning.scopes import Scope


@dataclass(frozen=True)
class WithRefit:
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
            raise WoodburyError(
                "This likelihood has no directions of the output: prune without a refit."
            )
        # its biases and statistics must not follow a model that is trained on
        object.__setattr__(
            self, "dense", replace(self.dense, model=copy.deepcopy(self.dense.model))
        )

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
            pruned,
            objective=objective,
            steps=(*pruned.steps[:-1], replace(pruned.steps[-1], distance=left)),
        )
