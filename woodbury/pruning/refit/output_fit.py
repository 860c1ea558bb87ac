"""Refit: output reconstruction by damped Gauss–Newton steps, without labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from woodbury.argument_types import check_fields, checks_types
from woodbury.errors import WoodburyError, check_whole_number, user_code
from woodbury.estimation.engines import Engine
from woodbury.estimation.goal import Goal
from woodbury.estimation.layer_equations import LayerGoals
from woodbury.estimation.output_residuals import BYTES_PER_FLOAT, MAX_SAMPLES_PER_PASS, Residuals
from woodbury.estimation.over_ranks import fitted_over_ranks
from woodbury.fisher.base import Fisher
from woodbury.fisher.checks import check_damping
from woodbury.fisher.lowrank import LowRank
from woodbury.io.representation import readable
from woodbury.limits import Limits
from woodbury.linalg.column_bounds import column_bounds
from woodbury.linalg.dual_solve import is_sketched, solve_dual
from woodbury.linalg.iterative_solvers import conjugate_gradients
from woodbury.linalg.metric import Metric
from woodbury.linalg.precision import at_least_float32
from woodbury.linalg.ranks import Ranks
from woodbury.linalg.row_products import column_squares, combine
from woodbury.memory.budget import available_bytes, bytes_in_words
from woodbury.model.objective import Objective
from woodbury.model.random_numbers import random_kept
from woodbury.model.space import ParameterSpace
from woodbury.monitor import report
from woodbury.pruning.refit.layer_goal import LayerTerms, Reconstruction

STEP_FRACTIONS = (1.0, 0.5, 0.25, 0.125)
"""Fractions of a step that are tried in this order, until the outputs come closer."""


DIAGONAL_PROBES = 20
"""Backward passes that estimate the diagonal of JᵀJ/m where there are no rows  (eq. 66)."""


CG_TOLERANCE = 1e-6
"""Relative residual at which conjugate gradients end early."""


_LayerTermsOf = Callable[[Tensor], LayerTerms]
"""The diagonal of JᵀJ/m (d,) -> the damping term by layers."""


FisherOfRows = Callable[[Tensor, ParameterSpace], Fisher]
"""(rows (m, d), the space of the d weights) -> a Fisher that does not hold the rows."""


class Refitted(NamedTuple):
    """What a refit reached.

    Attributes:
        objective: At the weights reached.
        distance: What `Refit.distance` says of them.
        fisher: Made of the rows of the last step, one step behind; None where there are none.
        goal: What is known of the dense network on these samples, for `run` of the next stage.
    """

    objective: Objective
    distance: float
    fisher: Fisher | None
    goal: Goal | None


class _Reached(NamedTuple):
    """What one step reached: the weights, the outputs there, and the Fisher of its rows."""

    objective: Objective
    outputs: list[Tensor]
    fisher: Fisher | None


@dataclass(frozen=True)
class Refit:
    """Output reconstruction: Gauss–Newton steps to the outputs of another network  (eq. 61).

    A step minimises mean (r + Jδ)² + λ‖δ‖² over the kept weights, where the residuals r are the
    differences of the two networks' outputs along random directions. The distance is the one that
    the Fisher measures: to second order the KL divergence between the predictions of the two
    networks. A step is shortened until the outputs come closer, and left out if they never do. No
    label is read. It is distillation (Hinton et al. 2015) by least squares.

    Attributes:
        steps: Gauss–Newton steps, each with new random directions.
        mc_samples: GGN samples per input: random directions along which outputs are compared. A
            step by rows holds mc_samples × samples rows of d floats, so that the default is
            small.
        damping: λ, positive.
        samples: Samples that are read at most, the first ones of the objective; None for all.
        iterations: None solves a step exactly from the rows of J; a number solves it by that many
            conjugate gradients on products with the network's Jacobian, without a row in memory and
            at a cost that does not grow with `mc_samples`  (eq. 63).
        reconstruction: The outputs of the layers as a second goal, in place of λ‖δ‖² for the
            weights of linear and convolutional layers  (eq. 65); None for the network's outputs
            alone.
        seed: Of the random directions.
        engine: `hooked`, `vmapped` or `looped` for the rows; None for the fastest.

    Raises:
        WoodburyError: If the damping is not positive, or a count is below 1.
        WrongType: If a count is no whole number.

    Example:
        >>> import torch
        >>> import woodbury
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(3, 4)
        >>> batches = [(torch.randn(20, 3), None)]
        >>> dense = woodbury.Objective.from_model(model, batches)
        >>> pruned = woodbury.Pruner(woodbury.gauss_newton(woodbury.mfac(40)))(dense, 0.5)
        >>> refit = Refit(damping=1e-2)
        >>> closer = refit(pruned.objective, dense)
        >>> refit.distance(closer, dense) < refit.distance(pruned.objective, dense)
        True
    """

    steps: int = 1
    mc_samples: int = 4
    damping: float = 1e-3
    samples: int | None = None
    iterations: int | None = None
    reconstruction: Reconstruction | None = None
    seed: int = 0
    engine: Engine | None = None

    __repr__ = readable

    def __post_init__(self) -> None:
        check_fields(self)
        check_damping(self.damping)
        check_whole_number(
            self.steps, "steps", "the number of Gauss–Newton steps of a refit", most=1000
        )
        check_whole_number(self.mc_samples, "mc_samples", "the number of GGN samples per input")
        if self.samples is not None:
            check_whole_number(self.samples, "samples", "None for all samples, else their number")
        if self.iterations is not None:
            meaning = "None for an exact solve, else the number of conjugate gradients"
            check_whole_number(self.iterations, "iterations", meaning)

    @checks_types
    @random_kept()
    def __call__(self, objective: Objective, dense: Objective, group: object = None) -> Objective:
        """Move the weights until the outputs are close to those of the dense network.

        Args:
            objective: The network to fit, at its weights and on its own batches.
            dense: The network whose outputs are the goal; its batches are not read.
            group: The torch.distributed process group whose ranks share the work, as for
                `woodbury.prune`.

        Returns:
            The objective at the weights reached, in the same space; no model is touched.

        Raises:
            WoodburyError: If there are no samples, the likelihood has no directions, or
                `iterations` are asked of a model that cannot be differentiated forward.
        """
        with fitted_over_ranks(group, "a refit", objective) as own:
            return replace(self.run(own, dense).objective, batches=objective.batches)

    @checks_types
    @random_kept()
    def run(
        self,
        objective: Objective,
        dense: Objective,
        known: Goal | None = None,
        fisher_of: FisherOfRows | None = None,
    ) -> Refitted:
        """Refit, and say what is known at its end without another pass through the networks.

        Args:
            objective: The network to fit, at its weights and on its own batches.
            dense: The network whose outputs are the goal; its batches are not read.
            known: What a refit on the same batches knew of the dense network; None runs it.
            fisher_of: What makes a Fisher of the rows of the last step; None for no Fisher.

        Returns:
            The weights reached, their distance, the Fisher, and what is known of the dense network.

        Raises:
            WoodburyError: As `__call__`.
        """
        goal = known or self._goal(objective, dense)
        fisher, outputs = None, None
        for step in range(self.steps):
            is_last = step + 1 == self.steps
            residuals = goal.residuals.redrawn(objective, self._seed(objective, step))
            reached = self._step(residuals, goal.layers, fisher_of if is_last else None, outputs)
            objective, outputs, fisher = reached
        assert outputs is not None  # there is at least one step
        others = goal.residuals.redrawn(objective, self._seed(objective, self.steps))
        distance = _half_mean_square(others.along(outputs))
        return Refitted(objective, distance, fisher, goal)

    @checks_types
    @random_kept()
    def distance(self, objective: Objective, dense: Objective) -> float:
        """Half the mean squared residual, along directions that no step has fitted  (eq. 61).

        Args:
            objective: The network to measure, on its own batches.
            dense: The network whose outputs are the goal.

        Returns:
            The distance in nats, to second order the KL divergence.
        """
        residuals = self._residuals(objective, dense, draw=self.steps)
        return _half_mean_square(residuals.at(objective.weights))

    def _goal(self, objective: Objective, dense: Objective) -> Goal:
        residuals = self._residuals(objective, dense, draw=0)
        layers = None
        if self.reconstruction is not None:
            samples = residuals.samples
            layers = LayerGoals.of(replace(dense, batches=objective.batches), samples)
        return Goal(residuals, layers)

    def _residuals(self, objective: Objective, dense: Objective, draw: int) -> Residuals:
        """The residuals along the directions of one draw."""
        seed = self._seed(objective, draw)
        # By rows in the batches of the layers, so that one pass serves both.
        at_once = (
            Limits.current().layer_samples if self.iterations is None else MAX_SAMPLES_PER_PASS
        )
        residuals = Residuals.between(
            objective, dense, self.mc_samples, seed, self.samples, at_once=at_once
        )
        if self.iterations is None:
            check_room_for_rows(residuals.m, objective.space.d)
        return residuals

    def _seed(self, objective: Objective, draw: int) -> int:
        """Of the directions of one draw; every space has draws of its own."""
        return self.seed + objective.space.d * (self.steps + 1) + draw

    def _step(
        self,
        residuals: Residuals,
        layers: LayerGoals | None,
        fisher_of: FisherOfRows | None,
        outputs: list[Tensor] | None,
    ) -> _Reached:
        """One step; `outputs` are those at the weights where it starts, if they are known."""
        objective = residuals.objective
        layer_terms = None
        if self.reconstruction is not None and layers is not None:
            fits = layers.fits(objective)
            outputs = fits.outputs if outputs is None else outputs
            layer_terms = partial(
                self.reconstruction, fits.equations, objective.space, damping=self.damping
            )
        if outputs is None or not residuals.is_in_batches_of(outputs):
            outputs = residuals.outputs(objective.weights)
        here = residuals.along(outputs)
        distance = _half_mean_square(here)
        fisher = None
        if self.iterations is None:
            jacobian = residuals.jacobian(self.engine)
            if fisher_of is not None:
                with user_code("What makes a Fisher of the rows of a refit fails."):
                    fisher = fisher_of(jacobian, objective.space)
            step = self._solve_by_rows(jacobian, here, layer_terms)
            del jacobian
        else:
            step = self._solve_by_cg(residuals, here, layer_terms)
        step = step.to(objective.weights.dtype)
        for fraction in STEP_FRACTIONS:
            moved = objective.weights - fraction * step
            outputs_there = residuals.outputs(moved)
            # A comparison with NaN is False, so that such a step is never taken.
            if _half_mean_square(residuals.along(outputs_there)) < distance:
                return _Reached(objective.at(moved), outputs_there, fisher)
        return _Reached(objective, outputs, fisher)

    def _solve_by_rows(
        self, jacobian: Tensor, here: Tensor, layer_terms: _LayerTermsOf | None
    ) -> Tensor:
        """−δ of one step by the m rows of J, from the residuals `here` (m,): (d,)  (eq. 61, 65).

        The rows may be overwritten.
        """
        ranks = Ranks.current()
        m = ranks.total(len(jacobian))
        jacobian = at_least_float32(jacobian)  # triangles are not solved in half precision
        metric, target = Metric(()), None
        rhs = here
        if layer_terms is not None:
            curvature = ranks.sum(column_squares(jacobian)) / m
            metric, target = layer_terms(curvature)
            rhs = here + jacobian @ target.to(jacobian.dtype)
        if not ranks.is_alone:
            step = self._solve_over_ranks(jacobian, rhs / m, metric)
        elif is_sketched(jacobian):
            c = solve_dual(jacobian, self.damping, rhs / m, metric)
            step = metric.solved(combine(jacobian, c.to(jacobian.dtype)))
        else:
            # With δ = target + L⁻ᵀη it is the plain step in η: rows J L⁻ᵀ, residuals r + J target.
            rows = metric.whiten(jacobian)
            step = metric.coloured(LowRank(rows, self.damping).solve_range(rhs / m))
        return step if target is None else step - target

    def _solve_over_ranks(self, jacobian: Tensor, c: Tensor, metric: Metric) -> Tensor:
        """The same from some rows of each rank, which exchanges them for columns.

        The right-hand side is in the order in which the rows come: that of the ranks.
        """
        ranks = Ranks.current()
        d = jacobian.shape[1]
        bounds = column_bounds(metric.runs(d), ranks.size)
        own = slice(bounds[ranks.rank], bounds[ranks.rank + 1])
        counts = [int(count) for count in ranks.all_gather(torch.tensor([len(c)]))]
        c = ranks.all_gather_parts(c, counts)
        rows = ranks.all_to_all(jacobian, bounds)
        assert rows is not None  # there are samples
        mine = metric.within(own)
        local = LowRank.from_gram(mine.whiten(rows), self.damping, None, group=ranks.group)
        step = mine.coloured(local.solve_range(c))
        return ranks.all_gather_parts(step, [stop - start for start, stop in pairwise(bounds)])

    def _solve_by_cg(
        self, residuals: Residuals, here: Tensor, layer_terms: _LayerTermsOf | None
    ) -> Tensor:
        """−δ of one step without rows, from the residuals `here` (m,): (d,)  (eq. 63, 65)."""
        gradient = residuals.gradient(here)
        if layer_terms is None:
            return self._conjugate_gradients(residuals, gradient, Metric(()))
        metric, target = layer_terms(residuals.diagonal(DIAGONAL_PROBES))
        rhs = at_least_float32(gradient + residuals.gauss_newton_product(target))
        return self._conjugate_gradients(residuals, rhs, metric) - target

    def _conjugate_gradients(self, residuals: Residuals, rhs: Tensor, metric: Metric) -> Tensor:
        """(JᵀJ/m + λM)⁻¹ rhs, where M = LLᵀ, by iterations on L⁻¹JᵀJL⁻ᵀ/m + λI: (d,) -> (d,)."""
        max_steps = self.iterations or 0
        done = count(1)

        def multiply(v: Tensor) -> Tensor:
            column = v[:, 0]
            product = residuals.gauss_newton_product(metric.coloured(column)).to(v.dtype)
            report("iterations of a refit", next(done), max_steps)
            return (metric.whitened(product) + self.damping * column)[:, None]

        whitened = metric.whitened(rhs)[:, None]
        solution, _ = conjugate_gradients(multiply, whitened, max_steps, CG_TOLERANCE)
        report("iterations of a refit", max_steps, max_steps)  # it may have ended early
        return metric.coloured(solution[:, 0])


def check_room_for_rows(rows: int, d: int) -> None:
    """Raise unless the rows of a step have room in memory.

    Args:
        rows: How many.
        d: Floats of each.

    Raises:
        WoodburyError: If they take more than the process may still have.
    """
    needed = BYTES_PER_FLOAT * rows * d
    available = available_bytes()
    if needed > available:
        raise WoodburyError(
            f"A step of the refit holds {rows:,} rows, mc_samples × samples, which take "
            f"{bytes_in_words(needed)}, and {bytes_in_words(available)} are left: lower mc_samples "
            "or samples, or give iterations."
        )


def _half_mean_square(residuals: Tensor) -> float:
    """Over the residuals of all ranks."""
    ranks = Ranks.current()
    if ranks.size == 1:
        return 0.5 * float(residuals.double().square().mean())
    squares = float(residuals.double().square().sum())
    total, count = ranks.sum(torch.tensor([squares, len(residuals)], dtype=torch.float64)).tolist()
    return 0.5 * total / count
