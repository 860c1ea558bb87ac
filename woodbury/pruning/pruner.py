"""One pruning step: a quadratic, the units to remove by it, and the update of the kept weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from woodbury.argument_types import check_fields, checks_types
from woodbury.errors import WoodburyError, WrongType
from woodbury.estimation.gradients import mean_gradient
from woodbury.estimation.recipes import Estimate, mfac
from woodbury.fisher.base import Fisher
from woodbury.fisher.checks import NEGLIGIBLE_DAMPING
from woodbury.fisher.sharded import Sharded
from woodbury.io.representation import readable
from woodbury.model.objective import Objective
from woodbury.model.prunable import check_prunable
from woodbury.model.space import ParameterSpace
from woodbury.pruning.budget import Budget, budget_for, budget_of
from woodbury.pruning.costs import Cost, weights
from woodbury.pruning.feasibility import account_of
from woodbury.pruning.pruned import Carried, Pruned, StageResult
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.saliencies import Saliency, obs
from woodbury.pruning.schedule import Targets
from woodbury.pruning.scopes import Scope, global_
from woodbury.pruning.selections.greedy_selection import Selection, greedy
from woodbury.pruning.step import StepRules, whole_step
from woodbury.pruning.step_over_ranks import can_be_divided, divided_step
from woodbury.pruning.units import Unit, single
from woodbury.pruning.updates import Update, joint


@runtime_checkable
class PruningRecipe(Protocol):
    """What prunes once: a Pruner, or something around one, such as a DampingSearch or WithRefit."""

    @property
    def rules(self) -> Pruner:
        """The Pruner inside, whose unit, scope, cost and limits hold."""
        ...

    def __call__(
        self, objective: Objective, sparsity: Targets, carried: Carried | None = None
    ) -> Pruned:
        """Prune once, with what the stage before has left; the model is untouched."""
        ...


def check_recipe(recipe: object) -> None:
    """Raise unless something is a recipe of pruning.

    Args:
        recipe: What was given as one.

    Raises:
        WrongType: If it is something else, such as an estimate of the Fisher.
    """
    if not isinstance(recipe, PruningRecipe) or isinstance(recipe, type):
        raise WrongType(
            f"The pruner is a {type(recipe).__name__}: "
            "give Pruner(fisher=...), such as Pruner(mfac(500))."
        )


@dataclass(frozen=True)
class Pruner:
    """How to prune once: every field is a function or object with the behaviour.

    Attributes:
        fisher: The estimate of the curvature, objective -> Fisher (eq. 1); None for magnitude
            pruning.
        saliency: What the removal of each unit costs (eq. 15-17).
        update: How the kept weights move (eq. 9, 12, 19).
        unit: The granularity: which weights are removed together.
        scope: Which weights compete: all, those of a layer, or m in a row (eq. 18).
        first_order: Whether saliency and update see the gradient of the mean loss (eq. 12, 17), for
            networks that are not converged.
        selection: How saliencies become the kept weights (eq. 18, 28, 53, 58, 59).
        cost: What each weight counts towards the sparsity: 1, or its FLOPs (eq. 50).
        max_layer_sparsity: Share of each tensor that is removed at most; 1 for no limit.
        normalize_by: What saliencies are divided by, None for the cost itself (eq. 51).

    Example:
        >>> import torch, woodbury
        >>> pruner = Pruner(woodbury.mfac(16), scope=woodbury.scopes.layerwise)
        >>> batches = [(torch.randn(16, 4), torch.arange(16) % 2)]
        >>> woodbury.prune(torch.nn.Linear(4, 2), batches, 0.75, pruner=pruner).sparsity
        0.75
        >>> Pruner(None, woodbury.saliencies.magnitude, woodbury.updates.zero).saliency.__name__
        'magnitude'
    """

    fisher: Estimate | None = field(default_factory=mfac)
    saliency: Saliency = obs
    update: Update = joint
    unit: Unit = single
    scope: Scope = global_
    first_order: bool = False
    selection: Selection = greedy
    cost: Cost = weights
    max_layer_sparsity: float = 1.0
    normalize_by: Cost | None = None

    __repr__ = readable

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.fisher, nn.Module):
            raise WrongType(
                f"fisher is a {type(self.fisher).__name__}: give what estimates a Fisher, such as "
                "woodbury.mfac(100)."
            )

    @property
    def rules(self) -> Pruner:
        """This pruner: its own unit, scope, cost and limits hold."""
        return self

    def budget(self, space: ParameterSpace, sparsity: Targets) -> Budget:
        """What competes on the way to a sparsity; cheap, so that errors come before any gradient.

        Args:
            space: The n weights, and which of them are kept.
            sparsity: Removed ÷ all in the unit of the cost, or one for each of several name
                patterns.

        Returns:
            The budget of one stage.

        Raises:
            WoodburyError: If the sparsity cannot be reached.
        """
        return budget_for(
            space,
            sparsity,
            self.unit,
            self.scope,
            self.cost,
            self.max_layer_sparsity,
            self.normalize_by,
        )

    def check(self, space: ParameterSpace, sparsity: Targets) -> None:
        """Raise if stages that end at a sparsity are impossible.

        Args:
            space: The n weights, and which of them are kept.
            sparsity: That of the last stage.

        Raises:
            WoodburyError: If the sparsity cannot be reached, or some pool is beyond it already.
        """
        account = account_of(space, sparsity, self.scope, self.cost)
        account.check_each_pool()
        budget_of(account, self.unit, self.max_layer_sparsity, self.normalize_by)

    @checks_types
    def quadratic(self, objective: Objective, fisher: Fisher | None = None) -> Quadratic:
        """The model of the loss around the objective's weights  (eq. 14).

        Args:
            objective: The network and its calibration set.
            fisher: The curvature, where it is known; None estimates it.

        Returns:
            The quadratic with the Fisher and gradient that this pruner asks for.

        Raises:
            WoodburyError: If the estimate fails, or no gradient reached one of the tensors.
        """
        if fisher is None and self.fisher is not None:
            fisher = self.fisher(objective)
        quadratic = Quadratic(
            objective.weights,
            fisher,
            mean_gradient(objective) if self.first_order else None,
        )
        _check_every_tensor_is_curved(quadratic, objective.space)
        return quadratic

    def on_quadratic(
        self,
        quadratic: Quadratic,
        objective: Objective,
        sparsity: Targets,
        budget: Budget | None = None,
    ) -> Pruned:
        """Prune once on a quadratic that is known already.

        Args:
            quadratic: On the d kept weights of the objective.
            objective: The network before the stage.
            sparsity: Removed ÷ all in the unit of the cost, or one for each of several name
                patterns.
            budget: What `budget(objective.space, sparsity)` gave; None makes it.

        Returns:
            The pruned objective; the model is untouched.

        Raises:
            WoodburyError: If the sparsity cannot be reached, or the update is not finite.
        """
        space = objective.space
        if budget is None:
            budget = self.budget(space, sparsity)
        rules = StepRules(self.saliency, self.selection, self.update)
        divided = can_be_divided(rules, quadratic, budget)
        step = (divided_step if divided else whole_step)(rules, quadratic, budget, space)
        pruned = objective.at(step.weights, space.restrict(step.keep))
        result = StageResult(
            sparsity=pruned.space.sparsity,
            predicted=step.predicted,
            saliencies=step.saliencies,
            damping=None if quadratic.fisher is None else quadratic.fisher.damping,
            trust=1.0 if self.first_order else None,
            damping_share=step.damping_share,
        )
        return Pruned(pruned, (result,))

    @checks_types
    def __call__(
        self, objective: Objective, sparsity: Targets, carried: Carried | None = None
    ) -> Pruned:
        """Prune once.

        Args:
            objective: The network and its calibration set.
            sparsity: Removed ÷ all in the unit of the cost, counted from the original weights, or
                one for each of several name patterns.
            carried: What the stage before has left; None for the first.

        Returns:
            The pruned objective; the model is untouched.

        Raises:
            WoodburyError: If the sparsity cannot be reached, before any gradient is taken; or what
                `quadratic` and `on_quadratic` raise.
        """
        check_prunable(objective.model, objective.space.shapes)
        budget = self.budget(objective.space, sparsity)
        fisher = None if carried is None else carried.fisher
        return self.on_quadratic(self.quadratic(objective, fisher), objective, sparsity, budget)


def _check_every_tensor_is_curved(quadratic: Quadratic, space: ParameterSpace) -> None:
    """An error for a tensor that no gradient reached: its removal would seem to cost nothing."""
    if quadratic.fisher is None or space.kept is not None:
        return
    curved = _curved_tensors(quadratic.fisher.with_damping(NEGLIGIBLE_DAMPING), space)
    unreached = [
        name
        for (name, part), is_curved in zip(space.slices.items(), curved, strict=True)
        if not is_curved and bool((quadratic.weights[part] != 0).any())
    ]
    if unreached:
        raise no_gradient_reached(unreached)


def no_gradient_reached(names: Sequence[str]) -> WoodburyError:
    """The error for tensors of which nothing is known.

    Args:
        names: Theirs, at least one.

    Returns:
        The error, which is to be raised.
    """
    them = repr(names[0]) if len(names) == 1 else repr(list(names))
    return WoodburyError(
        f"No gradient reached {them}: unused, detached, saturated or under no_grad? "
        f"Leave it alone with exclude={them}."
    )


def _curved_tensors(fisher: Fisher, space: ParameterSpace) -> list[bool]:
    """Whether some weight of each tensor has a curvature; over ranks, of those of any."""
    part = fisher.part if isinstance(fisher, Sharded) else None
    first = 0 if part is None else part.own.start
    curved = (fisher if part is None else part).diagonal() > 2 * NEGLIGIBLE_DAMPING
    found = torch.tensor(
        [
            int(curved[max(where.start - first, 0) : max(where.stop - first, 0)].any())
            for where in space.slices.values()
        ]
    )
    return (found if part is None else part.ranks.sum(found)).bool().tolist()
