"""Scores of a network on data: accuracy and R²."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.model.batches import Batch, checked
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective

Score = Callable[[Objective], float]
"""A number that should be large, such as the accuracy on held-out data."""


def accuracy(objective: Objective, batches: Iterable[Batch]) -> float:
    """The fraction of targets to which the network gives the highest score.

    Args:
        objective: Its weights are evaluated, in eval mode; its own batches are not read.
        batches: (inputs, target) with outputs (b, classes, …), as the likelihood reads them, and
            targets (b, …). Targets that are no observation, by the likelihood's `ignored`, are not
            counted.

    Returns:
        A number from 0 to 1.

    Raises:
        WoodburyError: If outputs and targets do not fit, or there is no target to count.

    Example:
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.eye_(model.weight)
        >>> data = [(torch.eye(2), torch.tensor([0, 0]))]
        >>> accuracy(Objective.from_model(model, data), data)
        0.5
    """

    def right(output: Tensor, target: Tensor) -> Tensor:
        predicted = output.argmax(1)
        if predicted.shape != target.shape:
            raise WoodburyError(
                f"The predicted classes have shape {tuple(predicted.shape)} and the labels "
                f"{tuple(target.shape)}: give outputs (b, classes, …) and labels (b, …)."
            )
        return predicted == target

    nothing = "There is no data to measure the accuracy on: give at least one batch."
    return _share_right(objective, batches, right, nothing)


def share_of_right_answers(objective: Objective, batches: Iterable[Batch]) -> float:
    """The fraction of answers of yes or no that the network gives right.

    Args:
        objective: Its weights are evaluated, in eval mode, with the likelihood `binary`; its own
            batches are not read.
        batches: (inputs, target) with logits (b, …), of which a positive one is a yes, and targets
            of the same shape, from 0 to 1. Those that are no observation, by the likelihood's
            `ignored`, are not counted; one above 0.5 is a yes.

    Returns:
        A number from 0 to 1.

    Raises:
        WoodburyError: If outputs and targets do not fit, or there is no answer to count.

    Example:
        >>> import torch, woodbury
        >>> data = [(torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 1.0]]))]
        >>> binary = woodbury.likelihoods.binary()
        >>> share_of_right_answers(Objective.from_model(torch.nn.PReLU(), data, binary), data)
        0.5
    """

    def right(logits: Tensor, target: Tensor) -> Tensor:
        if logits.shape != target.shape:
            raise WoodburyError(
                f"The logits have shape {tuple(logits.shape)} and the answers "
                f"{tuple(target.shape)}: give one answer for each logit."
            )
        return (logits > 0) == (target > 0.5)

    nothing = "There is no answer to count: give at least one that is observed."
    return _share_right(objective, batches, right, nothing)


def _share_right(
    objective: Objective,
    batches: Iterable[Batch],
    right: Callable[[Tensor, Tensor], Tensor],
    nothing: str,
) -> float:
    """The share of observed targets for which `right(output, target)` holds.

    `nothing` is the error where there is none.
    """
    correct = 0
    counted = 0
    ignored = objective.likelihood.ignored
    with torch.no_grad(), eval_mode(objective.model):
        for inputs, target in checked(batches):
            output = objective.forward(objective.parameters, inputs)
            is_right = right(objective.likelihood.output_of(output), target)
            observed = torch.ones_like(target, dtype=torch.bool)
            if ignored is not None:
                observed = target != ignored
            correct += int(is_right[observed].sum())
            counted += int(observed.sum())
    if not counted:
        raise WoodburyError(nothing)
    return correct / counted


def standard_error(share: float, samples: int) -> float:
    """The standard error of a share of independent samples, √(p (1 − p) / n).

    For a mean of shares, such as the accuracy of tokens in sentences, it is an upper bound.

    Args:
        share: p, such as an accuracy, from 0 to 1. It counts as half a sample from either end at
            least, so that the error of a perfect score is not zero.
        samples: n, at least one.

    Returns:
        The error, as a fraction too.

    Raises:
        WoodburyError: If there is no sample.

    Example:
        >>> round(standard_error(0.9, 900), 6), round(standard_error(1.0, 450), 4)
        (0.01, 0.0016)
    """
    if samples < 1:
        raise WoodburyError(f"samples is {samples}: a standard error needs at least one.")
    inside = min(max(share, 0.5 / samples), 1 - 0.5 / samples)
    return math.sqrt(inside * (1 - inside) / samples)


def r_squared(objective: Objective, batches: Iterable[Batch]) -> float:
    """The coefficient of determination, R² = 1 − Σ‖output − target‖² / Σ‖target − mean‖².

    Args:
        objective: Its weights are evaluated, in eval mode, with the likelihood `squared_error`; its
            own batches are not read.
        batches: (inputs, target) with real targets (b, …); read twice.

    Returns:
        At most 1, which is a perfect fit; 0 for the mean of the targets; NaN where all are equal.

    Example:
        >>> from woodbury import squared_error
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> data = [(torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0], [0.0]]))]
        >>> r_squared(Objective.from_model(model, data, squared_error), data)
        -1.0
    """
    targets = torch.cat([target for _, target in batches]).double()
    deviation = float((targets - targets.mean(0)).square().sum())
    if not deviation:
        return float("nan")
    # squared_error's loss is half of the mean squared error of a sample
    squared_error = 2 * len(targets) * objective.loss(batches)
    return 1 - squared_error / deviation
