"""BatchNorm's running statistics, estimated anew: an explicit step, never hidden in another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from woodbury.errors import WoodburyError
from woodbury.model.batches import Batch, checked, concatenated, same_structure, samples_in


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Batch]) -> int:
    """Set every BatchNorm's running mean and variance to the plain average over `batches`; says how many there were.

    All other modules stay in eval mode. A single sample, which has no variance, joins the batch before it. On error the
    statistics are put back. Raises WoodburyError without a batch, and where the statistics are not finite.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    if not norms:
        return 0
    before = [
        (norm.momentum, {k: v.clone() for k, v in norm.state_dict().items()}) for norm in norms
    ]
    modes = [(module, module.training) for module in model.modules()]
    seen, finished = 0, False
    model.eval()
    try:
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average, in which every batch counts alike
        for inputs, _ in _at_least_two(batches):
            model(**inputs) if isinstance(inputs, dict) else model(
                *(inputs if isinstance(inputs, (tuple, list)) else [inputs])
            )
            seen += 1
        if not seen:
            raise WoodburyError("No batch was given: BatchNorm's statistics need at least one.")
        _check_finite(norms)
        finished = True
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise WoodburyError(
            "One sample has no variance: give BatchNorm at least two in a batch."
        ) from error
    finally:
        for norm, (momentum, state) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if not finished:
                norm.load_state_dict(state)
        for module, training in modes:
            module.training = training
    return len(norms)


def _at_least_two(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, but no single sample by itself where one before or after it has its shape."""
    held: list[Batch] = []  # one that may go, and one that may still be too small
    for batch in checked(batches):
        if held and samples_in(held[-1][0]) == 1 and same_structure(held[-1], batch):
            held[-1] = concatenated(held[-1], batch)
        else:
            held.append(batch)
        while len(held) > 2 or (len(held) == 2 and samples_in(held[-1][0]) > 1):
            yield held.pop(0)
    yield from [concatenated(*held)] if len(held) == 2 and same_structure(*held) else held


def _check_finite(norms: Iterable[_BatchNorm]) -> None:
    for norm in norms:
        for name, found in norm.named_buffers():
            if not bool(found.isfinite().all()):
                raise WoodburyError(
                    f"A BatchNorm's {name} is not finite on these batches: look for NaN in the data."
                )
