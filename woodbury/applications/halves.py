"""Networks that are each trained on a half of the samples: the halves, and means over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, WrongType, check_whole_number
from woodbury.linalg.conversion import seeded
from woodbury.memory.budget import budget_bytes, bytes_in_words

BYTES_BESIDE = 500
"""Of a small tensor, beside its numbers."""


@checks_types
def complementary_halves(n: int, networks: int, seed: int = 0) -> list[Tensor]:
    """Random halves of the training samples, in pairs that share none.

    Each sample is in half of them, so that a mean over networks has equally many terms for each.

    Args:
        n: How many training samples there are.
        networks: How many halves; even.
        seed: Of the random numbers.

    Returns:
        For each network the places (int64) of its samples, in increasing order; of an odd number
        of samples the second half of a pair has one more.

    Raises:
        WoodburyError: If the number of networks is odd, or the places take more memory than is to
            have.

    Example:
        >>> first, second = complementary_halves(6, 2)
        >>> torch.cat([first, second]).sort().values
        tensor([0, 1, 2, 3, 4, 5])
    """
    check_whole_number(n, "n", "the number of training samples", least=2)
    check_whole_number(networks, "networks", "the number of networks", least=2)
    if networks % 2:
        raise WoodburyError(
            f"networks is {networks}: halves come in pairs, so give an even number."
        )
    generator = seeded(seed, torch.device("cpu"))
    room, needed = budget_bytes(), networks * (4 * n + BYTES_BESIDE)
    if needed > room:
        raise WoodburyError(
            f"The places of {networks} halves of {n} samples take {bytes_in_words(needed)}, and "
            f"{bytes_in_words(room)} are to have: give fewer networks."
        )
    halves: list[Tensor] = []
    for _ in range(networks // 2):
        order = torch.randperm(n, generator=generator)
        halves += [order[: n // 2].sort().values, order[n // 2 :].sort().values]
    return halves


def check_places(trained_on: Any, networks: int) -> None:
    """Raise unless each network has the places of its training samples.

    Args:
        trained_on: Sequence of 1-D int64 tensors.
        networks: How many networks there are.

    Raises:
        WrongType: If it is anything else.
        WoodburyError: If it has another length, or a place is negative or named twice.
    """
    if not isinstance(trained_on, (list, tuple)) or not all(map(_is_places, trained_on)):
        raise WrongType(
            "trained_on is no list of places: give an int64 tensor for each network, as "
            "complementary_halves() returns them."
        )
    if len(trained_on) != networks:
        raise WoodburyError(
            f"trained_on has the places of {len(trained_on)} networks, and there are {networks}: "
            "give those of each."
        )
    for number, places in enumerate(trained_on):
        if (len(places) and int(places.min()) < 0) or len(places.unique()) < len(places):
            raise WoodburyError(
                f"The places of network {number} are negative or repeat: give each of its "
                "training samples once."
            )


def mean_by_sample(parts: Sequence[Tensor], places: Sequence[Tensor]) -> Tensor:
    """For each sample the mean over the networks that it belongs to.

    Args:
        parts: (…, nₖ) of each network.
        places: (nₖ,) int64, where its samples lie among all n.

    Returns:
        (…, n).

    Raises:
        WoodburyError: If a sample belongs to no network.

    Example:
        >>> parts, places = [torch.ones(1), torch.zeros(2)], [torch.tensor([1]), torch.arange(2)]
        >>> mean_by_sample(parts, places)
        tensor([0.0000, 0.5000])
    """
    n = 1 + max(int(own.max()) for own in places if len(own))
    total = parts[0].new_zeros(*parts[0].shape[:-1], n)
    times = parts[0].new_zeros(n)
    for part, own in zip(parts, places, strict=True):
        own = own.to(total.device)
        total.index_add_(-1, own, part)
        times[own] += 1
    if not bool(times.all()):
        raise WoodburyError(
            f"Training sample {int(times.argmin())} belongs to no network: take "
            "complementary_halves()."
        )
    return total / times


def _is_places(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.int64 and value.ndim == 1
