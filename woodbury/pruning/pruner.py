"""Pruner and Pruned: the steps in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.fisher.estimate import Estimate, mfac
from woodbury.gradients import Progress, mean_gradient
from woodbury.objective import Batch, Likelihood, Objective, cross_entropy, samples_in
from woodbury.pruning.contest import Contest, check_reachable, contest
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.saliency import Saliency, obs
from woodbury.pruning.schedule import Targets
from woodbury.pruning.schedule import rounds as geometric
from woodbury.pruning.select import Cost, Scope, everything, weights
from woodbury.pruning.selection import Selection, once
from woodbury.pruning.units import Unit, single
from woodbury.pruning.update import Update, joint
from woodbury.space import ParameterSpace, Patterns

NO_DAMPING = 1e-30
"""A damping that leaves a diagonal to the curvature."""


QUANTILES = (0.1, 0.5, 0.9)
"""Which quantiles of a layer's saliencies a step remembers."""


@dataclass(frozen=True)
class Step:
    """What one step did: the sparsity it reached and the loss increase that the quadratic predicted for it.

    saliencies: name -> the QUANTILES of the saliencies of its units before the step; empty if the selection asked for none.
    """

    sparsity: float
    predicted: float | None
    saliencies: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Pruned:
    """A pruned objective: its weights lie in the space of the weights that stay.

    steps: one per round; `predicted` is their summed loss increase, None without a Fisher.
    """

    objective: Objective
    steps: tuple[Step, ...]

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
        """The predicted loss increase of all steps together."""
        parts = [step.predicted for step in self.steps if step.predicted is not None]
        return sum(parts) if len(parts) == len(self.steps) else None

    def write(self) -> None:
        """Copy the weights into the model, in place."""
        self.objective.write()


@dataclass(frozen=True)
class Pruner:
    """A recipe: every field is an object or a function with the behaviour.

    fisher: objective -> Fisher, None for magnitude. saliency: what each unit is worth; selection: how saliencies become
    the weights that stay; update: how those move. unit × scope × cost: what falls together, competes, and counts towards
    the sparsity; per: what saliencies are divided by, such as the FLOPs of each weight to a power; ceiling: the share of a
    tensor that may go at most. first_order: give the gradient of the mean loss over
    the objective's batches to saliency and update (WoodTaylor), for nets that are not converged.
    """

    fisher: Estimate | None = field(default_factory=mfac)
    saliency: Saliency = obs
    update: Update = joint
    unit: Unit = single
    scope: Scope = everything
    first_order: bool = False
    selection: Selection = once
    cost: Cost = weights
    ceiling: float = 1.0
    per: Cost | None = None

    def contest(self, space: ParameterSpace, sparsity: Targets) -> Contest:
        """What competes on the way to `sparsity`. Raises WoodburyError if it cannot be reached: cheap, to be seen early."""
        return contest(space, sparsity, self.unit, self.scope, self.cost, self.ceiling, self.per)

    def __call__(self, objective: Objective, sparsity: Targets) -> Pruned:
        """Prune once, to `sparsity` of the original weights; the model is untouched. Raises WoodburyError."""
        space = objective.space
        units = self.contest(space, sparsity)
        quadratic = Quadratic(
            objective.weights,
            self.fisher(objective) if self.fisher else None,
            mean_gradient(objective) if self.first_order else None,
        )
        _check_reached(quadratic, space)
        heard: list[Tensor] = []
        keep = self.selection(quadratic, units, _heard(self.saliency, units, heard)).to(objective.weights.device)
        delta = self.update(quadratic, keep)
        remaining = (quadratic.weights + delta)[keep]
        if not bool(torch.isfinite(remaining).all()):
            raise WoodburyError("The update gave weights that are not finite: raise the damping.")
        pruned = objective.at(remaining, space.restrict(keep))
        predicted = quadratic.increase(delta) if quadratic.fisher is not None else None
        return Pruned(pruned, (Step(pruned.space.sparsity, predicted, _quantiles(heard, units, space)),))


def _heard(saliency: Saliency, units: Contest, heard: list[Tensor]) -> Saliency:
    """The saliency, and what it says of all units at first is noted in `heard`."""
    whole = 1 if units.groups is None else len(units.groups)

    def noted(quadratic: Quadratic, groups: Tensor | None) -> Tensor:
        scores = saliency(quadratic, groups)
        if len(heard) < whole:
            heard.append(scores.detach().cpu())
        return scores

    return noted


def _quantiles(heard: Sequence[Tensor], units: Contest, space: ParameterSpace) -> dict[str, tuple[float, ...]]:
    if sum(map(len, heard)) != len(units.layers):  # a selection of the user's own may ask for other units
        return {}
    scores, count = torch.cat(list(heard)).double(), len(space.shapes)
    parts = scores[units.layers.argsort(stable=True)].split(torch.bincount(units.layers, minlength=count).tolist())
    ranked = {name: part.sort().values for name, part in zip(space.shapes, parts, strict=True) if len(part)}
    return {name: tuple(float(own[round(q * (len(own) - 1))]) for q in QUANTILES) for name, own in ranked.items()}


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


def in_rounds(
    pruner: Pruner, objective: Objective, sparsities: Sequence[Targets], progress: Progress | None = None
) -> Pruned:
    """Prune to one sparsity after the other, with fresh gradients at the weights reached each time; the model is untouched."""
    if not sparsities:
        raise WoodburyError("There is no sparsity to prune to: give at least one.")
    check_reachable(objective.space, sparsities[-1], pruner.scope, pruner.cost)
    pruner.contest(objective.space, sparsities[-1])
    pruned = Pruned(objective, ())
    for done, sparsity in enumerate(sparsities, 1):
        step = pruner(pruned.objective, sparsity)
        pruned = replace(step, steps=pruned.steps + step.steps)
        if progress:
            progress("rounds", done, len(sparsities))
    return pruned


def prune(
    model: nn.Module,
    batches: Iterable[Batch],
    sparsity: Targets,
    *,
    pruner: Pruner | None = None,
    rounds: int = 1,
    likelihood: Likelihood = cross_entropy,
    include: Patterns = "*",
    exclude: Patterns = (),
    keep_zeros: bool = False,
    progress: Progress | None = None,
) -> Pruned:
    """Prune the matrices and kernels of `model` that the patterns choose, in place; calibrated on `batches`.

    batches: re-iterable (inputs, target). sparsity: removed ÷ all weights, or one for each of several patterns, such as
    {"conv1*": 0.0, "*": 0.9}. pruner: by default M-FAC of the first 1,000 samples, or as many as there are, at
    damping 1e-3 with the joint update. rounds: fresh gradients that many times on the way. keep_zeros: weights that are
    zero already stay zero. Parameters that do not require a gradient are pruned too, unless excluded. Raises WoodburyError
    before the model is touched.
    """
    if pruner is not None and not isinstance(pruner, Pruner):
        raise WoodburyError(
            f"The pruner is a {type(pruner).__name__}: give Pruner(fisher=...), such as Pruner(mfac(500))."
        )
    space = ParameterSpace.of(model, include, exclude, min_ndim=2)
    objective = Objective.of(model, batches, likelihood, space)
    objective.probe()
    if keep_zeros:
        nonzero = objective.weights != 0
        objective = objective.at(objective.weights[nonzero], space.restrict(nonzero))
    schedule = geometric(sparsity, rounds, objective.space.sparsity if rounds > 1 else 0.0)
    pruned = in_rounds(pruner or Pruner(mfac(_samples(objective, 1000), 1e-3)), objective, schedule, progress)
    pruned.write()
    return pruned


def _samples(objective: Objective, most: int) -> int:
    """How many samples the batches give, up to `most`."""
    samples = 0
    for inputs, _ in objective.batches:
        samples += samples_in(inputs)
        if samples >= most:
            return most
    if not samples:
        raise WoodburyError("The batches hold no samples: give some to calibrate on.")
    return samples
