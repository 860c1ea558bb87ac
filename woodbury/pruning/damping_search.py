"""DampingSearch: the damping, and how far to follow the gradient, chosen by a measured loss."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from woodbury.argument_types import check_fields, checks_types
from woodbury.errors import WoodburyError, WrongType
from woodbury.fisher.checks import check_damping
from woodbury.fisher.lowrank import LowRank
from woodbury.fisher.sharded import Sharded
from woodbury.model.batches import Batch
from woodbury.model.objective import Objective
from woodbury.pruning.budget import Budget
from woodbury.pruning.held_back import TOO_FEW, check_share_or_batches, split_samples
from woodbury.pruning.pruned import Carried, Pruned
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.schedule import Targets

DAMPINGS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""The candidates for the damping, a decade apart."""


HELD_BACK = 0.2
"""The fraction of the calibration set that dampings are judged on."""

TRUST = (1.0, 0.5, 0.25, 0.1, 0.03, 0.0)
"""The candidates for the fraction of the gradient that is followed, from all of it to none."""


@dataclass(frozen=True)
class DampingSearch:
    """A Pruner that tries several dampings at every step, and takes the one of least measured loss.

    All dampings use one estimate of the curvature  (eq. 60). With the first-order term it tries
    fractions of the gradient too: the quadratic promises most for all of it, and the measured loss
    decides. That is a trust region by trial.

    Attributes:
        pruner: The recipe whose damping is chosen; it needs a Fisher.
        held_back: The fraction of the calibration set, in (0, 1), that the Fisher does not see; or
            re-iterable batches of *training* data outside it.
        dampings: Candidates for the damping, at least one, all positive.
        trust: Candidates for the fraction of the gradient to follow, in [0, 1]; used if the pruner
            has the first-order term.

    Raises:
        WrongType: If `pruner` is no Pruner.
        WoodburyError: If the pruner has no Fisher, `held_back` can be read only once, or a
            candidate is out of its range.

    Example:
        >>> import torch
        >>> import woodbury
        >>> model, labels = torch.nn.Linear(3, 4), torch.arange(20) % 4
        >>> batches = [(torch.randn(100, 3), torch.arange(100) % 4)]
        >>> search = DampingSearch(woodbury.Pruner(woodbury.mfac(80)))  # on a fifth of the samples
        >>> woodbury.prune(model, batches, 0.5, pruner=search).steps[0].damping in DAMPINGS
        True
        >>> objective = woodbury.Objective.from_model(model, [(torch.randn(20, 3), labels)])
        >>> held_back = [(torch.randn(20, 3), labels)]
        >>> search = DampingSearch(woodbury.Pruner(woodbury.mfac(20)), held_back, (1e-3, 1e-1))
        >>> search(objective, 0.5).steps[0].damping in (1e-3, 1e-1)
        True
    """

    pruner: Pruner
    held_back: Iterable[Batch] | float = HELD_BACK
    dampings: tuple[float, ...] = DAMPINGS
    trust: tuple[float, ...] = TRUST

    def __post_init__(self) -> None:
        if not isinstance(self.pruner, Pruner):
            raise WrongType(
                f"DampingSearch got a {type(self.pruner).__name__}: give a Pruner, "
                "and put other recipes around DampingSearch."
            )
        check_fields(self)
        if self.pruner.fisher is None:
            raise WoodburyError(
                "This pruner has no Fisher and so no damping to choose: use it as it is."
            )
        check_share_or_batches(self.held_back)
        if not self.dampings or not self.trust:
            raise WoodburyError(
                "There is nothing to choose from: "
                "give at least one damping and one fraction of the gradient."
            )
        for damping in self.dampings:
            check_damping(damping)
        if any(not 0 <= fraction <= 1 for fraction in self.trust):
            raise WoodburyError(f"trust is {self.trust}: each fraction must lie in [0, 1].")

    @property
    def rules(self) -> Pruner:
        """The Pruner inside, whose unit, scope, cost and limits hold."""
        return self.pruner

    @checks_types
    def __call__(
        self, objective: Objective, sparsity: Targets, carried: Carried | None = None
    ) -> Pruned:
        """Prune once with every candidate, and take the one of least loss on `held_back`.

        Args:
            objective: The network; its batches are the calibration set.
            sparsity: Removed ÷ all weights of the original space, after this step.
            carried: What the stage before has left; None for the first.

        Returns:
            The best of the candidates; its step has the `damping` and `trust` chosen. The model is
            untouched.

        Raises:
            WoodburyError: As the pruner, or if no candidate has a finite loss.
        """
        # Impossible targets are named before any gradient is taken.
        budget = self.pruner.budget(objective.space, sparsity)
        samples = objective.batches
        objective, held_back = self._split(objective)
        quadratic = self.pruner.quadratic(objective, None if carried is None else carried.fisher)
        fisher = quadratic.curvature("Choosing a damping")
        if isinstance(fisher, (LowRank, Sharded)) and len(self.dampings) > 1:
            fisher = fisher.spectral()  # one eigendecomposition serves all dampings
        best = None
        least = math.inf
        for damping in self.dampings:
            damped = replace(quadratic, fisher=fisher.with_damping(damping))
            for candidate in self._candidates(damped, objective, sparsity, budget):
                loss = candidate.objective.loss(held_back)
                if loss < least:  # False for a NaN
                    best = candidate
                    least = loss
        if best is None:
            raise WoodburyError(
                "Every damping gave a network whose held-back loss is not finite: "
                "add larger dampings."
            )
        return replace(best, objective=replace(best.objective, batches=samples))

    def _split(self, objective: Objective) -> tuple[Objective, Iterable[Batch]]:
        """The objective on the samples to calibrate on, and those to choose on."""
        if not isinstance(self.held_back, (int, float)):
            return objective, self.held_back
        calibration, held_back = split_samples(objective, self.held_back)
        if not held_back:
            raise WoodburyError(TOO_FEW)
        return replace(objective, batches=objective.batches.read(calibration)), held_back

    def _candidates(
        self, quadratic: Quadratic, objective: Objective, sparsity: Targets, budget: Budget
    ) -> Iterator[Pruned]:
        """What the pruner reaches on one quadratic, with each fraction of its gradient."""
        if quadratic.gradient is None:
            yield self.pruner.on_quadratic(quadratic, objective, sparsity, budget)
            return
        for fraction in self.trust:
            scaled = replace(quadratic, gradient=fraction * quadratic.gradient)
            pruned = self.pruner.on_quadratic(scaled, objective, sparsity, budget)
            yield replace(
                pruned, steps=tuple(replace(step, trust=fraction) for step in pruned.steps)
            )
