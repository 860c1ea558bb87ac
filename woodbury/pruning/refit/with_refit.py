"""WithRefit: a pruning recipe with a refit after each of its steps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from woodbury.argument_types import check_fields, checks_types
from woodbury.errors import WoodburyError, WrongType
from woodbury.model.attributes import copy_of
from woodbury.model.objective import Objective
from woodbury.model.random_numbers import random_kept
from woodbury.pruning.pruned import Carried, Pruned
from woodbury.pruning.pruner import Pruner, PruningRecipe
from woodbury.pruning.refit.output_fit import FisherOfRows, Refit
from woodbury.pruning.schedule import Targets


@dataclass(frozen=True)
class WithRefit:
    """A recipe whose every step is followed by a refit to the dense network's outputs  (eq. 61).

    Build it with `WithRefit.around(recipe, dense)`, which copies the dense network. The constructor
    takes `dense` as it is, so that `replace` copies nothing: its model must not change afterwards.

    Attributes:
        recipe: A Pruner or a DampingSearch.
        dense: The network before any pruning, at its own weights. Its batches are not read.
        refit: The refit.
        reuse: What makes the Fisher of the next stage of the rows of this one's refit, such as
            `mfac(…).of_rows`: the curvature is then one refit step behind, and costs no gradients
            (eq. 69). None estimates it anew at every stage.

    Raises:
        WrongType: If `recipe` does not prune, or `dense` is no Objective.
        WoodburyError: If the likelihood has no directions.

    Example:
        >>> import torch
        >>> import woodbury
        >>> model = torch.nn.Linear(3, 4)
        >>> dense = woodbury.Objective.from_model(model, [(torch.randn(20, 3), None)])
        >>> pruner = woodbury.Pruner(woodbury.gauss_newton(woodbury.mfac(40)))
        >>> recipe = WithRefit.around(pruner, dense, woodbury.Refit(damping=1e-2))
        >>> recipe(dense, 0.5).sparsity
        0.5
    """

    recipe: PruningRecipe
    dense: Objective
    refit: Refit = field(default_factory=Refit)
    reuse: FisherOfRows | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.dense, Objective) or not isinstance(self.recipe, PruningRecipe):
            raise WrongType(
                f"WithRefit got a {type(self.recipe).__name__} and a {type(self.dense).__name__}: "
                "give a Pruner or a DampingSearch, and the Objective of the dense network."
            )
        check_fields(self)
        if self.dense.likelihood.directions is None:
            raise WoodburyError(
                "This likelihood has no directions of the output: prune without a refit."
            )

    @classmethod
    def around(
        cls,
        recipe: PruningRecipe,
        dense: Objective,
        refit: Refit | None = None,
        reuse: FisherOfRows | None = None,
    ) -> WithRefit:
        """The recipe with a refit to a copy of the dense network, made now.

        The copy keeps biases and statistics of BatchNorm as they are, also where the model is
        trained on.

        Args:
            recipe: A Pruner or a DampingSearch.
            dense: The network before any pruning.
            refit: The refit; by default `Refit()`.
            reuse: What makes the Fisher of the next stage of the refit's rows.

        Returns:
            The recipe.

        Raises:
            WoodburyError: As the constructor.
        """
        checked = cls(recipe, dense, refit or Refit(), reuse)
        return replace(checked, dense=replace(dense, model=copy_of(dense.model)))

    @property
    def rules(self) -> Pruner:
        """The Pruner inside, whose unit, scope, cost and limits hold."""
        return self.recipe.rules

    @checks_types
    @random_kept()
    def __call__(
        self, objective: Objective, sparsity: Targets, carried: Carried | None = None
    ) -> Pruned:
        """Prune once and refit.

        Args:
            objective: The network at the weights reached so far; its batches are the calibration
                set.
            sparsity: Removed ÷ all weights of the original space, after this step.
            carried: What the stage before has left; None for the first.

        Returns:
            The pruned objective; its last step has the `distance` that the refit left. The model is
            untouched.

        Raises:
            WoodburyError: As the recipe and the refit.
        """
        pruned = self.recipe(objective, sparsity, carried)
        goal = None if carried is None else carried.goal
        refitted = self.refit.run(pruned.objective, self.dense, goal, self.reuse)
        *earlier, last = pruned.steps
        equations = None if refitted.goal is None else refitted.goal.residuals.m
        steps = (*earlier, replace(last, distance=refitted.distance, equations=equations))
        left = Carried(refitted.fisher, refitted.goal)
        return replace(pruned, objective=refitted.objective, steps=steps, carried=left)
