"""Refit: what stays moves until the network says again what the dense one said, by Gauss–Newton and without labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from torch import Tensor
from torch.linalg import vector_norm

from woodbury.errors import WoodburyError
from woodbury.estimation.gradients import Engine
from woodbury.estimation.layer_equations import layer_fits
from woodbury.estimation.output_residuals import Residuals
from woodbury.fisher.checks import check_damping
from woodbury.fisher.lowrank import LowRank
from woodbury.linalg.iterative_solvers import conjugate_gradients
from woodbury.linalg.metric import Metric
from woodbury.linalg.precision import at_least_float32
from woodbury.model.objective import Objective
from woodbury.monitor import report
from woodbury.pruning.refit.reconstruction import Reconstruction

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

    The distance is the one that the Fisher measures, in `mc_samples` directions to a sample, drawn anew in each of the `steps`;
    to second order it is the divergence between what the two networks predict. samples: the first so many of the batches,
    None for all. iterations: None solves each step exactly, from mc_samples × samples rows of d floats; a number solves it by so
    many conjugate gradients on products through the network, without a row, at a cost that `mc_samples` does not raise  (eq. 63).
    reconstruction: the outputs of the layers as a second aim, for the weights of linear and convolutional layers, which
    `damping` then does not hold; None for none  (eq. 65).
    """

    steps: int = 1
    mc_samples: int = 4
    damping: float = 1e-3
    samples: int | None = None
    iterations: int | None = None
    reconstruction: Reconstruction | None = None
    seed: int = 0
    engine: Engine | None = None

    def __post_init__(self) -> None:
        check_damping(self.damping)
        numbers = {
            "steps": self.steps,
            "mc_samples": self.mc_samples,
            "samples": self.samples,
            "iterations": self.iterations,
        }
        for name, number in numbers.items():
            left_out = number is None and name in ("samples", "iterations")
            if not left_out and not (isinstance(number, int) and number > 0):
                raise WoodburyError(
                    f"A refit with {name}={number} cannot be: give a whole number of at least 1."
                )

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
        return Residuals.between(objective, dense, self.mc_samples, seed, self.samples)

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
        fits = layer_fits(objective, dense, residuals.m // self.mc_samples)
        return lambda curvature: layers(fits, objective.space, curvature, self.damping)

    def _by_rows(self, residuals: Residuals, here: Tensor, aims: Aims | None) -> Tensor:
        jacobian = residuals.jacobian(self.engine)
        if aims is None:
            return LowRank(jacobian, self.damping).solve_range(here / len(here))
        jacobian = at_least_float32(jacobian)  # triangles are not solved in half precision
        metric, target = aims(vector_norm(jacobian, dim=0).square_() / len(jacobian))
        left = here + jacobian @ target.to(jacobian.dtype)
        step = LowRank(metric.whiten(jacobian), self.damping).solve_range(left / len(left))
        return metric.coloured(step) - target

    def _by_products(self, residuals: Residuals, here: Tensor, aims: Aims | None) -> Tensor:
        slope = residuals.gradient(here)
        if aims is None:
            return self._iterated(residuals, slope, Metric(()))
        metric, target = aims(residuals.diagonal(PROBES))
        return (
            self._iterated(residuals, at_least_float32(slope + residuals.curved(target)), metric)
            - target
        )

    def _iterated(self, residuals: Residuals, left: Tensor, metric: Metric) -> Tensor:
        """(JᵀJ/m + λM)⁻¹ left, by iterations: (d,) -> (d,)."""
        most = self.iterations or 0
        done = count(1)

        def multiply(v: Tensor) -> Tensor:
            product = residuals.curved(metric.coloured(v[:, 0])).to(v.dtype)
            report("iterations of a refit", next(done), most)
            return (metric.whitened(product) + self.damping * v[:, 0])[:, None]

        step, _ = conjugate_gradients(multiply, metric.whitened(left)[:, None], most, TOLERANCE)
        report("iterations of a refit", most, most)  # it may have ended early
        return metric.coloured(step[:, 0])


def _half_square(residuals: Tensor) -> float:
    return 0.5 * float(residuals.double().square().mean())
