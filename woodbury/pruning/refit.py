"""Refit: what stays moves until the network says again what the dense one said, by Gauss–Newton and without labels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count

from torch import Tensor
from torch.linalg import vector_norm

from woodbury.errors import WoodburyError
from woodbury.fisher.iterative import conjugate_gradients
from woodbury.fisher.lowrank import LowRank
from woodbury.fisher.metric import Metric
from woodbury.fisher.operator import check_damping
from woodbury.gradients import Engine, Progress
from woodbury.layerwise import layer_fits
from woodbury.objective import Objective
from woodbury.patches import wide
from woodbury.pruning.pruner import Pruned, Recipe
from woodbury.pruning.reconstruction import Reconstruction
from woodbury.pruning.schedule import Targets
from woodbury.pruning.select import Cost, Scope
from woodbury.residuals import Residuals
from woodbury.space import ParameterSpace

SHARES = (1.0, 0.5, 0.25, 0.125)
"""How much of a step is tried, until the outputs come closer."""
PROBES = 20
"""Backward passes that tell iterations how much the outputs depend on each layer's."""
TOLERANCE = 1e-6
"""The relative residual at which iterations end early."""

Aims = Callable[[Tensor], tuple[Metric, Tensor]]
"""The diagonal of what the network's outputs say (d,) -> what a step is measured by, and from where (d,)."""


@dataclass(frozen=True)
class Refit:
    """Steps of damped Gauss–Newton towards the outputs of another network, on the objective's own samples  (eq. 61).

    The distance is the one that the Fisher measures, in `rank` directions to a sample, drawn anew in each of the `steps`;
    to second order it is the divergence between what the two networks predict. samples: the first so many of the batches,
    None for all. iterations: None solves each step exactly, from rank × samples rows of d floats; a number solves it by so
    many conjugate gradients on products through the network, without a row, at a cost that `rank` does not raise  (eq. 63).
    reconstruction: the outputs of the layers as a second aim, for the weights of linear and convolutional layers, which
    `damping` then does not hold; None for none  (eq. 65).
    """

    steps: int = 1
    rank: int = 4
    damping: float = 1e-3
    samples: int | None = None
    iterations: int | None = None
    reconstruction: Reconstruction | None = None
    seed: int = 0
    engine: Engine | None = None
    progress: Progress | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_damping(self.damping)
        numbers = {"steps": self.steps, "rank": self.rank, "samples": self.samples, "iterations": self.iterations}
        for name, number in numbers.items():
            left_out = number is None and name in ("samples", "iterations")
            if not left_out and not (isinstance(number, int) and number > 0):
                raise WoodburyError(f"A refit with {name}={number} cannot be: give a whole number of at least 1.")

    def __call__(self, objective: Objective, dense: Objective) -> Objective:
        """The objective where its outputs are closest to those of `dense`; no model is touched. Raises WoodburyError."""
        for step in range(self.steps):
            objective = self._step(objective, dense, step)
        return objective

    def distance(self, objective: Objective, dense: Objective) -> float:
        """How far the outputs are from those of `dense`, in directions that no step has fitted  (eq. 61)."""
        return _half_square(self._residuals(objective, dense, self.steps).at(objective.weights))

    def _residuals(self, objective: Objective, dense: Objective, draw: int) -> Residuals:
        """What the outputs differ by, along other directions after each pruning."""
        seed = self.seed + objective.space.d * (self.steps + 1) + draw
        return Residuals.between(objective, dense, self.rank, seed, self.samples)

    def _step(self, objective: Objective, dense: Objective, draw: int) -> Objective:
        residuals = self._residuals(objective, dense, draw)
        here = residuals.at(objective.weights)
        solve = self._by_rows if self.iterations is None else self._by_products
        step = solve(residuals, here, self._aims(residuals, dense)).to(objective.weights.dtype)
        for share in SHARES:
            moved = objective.weights - share * step
            if _half_square(residuals.at(moved)) < _half_square(here):  # never with a NaN
                return objective.at(moved)
        return objective

    def _aims(self, residuals: Residuals, dense: Objective) -> Aims | None:
        objective, layers = residuals.objective, self.reconstruction
        if layers is None:
            return None
        fits = layer_fits(objective, dense, residuals.m // self.rank, self.progress)
        return lambda curvature: layers(fits, objective.space, curvature, self.damping)

    def _by_rows(self, residuals: Residuals, here: Tensor, aims: Aims | None) -> Tensor:
        jacobian = residuals.jacobian(self.engine, self.progress)
        if aims is None:
            return LowRank(jacobian, self.damping).solve_range(here / len(here))
        jacobian = wide(jacobian)  # triangles are not solved in half precision
        metric, target = aims(vector_norm(jacobian, dim=0).square_() / len(jacobian))
        left = here + jacobian @ target.to(jacobian.dtype)
        step = LowRank(metric.whiten(jacobian), self.damping).solve_range(left / len(left))
        return metric.coloured(step) - target

    def _by_products(self, residuals: Residuals, here: Tensor, aims: Aims | None) -> Tensor:
        slope = residuals.gradient(here)
        if aims is None:
            return self._iterated(residuals, slope, Metric(()))
        metric, target = aims(residuals.diagonal(PROBES))
        return self._iterated(residuals, wide(slope + residuals.curved(target)), metric) - target

    def _iterated(self, residuals: Residuals, left: Tensor, metric: Metric) -> Tensor:
        """(JᵀJ/m + λM)⁻¹ left, by iterations: (d,) -> (d,)."""
        most, told, done = self.iterations or 0, self.progress or (lambda what, done, total: None), count(1)

        def multiply(v: Tensor) -> Tensor:
            product = residuals.curved(metric.coloured(v[:, 0])).to(v.dtype)
            told("iterations of a refit", next(done), most)
            return (metric.whitened(product) + self.damping * v[:, 0])[:, None]

        step, _ = conjugate_gradients(multiply, metric.whitened(left)[:, None], most, TOLERANCE)
        told("iterations of a refit", most, most)  # it may have ended early
        return metric.coloured(step[:, 0])


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
