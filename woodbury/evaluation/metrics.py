"""Methods × sparsities × seeds on one network: what each pruning predicted, what it did, and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from woodbury.errors import WoodburyError
from woodbury.model.batches import Batch, checked
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective

Score = Callable[[Objective], float]
"""A number that should be large: the accuracy on some data, for instance."""


def accuracy(objective: Objective, batches: Iterable[Batch]) -> float:
    """The fraction of observed targets (b, …) that the output (b, C, …) of the objective's weights gives the highest score."""
    right, targets, ignored = 0, 0, objective.likelihood.ignored
    with torch.no_grad(), eval_mode(objective.model):
        for inputs, target in checked(batches):
            found = objective.forward(objective.parameters, inputs).argmax(1)
            if found.shape != target.shape:
                raise WoodburyError(
                    f"The classes found have shape {tuple(found.shape)} and the labels {tuple(target.shape)}: "
                    "give outputs (b, classes, …) and labels (b, …)."
                )
            counted = (
                torch.ones_like(found, dtype=torch.bool) if ignored is None else target != ignored
            )
            right, targets = (
                right + int((found == target)[counted].sum()),
                targets + int(counted.sum()),
            )
    if not targets:
        raise WoodburyError("There is no data to measure the accuracy on: give at least one batch.")
    return right / targets


def r_squared(objective: Objective, data: Iterable[Batch]) -> float:
    """1 − squared error ÷ squared deviation of the targets from their mean."""
    targets = torch.cat([target for _, target in data]).double()
    samples = len(targets)
    deviation = float((targets - targets.mean(0)).square().sum())
    return 1 - 2 * samples * objective.loss(data) / deviation if deviation else float("nan")
