"""What pruning gives: the objective at the weights reached, and what each stage did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import Tensor

from woodbury.argument_types import check_fields, checks_types
from woodbury.estimation.goal import Goal
from woodbury.fisher.base import Fisher
from woodbury.model.batches import Batch
from woodbury.model.objective import Objective
from woodbury.pruning.mean_interval import CONFIDENCE
from woodbury.pruning.prediction import (
    MOST_DAMPING,
    IncreaseInterval,
    increase_interval,
    warning_of,
)
from woodbury.pruning.run_plan import Plan


@dataclass(frozen=True)
class Quantiles:
    """Three quantiles of the saliencies of one tensor's units; each is one of the saliencies.

    Attributes:
        q10: A tenth of the saliencies are below it.
        median: Half of them are below it.
        q90: Nine tenths of them are below it.

    Example:
        >>> import torch
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
        places = cls.places(len(ranked))
        ranked.partition(places)
        return cls(*(float(ranked[place]) for place in places))

    @staticmethod
    def places(count: int) -> list[int]:
        """Where the quantiles lie among so many values in rising order."""
        return [round(q * (count - 1)) for q in (0.1, 0.5, 0.9)]


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
        damping_share: Share of `predicted` that is ½ λ‖δ‖² of the damping; None without a Fisher,
            and with the first-order term.
        distance: How far a refit has left the outputs from the dense network's (eq. 61); None
            without a refit.
        equations: Of that refit: samples × GGN samples per input; None without one.
    """

    sparsity: float
    predicted: float | None
    saliencies: Mapping[str, Quantiles] = field(default_factory=dict)
    damping: float | None = None
    trust: float | None = None
    damping_share: float | None = None
    distance: float | None = None
    equations: int | None = None


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
        predicted_interval: The increase of the loss on samples that nothing else saw; None where
            none were held back.

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
    predicted_interval: IncreaseInterval | None = None

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

    @property
    def predicted_warning(self) -> str:
        """Why `predicted` is no forecast, in one sentence; empty where nothing is known against it.

        It is compared with `predicted_interval`  (eq. 72).
        """
        return warning_of(self.predicted, self.predicted_interval, self.predicted_doubt)

    @property
    def predicted_doubt(self) -> str:
        """Why `predicted` is known to be no forecast before it is checked; empty if it is not.

        An update or a refit that can fit all of its equations says nothing of other samples.
        """
        equations = self.steps[-1].equations if self.steps else None
        kept = self.objective.space.d
        if equations is not None and equations < kept:
            return f"the refit fits {equations:,} equations by {kept:,} weights"
        share = self.damping_share
        if share is not None and share > MOST_DAMPING:
            return (
                f"the update fits all gradient rows, so that {100 * share:.0f} % of it is the "
                "damping's"
            )
        return ""

    @property
    def damping_share(self) -> float | None:
        """Share of `predicted` that is ½ λ‖δ‖² of the damping; None where it is not known."""
        parts = [
            (step.predicted, step.damping_share)
            for step in self.steps
            if step.predicted and step.damping_share is not None and step.distance is None
        ]
        if not parts or len(parts) < len(self.steps):
            return None
        return sum(increase * share for increase, share in parts) / sum(each for each, _ in parts)

    @checks_types
    def checked_on(
        self, dense: Objective, held_back: Iterable[Batch], confidence: float = CONFIDENCE
    ) -> Pruned:
        """Measure the increase of the loss on samples that nothing else saw  (eq. 71).

        Args:
            dense: The objective before pruning; its batches are not read.
            held_back: (inputs, target), at least two samples. Where there is no target, the dense
                network draws one, and the increase is its divergence from the pruned network.
            confidence: How often the interval is to hold the increase in the whole distribution.

        Returns:
            The same with its `predicted_interval`.

        Raises:
            WoodburyError: If there are fewer than two samples, the confidence is not in (0, 1), or
                the loss of the dense network is not finite.

        Example:
            >>> import torch, woodbury
            >>> batches = [(torch.randn(64, 4), torch.arange(64) % 2) for _ in range(2)]
            >>> dense = woodbury.Objective.from_model(torch.nn.Linear(4, 2), batches[:1])
            >>> pruned = woodbury.Pruner(woodbury.mfac(64))(dense, 0.5)
            >>> pruned.checked_on(dense, batches[1:]).predicted_interval.samples
            64
        """
        interval = increase_interval(dense, self.objective, held_back, confidence)
        return replace(self, predicted_interval=interval)

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
