"""Pruner and Pruned: the steps in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.estimation.gradients import mean_gradient
from woodbury.estimation.recipes import Estimate, mfac
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.pruning.budget import Budget, budget_for, check_reachable
from woodbury.pruning.costs import Cost, weights
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.saliencies import Saliency, obs
from woodbury.pruning.schedule import Targets
from woodbury.pruning.scopes import Scope, global_
from woodbury.pruning.selections.greedy_selection import Selection, greedy
from woodbury.pruning.units import Unit, single
from woodbury.pruning.updates import Update, joint

NO_DAMPING = 1e-30
"""A damping that leaves a diagonal to the curvature."""


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
        ranked = values.sort().values
        last = len(ranked) - 1
        return cls(*(float(ranked[round(q * last)]) for q in (0.1, 0.5, 0.9)))


@dataclass(frozen=True)
class Step:
    """What one step did: the sparsity it reached and the loss increase that the quadratic predicted for it.

    saliencies: name -> the saliencies of its units before the step; empty if the selection asked for none.
    damping: of the Fisher, None without one; trust: the share of the gradient that was followed, None without it.
    distance: how far a refit has left the outputs from the dense network's  (eq. 61), None without one.
    """

    sparsity: float
    predicted: float | None
    saliencies: Mapping[str, Quantiles] = field(default_factory=dict)
    damping: float | None = None
    trust: float | None = None
    distance: float | None = None


@dataclass(frozen=True, eq=False)
class Pruned:
    """A pruned objective: its weights lie in the space of the weights that stay.

    steps: one per round. settings: what was chosen for the user, in words.
    """

    objective: Objective
    steps: tuple[Step, ...]
    settings: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def keep(self) -> Tensor:
        """(n,) bool over the original space, True = stays."""
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
        """The predicted loss increase: what the last refit left, else the sum of all steps; None without a Fisher."""
        if self.steps and self.steps[-1].distance is not None:
            return self.steps[-1].distance
        parts = [step.predicted for step in self.steps if step.predicted is not None]
        return sum(parts) if len(parts) == len(self.steps) else None

    def before_update(self, dense: Objective) -> Objective:
        """The dense objective with the weights that fell at zero and all others as they were: the removal alone."""
        space = self.objective.space
        return dense.at(
            dense.space.expand(dense.weights)[space.keep.to(dense.weights.device)], space
        )

    def write(self) -> None:
        """Copy the weights into the model, in place."""
        self.objective.write()


class Recipe(Protocol):
    """What prunes once: a Pruner, or something around one."""

    @property
    def cost(self) -> Cost: ...
    @property
    def scope(self) -> Scope: ...
    def check(self, space: ParameterSpace, sparsity: Targets) -> None: ...
    def __call__(self, objective: Objective, sparsity: Targets) -> Pruned: ...


@dataclass(frozen=True)
class Pruner:
    """A recipe: every field is an object or a function with the behaviour.

    fisher: objective -> Fisher, None for magnitude. saliency: what each unit is worth; selection: how saliencies become
    the weights that stay; update: how those move. unit × scope × cost: what falls together, competes, and counts towards
    the sparsity; normalize_by: what saliencies are divided by, None for the cost itself; ceiling: the share of a tensor that may go
    at most. first_order: give the gradient of the mean loss over the objective's batches to saliency and update
    (WoodTaylor), for nets that are not converged.
    """

    fisher: Estimate | None = field(default_factory=mfac)
    saliency: Saliency = obs
    update: Update = joint
    unit: Unit = single
    scope: Scope = global_
    first_order: bool = False
    selection: Selection = greedy
    cost: Cost = weights
    ceiling: float = 1.0
    normalize_by: Cost | None = None

    def budget(self, space: ParameterSpace, sparsity: Targets) -> Budget:
        """What competes on the way to `sparsity`. Raises WoodburyError if it cannot be reached: cheap, to be seen early."""
        return budget_for(
            space, sparsity, self.unit, self.scope, self.cost, self.ceiling, self.normalize_by
        )

    def check(self, space: ParameterSpace, sparsity: Targets) -> None:
        """Raises WoodburyError if steps that end at `sparsity` cannot be."""
        check_reachable(space, sparsity, self.scope, self.cost)
        self.budget(space, sparsity)

    def quadratic(self, objective: Objective) -> Quadratic:
        """The loss as this recipe sees it from the objective's weights."""
        quadratic = Quadratic(
            objective.weights,
            self.fisher(objective) if self.fisher else None,
            mean_gradient(objective) if self.first_order else None,
        )
        _check_reached(quadratic, objective.space)
        return quadratic

    def on_quadratic(self, quadratic: Quadratic, objective: Objective, sparsity: Targets) -> Pruned:
        """Prune once on a quadratic that is known already; the model is untouched. Raises WoodburyError."""
        space, units, heard = objective.space, self.budget(objective.space, sparsity), []
        keep = self.selection(quadratic, units, _heard(self.saliency, units, heard)).to(
            objective.weights.device
        )
        delta = self.update(quadratic, keep)
        remaining = (quadratic.weights + delta)[keep]
        if not bool(torch.isfinite(remaining).all()):
            raise WoodburyError("The update gave weights that are not finite: raise the damping.")
        pruned = objective.at(remaining, space.restrict(keep))
        step = Step(
            sparsity=pruned.space.sparsity,
            predicted=quadratic.increase(delta) if quadratic.fisher is not None else None,
            saliencies=_quantiles(heard, units, space),
            damping=quadratic.fisher.damping if quadratic.fisher is not None else None,
            trust=1.0 if self.first_order else None,
        )
        return Pruned(pruned, (step,))

    def __call__(self, objective: Objective, sparsity: Targets) -> Pruned:
        """Prune once, to `sparsity` of the original weights; the model is untouched. Raises WoodburyError."""
        self.budget(objective.space, sparsity)  # seen to be possible before any gradient is taken
        return self.on_quadratic(self.quadratic(objective), objective, sparsity)


def _heard(saliency: Saliency, units: Budget, heard: list[Tensor]) -> Saliency:
    """The saliency, and what it says of all units at first is noted in `heard`."""
    whole = 1 if units.groups is None else len(units.groups)

    def noted(quadratic: Quadratic, groups: Tensor | None) -> Tensor:
        scores = saliency(quadratic, groups)
        if len(heard) < whole:
            heard.append(scores.detach().cpu())
        return scores

    return noted


def _quantiles(
    heard: Sequence[Tensor], units: Budget, space: ParameterSpace
) -> dict[str, Quantiles]:
    if sum(map(len, heard)) != len(
        units.layers
    ):  # a selection of the user's own may ask for other units
        return {}
    scores, count = torch.cat(list(heard)).double(), len(space.shapes)
    parts = scores[units.layers.argsort(stable=True)].split(
        torch.bincount(units.layers, minlength=count).tolist()
    )
    return {
        name: Quantiles.of(part)
        for name, part in zip(space.shapes, parts, strict=True)
        if len(part)
    }


def _check_reached(quadratic: Quadratic, space: ParameterSpace) -> None:
    """An error for a tensor that no gradient reached: the quadratic would give all of it away for nothing."""
    if quadratic.fisher is None or space.kept is not None:
        return
    curved = quadratic.fisher.with_damping(NO_DAMPING).diagonal() > 2 * NO_DAMPING
    for name, part in space.slices.items():
        if not bool(curved[part].any()) and bool((quadratic.weights[part] != 0).any()):
            raise WoodburyError(
                f"No gradient reached {name!r}: is it unused, detached or under no_grad? Leave it out with exclude={name!r}."
            )
