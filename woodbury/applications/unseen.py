"""unseen_losses(): the loss of each training sample under networks that were trained without it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from woodbury.applications.halves import check_places, mean_by_sample
from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, WrongType
from woodbury.model.batches import Batch, Samples
from woodbury.model.likelihood import Likelihood, cross_entropy
from woodbury.model.objective import Objective


@checks_types
def unseen_losses(
    networks: Sequence[nn.Module],
    trained_on: Sequence[Tensor],
    train: Iterable[Batch],
    *,
    likelihood: Likelihood = cross_entropy,
) -> Tensor:
    """The mean loss of each training sample under the networks that were trained without it.

    A network learns a wrong label by heart, so that its loss there becomes small; one that has not
    seen the sample does not, however long it is trained. The largest are the suspects.

    Args:
        networks: Trained alike, each on some of the samples.
        trained_on: For each network the places (int64) of its training samples; each sample must be
            missing from one at least, as from `complementary_halves`.
        train: All training data, n samples, in the order that the places are of.
        likelihood: The loss.

    Returns:
        (n,) float64.

    Raises:
        WoodburyError: If places and networks do not match, a place is beyond the data, a sample was
            seen by all networks, or a loss is not finite.

    Example:
        >>> train = [(torch.randn(6, 3), torch.arange(6) % 2)]
        >>> networks = [nn.Linear(3, 2), nn.Linear(3, 2)]
        >>> unseen_losses(networks, [torch.arange(3), torch.arange(3, 6)], train).shape
        torch.Size([6])

    Source:
        Out-of-sample losses to find wrong labels: Northcutt, Jiang & Chuang, JAIR 2021.
    """
    if not isinstance(networks, (list, tuple)) or not networks:
        raise WrongType("networks is no list of networks: give two at least.")
    check_places(trained_on, len(networks))
    singles = list(Samples.of(train).in_batches(1))
    every = torch.arange(len(singles))
    unseen: list[Tensor] = []
    for number, places in enumerate(trained_on):
        if len(places) and int(places.max()) >= len(singles):
            raise WoodburyError(
                f"Network {number} was trained on sample {int(places.max())}, and train has "
                f"{len(singles)}: give all the training data."
            )
        unseen.append(every[~torch.isin(every, places.cpu())])
    seen_by_all = ~torch.isin(every, torch.cat(unseen))
    if bool(seen_by_all.any()):
        raise WoodburyError(
            f"All networks were trained on sample {int(seen_by_all.int().argmax())}: take "
            "complementary_halves()."
        )
    losses = [
        _losses(model, [singles[place] for place in places], likelihood)
        for model, places in zip(networks, unseen, strict=True)
    ]
    return mean_by_sample(losses, unseen)


@torch.no_grad()
def _losses(model: nn.Module, singles: list[Batch], likelihood: Likelihood) -> Tensor:
    """(s,) float64, of samples that are a batch each."""
    objective = Objective.from_model(model, singles, likelihood)
    found = [objective.loss([single]) for single in singles]
    if not all(map(math.isfinite, found)):
        raise WoodburyError("A network has no finite loss on a sample: does it diverge?")
    return torch.tensor(found, dtype=torch.float64)
