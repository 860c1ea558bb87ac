"""BatchNorm's running statistics, estimated again after the weights were changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError
from woodbury.model.batches import (
    Batch,
    checked,
    concatenated,
    same_structure,
    samples_in,
)
from woodbury.model.calling import call_model
from woodbury.model.modes import eval_mode
from woodbury.model.wrappers import checked_model


@torch.no_grad()
@checks_types
def recalibrate(model: nn.Module, batches: Iterable[Batch]) -> int:
    """Set every BatchNorm's running mean and variance to their averages over some batches.

    All other modules stay in eval mode, so that nothing is dropped out. (`update_bn` of
    `torch.optim.swa_utils` has them in training mode, and takes no single samples.) On an error the
    statistics are put back.

    Args:
        model: The network. One without BatchNorm is not called at all.
        batches: Pairs (inputs, target), read once; the targets are not used. Each batch counts
            alike. A single sample has no variance, and joins the batch before or after it.

    Returns:
        How many BatchNorms were set.

    Raises:
        WoodburyError: If there is no batch, a single sample joins no other, or the statistics are
            not finite.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> recalibrate(model, [(torch.ones(4, 2), None)])
        1
        >>> torch.equal(model[1].running_var, torch.zeros(3))
        True
    """
    model = checked_model(model)
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    if not norms:
        return 0
    with eval_mode(model), _restored_on_error(norms):
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average, in which every batch counts alike
        if not _run(model, _at_least_two(batches)):
            raise WoodburyError("No batch was given: BatchNorm's statistics need at least one.")
        _check_finite(norms)
    return len(norms)


@contextmanager
def _restored_on_error(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """A context after which each momentum is restored, and after an error all statistics too."""
    momenta = [norm.momentum for norm in norms]
    states = [
        {name: tensor.clone() for name, tensor in norm.state_dict().items()} for norm in norms
    ]
    try:
        yield
    except BaseException:
        for norm, state in zip(norms, states, strict=True):
            norm.load_state_dict(state)
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _run(model: nn.Module, batches: Iterable[Batch]) -> int:
    """Show the model all batches; how many there were."""
    count = 0
    try:
        for inputs, _ in batches:
            call_model(model, inputs)
            count += 1
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):  # torch has no type for it
            raise
        raise WoodburyError(
            "One sample has no variance: give BatchNorm at least two in a batch."
        ) from error
    return count


def _at_least_two(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, but no single sample by itself where one before or after it has its shape."""
    held: list[Batch] = []  # at most two: one that may go on, and one that may still be too small
    for batch in checked(batches):
        if held and samples_in(held[-1][0]) == 1 and same_structure(held[-1], batch):
            held[-1] = concatenated(held[-1], batch)
        else:
            held.append(batch)
        while len(held) > 2 or (len(held) == 2 and samples_in(held[-1][0]) > 1):
            yield held.pop(0)
    if len(held) == 2 and same_structure(*held):
        held = [concatenated(*held)]
    yield from held


def _check_finite(norms: Iterable[_BatchNorm]) -> None:
    for norm in norms:
        for name, buffer in norm.named_buffers():
            if not bool(buffer.isfinite().all()):
                raise WoodburyError(
                    f"A BatchNorm's {name} is not finite on these batches: "
                    "look for NaN in the data."
                )
