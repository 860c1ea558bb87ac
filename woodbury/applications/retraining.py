"""counterfactual(): leave the most helpful training samples out, train again, and compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from woodbury.applications.data_influence import Influence
from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, WrongType, check_whole_number, user_code
from woodbury.model.batches import Batch, Samples
from woodbury.model.likelihood import Likelihood, cross_entropy
from woodbury.model.objective import Objective


class Counterfactual(NamedTuple):
    """A prediction of `influence` beside what training without the samples gave.

    Attributes:
        left_out: (k,) int64, the places of the samples that were left out.
        predicted: By how much the scores say that the loss of the test sample rises.
        measured: By how much it rose.
    """

    left_out: Tensor
    predicted: float
    measured: float


@checks_types
def counterfactual(
    found: Influence,
    retrain: Callable[[Tensor], nn.Module],
    test: Iterable[Batch],
    sample: int,
    k: int = 10,
    *,
    likelihood: Likelihood = cross_entropy,
) -> Counterfactual:
    """Train with and without the most helpful samples of one test sample, and compare its loss.

    Args:
        found: What `influence` returned.
        retrain: From the places (int64) of the training samples to use to a network trained on
            them. It is called twice: with all places, and without the k most helpful ones.
        test: The test data that `found` is of.
        sample: The place of the test sample.
        k: How many training samples to leave out.
        likelihood: The loss.

    Returns:
        The predicted and the measured rise of the test sample's loss.

    Raises:
        WrongType: If `retrain` returns no torch.nn.Module.
        WoodburyError: If `test` has another number of samples than `found`, or `retrain` fails.

    Example:
        >>> from woodbury import influence
        >>> train = torch.randn(20, 3), torch.arange(20) % 2
        >>> test = torch.ones(1, 3), torch.tensor([1])
        >>> def retrain(places):
        ...     model = nn.Linear(3, 2)
        ...     optimizer = torch.optim.SGD(model.parameters(), 0.5)
        ...     for _ in range(20):
        ...         optimizer.zero_grad()
        ...         loss = nn.functional.cross_entropy(model(train[0][places]), train[1][places])
        ...         loss.backward()
        ...         optimizer.step()
        ...     return model
        >>> found = influence(retrain(torch.arange(20)), [train], [test])
        >>> counterfactual(found, retrain, [test], sample=0, k=5).left_out.shape
        torch.Size([5])
    """
    tests, samples = found.scores.shape
    check_whole_number(sample, "sample", "the place of a test sample", least=0, most=tests - 1)
    check_whole_number(k, "k", "the number of samples to leave out", most=samples - 1)
    singles = list(Samples.of(test).in_batches(1))
    if len(singles) != tests:
        raise WoodburyError(
            f"test has {len(singles)} samples and the scores are of {tests}: give the test data "
            "that influence() was given."
        )
    left_out = found.top(k)[sample].cpu()
    every = torch.arange(samples)
    kept = every[~torch.isin(every, left_out)]
    before, after = (
        _loss(retrain, places, singles[sample], likelihood) for places in (every, kept)
    )
    predicted = float(found.scores[sample, left_out].sum())
    return Counterfactual(left_out, predicted, after - before)


def _loss(
    retrain: Callable[[Tensor], nn.Module], places: Tensor, batch: Batch, likelihood: Likelihood
) -> float:
    """The loss of a batch under the network that is trained on some samples."""
    with user_code("The function that trains again fails."):
        model = retrain(places)
    if not isinstance(model, nn.Module):
        raise WrongType(f"retrain gave a {type(model).__name__}: it must return the network.")
    loss = Objective.from_model(model, [batch], likelihood).loss()
    if not math.isfinite(loss):
        raise WoodburyError(
            "The network that was trained again has no finite loss: does it diverge?"
        )
    return loss
