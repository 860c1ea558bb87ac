"""One pruning step: a quadratic, the units to remove by it, and the update of the kept weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from woodbury.argument_types import check_fields, checks_types
from woodbury.errors import WoodburyError, WrongType, user_code
from woodbury.estimation.goal import Goal
from woodbury.estimation.gradients import mean_gradient
from woodbury.estimation.recipes import Estimate, mfac
from woodbury.fisher.base import Fisher
from woodbury.fisher.checks import NEGLIGIBLE_DAMPING
from woodbury.io.representation import readable
from woodbury.linalg.conversion import as_tensor
from woodbury.model.objective import Objective
from woodbury.model.prunable import check_prunable
from woodbury.model.space import ParameterSpace
from woodbury.pruning.budget import Budget, budget_for, budget_of
from woodbury.pruning.costs import Cost, weights
from woodbury.pruning.feasibility import account_of
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.run_plan import Plan
from woodbury.pruning.saliencies import Saliency, obs
from woodbury.pruning.schedule import Targets
from woodbury.pruning.scopes import Scope, global_
from woodbury.pruning.selections.greedy_selection import Selection, greedy
from woodbury.pruning.units import Unit, single
from woodbury.pruning.updates import Update, joint


@dataclass(frozen=True)
class Quantiles:
    """Three quantiles of the saliencies of one tensor's units; each is one of the saliencies.

    Attributes:
        q10: A tenth of the saliencies are below it.
        median: Half of them are below it.
        q90: Nine tenths of them are below it.

    Example:
        >>> Quantiles.of(torch.arange(11.0))
        Quantiles(q10=1.0, median=5.0, q90=9.0)
    """

    q10: float
    median: float
    q90: float

    @classmethod
    def of(cls, values: Tensor) -> Quantiles:
        """The quantiles of values (k,), at least one."""
        ranked = values.cpu().numpy().copy()
        places = [round(q * (len(ranked) - 1)) for q in (0.1, 0.5, 0.9)]
        ranked.partition(places)
        return cls(*(float(ranked[place]) for place in places))


@dataclass(frozen=True)
class StageResult:
    """What one stage of pruning did.

    Attributes:
        sparsity: Removed ÷ all weights after it.
        predicted: The increase of the loss by the quadratic (eq. 14); None without a Fisher.
        saliencies: Tensor name -> quantiles of the saliencies of its units before the stage; empty
            if the selection asked for none.
        damping: Of the Fisher; None without one.
        trust: Share of the gradient that was followed; None without the first-order term.
        distance: How far a refit has left the outputs from the dense network's (eq. 61); None
            without a refit.
    """

    sparsity: float
    predicted: float | None
    saliencies: Mapping[str, Quantiles] = field(default_factory=dict)
    damping: float | None = None
    trust: float | None = None
    distance: float | None = None


class Carried(NamedTuple):
    """What a stage leaves for the next one on the same batches, so that nothing is done twice.

    Attributes:
        fisher: The curvature at weights near those reached; None where it is to be estimated.
        goal: What a refit knows of the dense network; None where it is to be run.
    """

    fisher: Fisher | None
    goal: Goal | None


@dataclass(frozen=True, eq=False)
class Pruned:
    """A pruned objective: its weights are the kept ones, and its space knows which these are.

    Attributes:
        objective: At the weights reached; the model is untouched until `write`.
        steps: One result for each stage.
        settings: Name -> what was chosen for the user, and what was left out; empty if nothing
            was.
        plan: What the run was predicted to do and take; None for a recipe of the user's own.
        carried: What the last step leaves for the next one on the same batches.

    Example:
        >>> import torch, woodbury
        >>> model = torch.nn.Linear(4, 2, bias=False)
        >>> batches = [(torch.randn(8, 4), torch.arange(8) % 2)]
        >>> objective = woodbury.Objective.from_model(model, batches)
        >>> pruned = woodbury.Pruner(woodbury.mfac(8))(objective, 0.5)
        >>> pruned.sparsity, int((pruned.weights == 0).sum())
        (0.5, 4)
    """

    objective: Objective
    steps: tuple[StageResult, ...]
    settings: Mapping[str, str | int] = field(default_factory=dict)
    plan: Plan | None = None
    carried: Carried | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    def __repr__(self) -> str:
        """One line."""
        space, stages = self.objective.space, len(self.steps)
        return f"Pruned(sparsity={self.sparsity:.4f}, weights={space.n}, stages={stages})"

    @property
    def keep(self) -> Tensor:
        """(n,) bool over the original space, True = kept."""
        return self.objective.space.keep

    @property
    def weights(self) -> Tensor:
        """(n,), removed weights exactly 0."""
        return self.objective.space.expand(self.objective.weights)

    @property
    def sparsity(self) -> float:
        """Removed ÷ all weights of the original space."""
        return self.objective.space.sparsity

    @property
    def predicted(self) -> float | None:
        """The predicted increase of the loss; None without a Fisher.

        After a refit it is the distance that the last one left, else the sum over the stages.
        """
        if self.steps and self.steps[-1].distance is not None:
            return self.steps[-1].distance
        increases = [step.predicted for step in self.steps if step.predicted is not None]
        return sum(increases) if len(increases) == len(self.steps) else None

    def before_update(self, dense: Objective) -> Objective:
        """The removal alone: the kept weights at their dense values.

        Args:
            dense: The objective before pruning.

        Returns:
            `dense` on the kept weights.
        """
        space = self.objective.space
        weights = dense.space.expand(dense.weights)
        return dense.at(weights[space.keep.to(weights.device)], space)

    def write(self) -> None:
        """Copy the weights into the model, in place."""
        self.objective.write()


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
        recorded: list[Tensor] = []
        saliency = _recording(self.saliency, budget, recorded)
        with user_code("The saliency or the selection fails on this quadratic."):
            keep = as_tensor(self.selection(quadratic, budget, saliency), "What the selection gave")
        keep = keep.to(objective.weights.device)
        with user_code("The update fails on this quadratic."):
            delta = as_tensor(self.update(quadratic, keep), "What the update gave")
        kept_weights = (quadratic.weights + delta)[keep]
        if not bool(torch.isfinite(kept_weights).all()):
            raise WoodburyError("The update gave weights that are not finite: raise the damping.")
        pruned = objective.at(kept_weights, space.restrict(keep))
        result = StageResult(
            sparsity=pruned.space.sparsity,
            predicted=None if quadratic.fisher is None else quadratic.increase(delta),
            saliencies=_quantiles(recorded, budget, space),
            damping=None if quadratic.fisher is None else quadratic.fisher.damping,
            trust=1.0 if self.first_order else None,
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


def _recording(saliency: Saliency, budget: Budget, recorded: list[Tensor]) -> Saliency:
    """The saliency, whose scores of all units, when first asked for, are appended to `recorded`."""
    calls = 1 if budget.groups is None else len(budget.groups)

    def and_record(quadratic: Quadratic, groups: Tensor | None) -> Tensor:
        scores = as_tensor(saliency(quadratic, groups), "What the saliency gave")
        if len(recorded) < calls:
            recorded.append(scores.cpu())
        return scores

    return and_record


def _quantiles(
    recorded: Sequence[Tensor], budget: Budget, space: ParameterSpace
) -> dict[str, Quantiles]:
    """The quantiles of each tensor's scores; none if those of other units were asked for."""
    if sum(map(len, recorded)) != len(budget.layers):
        return {}
    scores = recorded[0] if len(recorded) == 1 else torch.cat(list(recorded))
    if budget.groups is not None:  # by size of unit; single weights are by tensor already
        scores = scores[budget.layers.argsort(stable=True)]
    sizes = torch.bincount(budget.layers, minlength=len(space.shapes)).tolist()
    return {
        name: Quantiles.of(layer_scores)
        for name, layer_scores in zip(space.shapes, scores.split(sizes), strict=True)
        if len(layer_scores)
    }


def _check_every_tensor_is_curved(quadratic: Quadratic, space: ParameterSpace) -> None:
    """An error for a tensor that no gradient reached: its removal would seem to cost nothing."""
    if quadratic.fisher is None or space.kept is not None:
        return
    diagonal = quadratic.fisher.with_damping(NEGLIGIBLE_DAMPING).diagonal()
    curved = diagonal > 2 * NEGLIGIBLE_DAMPING
    unreached = [
        name
        for name, part in space.slices.items()
        if not bool(curved[part].any()) and bool((quadratic.weights[part] != 0).any())
    ]
    if unreached:
        them = repr(unreached[0]) if len(unreached) == 1 else repr(unreached)
        raise WoodburyError(
            f"No gradient reached {them}: unused, detached, saturated or under no_grad? "
            f"Leave it alone with exclude={them}."
        )
