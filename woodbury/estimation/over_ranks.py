"""One computation on all ranks: what they must agree on, and what each may hold."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from woodbury.errors import WoodburyError
from woodbury.io.fingerprint import digest
from woodbury.linalg.ranks import Ranks
from woodbury.memory.budget import budget_bytes
from woodbury.model.batches import Batch, Samples
from woodbury.model.objective import Objective, check_usable
from woodbury.model.parameters import is_dtensor
from woodbury.model.sharded import is_sharded, reshard
from woodbury.model.wrappers import checked_model


class OwnPart(NamedTuple):
    """What a rank works with.

    Attributes:
        batches: The calibration set, which gives the rank its own samples; alone as it came.
        memory: The budget, the same on all ranks; alone as it came.
    """

    batches: Iterable[Batch]
    memory: int | str | None


@contextmanager
def over_ranks(
    group: object,
    what: str,
    model: nn.Module,
    batches: Iterable[Batch],
    memory: int | str | None,
    facts: Mapping[str, object],
) -> Iterator[OwnPart]:
    """A context in which the ranks of a group do one thing together.

    Args:
        group: As for `prune`.
        what: The function that begins.
        model: The network, whose weights must be the same on all ranks.
        batches: The calibration set of this rank.
        memory: What a rank may hold; None for its part of what its machine has.
        facts: The settings, which must be the same on all ranks.

    Yields:
        The samples and the memory of this rank; what was given where there are no others.

    Raises:
        RankError: If the ranks differ, or one does not come.
        WoodburyError: If the parameters are sharded over ranks, and this process is alone; if one
            has no values, as on meta.
    """
    ranks = Ranks.of(group)
    if ranks.is_alone:
        _check_whole(model, what)
        with ranks.started(what):
            yield OwnPart(batches, memory)
        return
    with ranks.started(what, facts) as ranks:
        for name, parameter in checked_model(model).named_parameters():
            check_usable(name, parameter)
        ranks.agree(what, {"the weights of the model": _weights_of(checked_model(model))})
        samples = Samples.of(batches).spread_over_ranks()
        yield OwnPart(samples, _shared_budget(ranks, memory, model))


@contextmanager
def fitted_over_ranks(group: object, what: str, objective: Objective) -> Iterator[Objective]:
    """A context in which the ranks of a group fit one network together.

    Args:
        group: As for `prune`.
        what: What fits it.
        objective: The network at its weights, and the data; inside of a computation of ranks, what
            this one has of it.

    Yields:
        The same on this rank's samples.

    Raises:
        RankError: If the ranks differ, or one does not come.
    """
    if not Ranks.current().is_alone:  # a part of what has begun
        yield objective
        return
    facts = {"the weights that are fitted": digest(objective.weights)}
    with over_ranks(group, what, objective.model, objective.batches, None, facts) as own:
        yield replace(objective, batches=Samples.of(own.batches))


def _shared_budget(ranks: Ranks, memory: int | str | None, model: nn.Module) -> int | str | None:
    """The smallest budget of all ranks; those on one machine share what it has."""
    if ranks.size == 1:
        return memory
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    own = budget_bytes(memory, device)
    if memory is None and device.type == "cpu":
        own //= ranks.all_gather_objects(socket.gethostname()).count(socket.gethostname())
    return int(ranks.minimum(own))


def _check_whole(model: nn.Module, what: str) -> None:
    model = checked_model(model)
    if is_sharded(model):
        raise WoodburyError(
            f"The model is sharded over ranks, so that one alone has not all weights: call {what} "
            "on all ranks, without group=woodbury.ALONE."
        )


def _weights_of(model: nn.Module) -> str:
    """A checksum of all parameters; of those that are sharded, of their shapes."""
    reshard(model)
    return digest(
        {
            name: tuple(parameter.shape) if is_dtensor(parameter) else parameter
            for name, parameter in model.named_parameters()
        }
    )
