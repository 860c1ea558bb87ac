"""BatchNorm's running statistics, estimated again after the weights were changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError
from woodbury.linalg.ranks import Ranks
from woodbury.model.batches import (
    Batch,
    checked,
    concatenated,
    same_structure,
    samples_in,
)
from woodbury.model.calling import call_model
from woodbury.model.modes import eval_mode
from woodbury.model.random_numbers import random_kept
from woodbury.model.sharded import whole_copy
from woodbury.model.spread import spread_of
from woodbury.model.wrappers import checked_model


@torch.no_grad()
@checks_types
@random_kept()
def recalibrate(model: nn.Module, batches: Iterable[Batch], *, group: object = None) -> int:
    """Set every BatchNorm's running mean and variance to their averages over some batches.

    All other modules stay in eval mode, so that nothing is dropped out. (`update_bn` of
    `torch.optim.swa_utils` has them in training mode, and takes no single samples.) On an error the
    statistics are put back.

    Args:
        model: The network. One without BatchNorm is not called at all.
        batches: Pairs (inputs, target), read once; the targets are not used. Each batch counts
            alike. A single sample has no variance, and joins the batch before or after it.
        group: The torch.distributed process group whose ranks share the batches, as for
            `woodbury.prune`: of the same data each shows the model its part of the batches, other
            data are each rank's own. All ranks have the same statistics then.

    Returns:
        How many BatchNorms were set.

    Raises:
        WoodburyError: If there is no batch, a single sample joins no other, or the statistics are
            not finite.
        RankError: If another rank fails, or does not come.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> recalibrate(model, [(torch.ones(4, 2), None)])
        1
        >>> torch.equal(model[1].running_var, torch.zeros(3))
        True
    """
    model = checked_model(model)
    norms = _norms_of(model)
    if not norms:
        return 0
    with Ranks.of(group).started("recalibrate", {"the number of BatchNorms": len(norms)}):
        whole = whole_copy(model)  # a forward pass of a sharded one waits for all ranks
        shown = norms if whole is model else _norms_of(whole)
        with eval_mode(whole), _restored_on_error(shown):
            for norm in shown:
                norm.training = True
                norm.reset_running_stats()
                norm.momentum = None  # a cumulative average, in which every batch counts alike
            own = _run(whole, _own_batches(batches, shown))
            if not Ranks.current().total(own):
                raise WoodburyError("No batch was given: BatchNorm's statistics need at least one.")
            _average_over_ranks(shown, own)
            _check_finite(shown)
        for norm, other in zip(norms, shown, strict=True):
            if norm is not other:
                norm.load_state_dict(dict(other.named_buffers()), strict=False)
    return len(norms)


def _norms_of(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorms that have running statistics."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]


def _own_batches(batches: Iterable[Batch], norms: Sequence[_BatchNorm]) -> Iterator[Batch]:
    """The batches that this rank shows the model: of the same data on all ranks, a part."""
    ranks = Ranks.current()
    whole = _at_least_two(batches)
    if ranks.size == 1:
        return whole
    first = list(islice(whole, 1))
    whole = chain(first, whole)
    if not spread_of(first).is_dealt or any(isinstance(norm, nn.SyncBatchNorm) for norm in norms):
        return whole  # a SyncBatchNorm waits for the same batch on all ranks
    return islice(whole, ranks.rank, None, ranks.size)


def _average_over_ranks(norms: Sequence[_BatchNorm], own: int) -> None:
    """Make the statistics those of the batches of all ranks, each of which counts alike."""
    ranks = Ranks.current()
    if ranks.size == 1:
        return
    total = ranks.total(own)
    for norm in norms:
        assert norm.running_mean is not None and norm.running_var is not None
        both = torch.stack([norm.running_mean, norm.running_var]).double()
        mean, variance = ranks.sum(both * own) / total
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.fill_(total)


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
