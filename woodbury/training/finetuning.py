"""A plain loop of fine-tuning, that can go on in the middle of an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.model.batches import Batch
from woodbury.model.likelihood import Likelihood, cross_entropy
from woodbury.model.objective import Objective
from woodbury.monitor import report


def shuffled(samples: int, size: int, seed: int, done: int = 0) -> Iterator[Tensor]:
    """Endless batches of indices, (size,) int64 below `samples`, each epoch in an order of its own; the first `done` skipped.

    An epoch is `batches_in` batches, which leave out what fills none: a batch of one sample is too few for BatchNorm.
    """
    epoch, skipped = divmod(done, batches_in(samples, size))
    while True:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        yield from torch.randperm(samples, generator=generator).split(min(size, samples))[
            skipped : batches_in(samples, size)
        ]
        epoch, skipped = epoch + 1, 0


def batches_in(samples: int, size: int) -> int:
    """How many batches of `size` an epoch has: at least one, which may be smaller."""
    return max(1, samples // size)


def finetune(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    steps: range,
    *,
    likelihood: Likelihood = cross_entropy,
    scheduler: Any = None,
    after: Callable[[int], None] | None = None,
) -> None:
    """Train `model` in place, in train mode, one batch a step, and leave it in eval mode.

    steps: the numbers of the steps, such as range(1, 101). scheduler: of torch.optim.lr_scheduler, one step a batch.
    after: called with a step's number when the step is complete. Raises WoodburyError once the loss is not finite.
    """
    objective = Objective.from_model(model, [], likelihood)
    model.train()
    try:
        for step, (inputs, target) in zip(steps, batches, strict=False):
            optimizer.zero_grad()
            loss = objective.batch_loss({}, inputs, target)
            if not math.isfinite(float(loss.detach())):
                raise WoodburyError(
                    f"The loss is not finite at step {step}: lower the learning rate."
                )
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            if after:
                after(step)
            report("training", step, steps.stop - 1)
    finally:
        model.eval()
