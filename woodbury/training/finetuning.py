"""Fine-tuning: a plain training loop that can go on in the middle of an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, user_code
from woodbury.model.batches import Batch, pairs
from woodbury.model.likelihood import Likelihood, check_likelihood, cross_entropy
from woodbury.model.parameters import check_optimizer
from woodbury.monitor import report
from woodbury.training.shared_gradients import shared_backward


def shuffled(samples: int, size: int, seed: int, done: int = 0) -> Iterator[Tensor]:
    """Endless batches of sample indices, in another order every epoch.

    Epochs have `batches_in(samples, size)` batches; the samples that fill no batch are left out, as
    a batch of one sample is too few for BatchNorm. The order depends on the seed and the epoch
    alone, so that a resumed run skips indices and reads no data.

    Args:
        samples: How many samples there are.
        size: Samples per batch.
        seed: Of the order.
        done: Batches to skip at the beginning.

    Yields:
        (size,) int64, below `samples`.

    Example:
        >>> batches = shuffled(samples=5, size=2, seed=0)
        >>> [len(next(batches)) for _ in range(3)]
        [2, 2, 2]
    """
    epoch, skipped = divmod(done, batches_in(samples, size))
    while True:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        batches = torch.randperm(samples, generator=generator).split(min(size, samples))
        yield from batches[skipped : batches_in(samples, size)]
        epoch += 1
        skipped = 0


def batches_in(samples: int, size: int) -> int:
    """How many batches an epoch has.

    Args:
        samples: How many samples there are.
        size: Samples per batch.

    Returns:
        At least one, which is smaller where there are fewer samples.

    Example:
        >>> batches_in(5, 2), batches_in(5, 8)
        (2, 1)
    """
    return max(1, samples // size)


@checks_types
def finetune(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    steps: range,
    *,
    likelihood: Likelihood = cross_entropy,
    scheduler: LRScheduler | None = None,
    after: Callable[[int], None] | None = None,
) -> None:
    """Train a model in place, one batch a step.

    It trains in train mode and leaves the model in eval mode. Where ranks share a computation, each
    takes a part of every batch. To hold pruned weights at zero, call
    `hold_zeros(optimizer, model)` before.

    Args:
        model: The network.
        optimizer: Of the model's parameters.
        batches: (inputs, target); read until the steps or the batches end.
        steps: The numbers of the steps, such as range(1, 101).
        likelihood: The loss.
        scheduler: Of the learning rate; it makes one step per batch.
        after: Called with the number of each step once it is complete.

    Raises:
        WoodburyError: If the loss is not finite, the model or the loss refuses a batch, or `after`
            fails; it names the step.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> batches = [(torch.randn(8, 3), torch.arange(8) % 2)] * 3
        >>> finetune(model, optimizer, batches, range(1, 3), after=print)
        1
        2
    """
    check_likelihood(likelihood)
    check_optimizer(optimizer)
    model.train()
    try:
        for step, (inputs, target) in zip(steps, pairs(batches), strict=False):
            optimizer.zero_grad()
            with user_code(f"The model or its loss refuses the batch of step {step}."):
                loss = shared_backward(model, inputs, target, likelihood, step)
            if not math.isfinite(loss):
                raise WoodburyError(
                    f"The loss is not finite at step {step}: lower the learning rate."
                )
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            if after:
                with user_code(f"The function `after` fails at step {step}."):
                    after(step)
            report("training", step, steps.stop - 1)
    finally:
        model.eval()
