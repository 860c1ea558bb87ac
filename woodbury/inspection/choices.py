"""What one estimate of the curvature chooses to remove, and what comes of it on other samples."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.fisher.base import Fisher
from woodbury.model.batches import Batch, Samples
from woodbury.model.objective import Objective
from woodbury.pruning.budget import Budget
from woodbury.pruning.pruner import Pruned, Pruner
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.saliencies import Saliency, obs
from woodbury.pruning.updates import Update, joint


class Choice(NamedTuple):
    """What an estimate chooses at one sparsity.

    Attributes:
        scores: (d,) saliencies; small ones are removed first.
        keep: (n,) bool.
        increase: Of the loss on the samples held back; infinite where that is not finite.
    """

    scores: Tensor
    keep: Tensor
    increase: float


@dataclass(frozen=True, eq=False)
class Chooser:
    """Prunes a network in one step, by estimates of its curvature.

    Attributes:
        objective: The network at its weights.
        held_back: What the loss is measured on.
        dense: The loss there before pruning.
        sparsity: Removed ÷ all weights.
        saliency: What a removal costs.
        update: How the kept weights move.
    """

    objective: Objective
    held_back: Samples
    dense: float
    sparsity: float
    saliency: Saliency = obs
    update: Update = joint

    @classmethod
    def of(
        cls,
        objective: Objective,
        held_back: Iterable[Batch],
        sparsity: float,
        saliency: Saliency = obs,
        update: Update = joint,
    ) -> Chooser:
        """Measure the dense loss, and see that the sparsity can be reached.

        Args:
            objective: The network.
            held_back: Samples that no curvature is estimated from.
            sparsity: Removed ÷ all weights.
            saliency: What a removal costs.
            update: How the kept weights move.

        Raises:
            WoodburyError: If there is no sample, or the sparsity cannot be reached.
        """
        samples = Samples.of(held_back)
        Pruner(None).budget(objective.space, sparsity)
        return cls(objective, samples, objective.loss(samples), sparsity, saliency, update)

    @property
    def budget(self) -> Budget:
        """What competes, on the way to the sparsity."""
        return Pruner(None).budget(self.objective.space, self.sparsity)

    def pruned(self, fisher: Fisher | None) -> Pruned:
        """The network pruned by a curvature; the model is untouched.

        Args:
            fisher: On the d weights; None for a saliency and an update that need none.

        Raises:
            WoodburyError: As the pruner.
        """
        quadratic = Quadratic(self.objective.weights, fisher)
        pruner = Pruner(None, self.saliency, self.update)
        return pruner.on_quadratic(quadratic, self.objective, self.sparsity, self.budget)

    def choice(self, fisher: Fisher) -> Choice:
        """What a curvature chooses, and the loss after it.

        Args:
            fisher: On the d weights.

        Raises:
            WoodburyError: As the pruner.
        """
        seen: list[Tensor] = []

        def and_remember(quadratic: Quadratic, groups: Tensor | None) -> Tensor:
            seen.append(self.saliency(quadratic, groups))
            return seen[-1]

        pruned = replace(self, saliency=and_remember).pruned(fisher)
        return Choice(seen[0].cpu(), pruned.keep.cpu(), self.increase(pruned.objective))

    def increase(self, objective: Objective) -> float:
        """The increase of the loss on the samples held back.

        Args:
            objective: The network after pruning.

        Returns:
            Infinite where the loss is not finite.
        """
        loss = objective.loss(self.held_back)
        return loss - self.dense if math.isfinite(loss) else math.inf


def step_to(pruned: Pruned, dense: Objective) -> Tensor:
    """The step from the dense weights to the pruned ones.

    Args:
        pruned: The network after.
        dense: The network before, on d weights.

    Returns:
        δ (d,), exactly −w where a weight was removed.
    """
    keep = dense.space.keep.to(dense.weights.device)
    return pruned.weights.to(dense.weights)[keep] - dense.weights


def check_sparsities(sparsities: Iterable[float]) -> tuple[float, ...]:
    """Sparsities in rising order, each once.

    Args:
        sparsities: Each in (0, 1).

    Raises:
        WoodburyError: If there is none, or one is out of range.
    """
    known = tuple(sorted({float(each) for each in sparsities}))
    if not known or not all(0 < each < 1 for each in known):
        raise WoodburyError(
            f"sparsities is {known}: give at least one, each larger than 0 and below 1."
        )
    return known


def mean_rows(rows: Tensor, batch: int) -> Tensor:
    """Rows that average `batch` samples, from those of single samples  (eq. 2).

    Args:
        rows: (m, d), of single samples.
        batch: b; rows that fill no batch are left out.

    Returns:
        (m // b, d), scaled by √b as `gradient_rows(batch=b)` does.
    """
    count = len(rows) // batch
    return rows[: count * batch].view(count, batch, -1).mean(1).mul_(batch**0.5)
