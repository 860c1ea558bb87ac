"""The labels that a loss is taken at: the data's own, or drawn from the model's distribution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, user_code
from woodbury.model.objective import Objective

Labels = Callable[[Objective, Any, Any, torch.Generator | None], Any]
"""labels(objective, inputs, target, generator) -> the labels that the loss is taken at.

`observed` gives the empirical Fisher, `sampled` the true one.
"""


@checks_types
def observed(
    objective: Objective, inputs: Any, target: Any, generator: torch.Generator | None
) -> Any:
    """The data's own labels: the empirical Fisher.

    Args:
        objective: Not used.
        inputs: Not used.
        target: The batch's labels.
        generator: Not used.

    Returns:
        `target`.

    Raises:
        WoodburyError: If it is None.
    """
    if target is None:
        raise WoodburyError(
            "The batches carry no labels (None): give them, or take labels=sampled."
        )
    return target


@checks_types
@torch.no_grad()
def sampled(
    objective: Objective, inputs: Any, target: Any, generator: torch.Generator | None
) -> Any:
    """Labels drawn from the model's own distribution, one per sample: the true Fisher.

    Args:
        objective: The model at its weights, and its likelihood.
        inputs: The batch's inputs.
        target: The batch's labels or None. The likelihood reads them only where they mark positions
            without an observation, which stay so.
        generator: Of the drawn labels; None for torch's own.

    Returns:
        Labels as the likelihood draws them.

    Raises:
        WoodburyError: If the likelihood draws none.
    """
    draw = sampler(objective)
    return draw(objective.forward(objective.parameters, inputs), target, generator)


def sampler(objective: Objective) -> Callable[[Any, Any, torch.Generator | None], Any]:
    """What draws labels from the model's own distribution.

    Args:
        objective: The model's likelihood.

    Returns:
        (output, target, generator) -> labels.

    Raises:
        WoodburyError: If the likelihood draws none.
    """
    draw = objective.likelihood.sample
    if draw is None:
        raise WoodburyError(
            "This likelihood cannot draw labels: give it `sample`, or take labels=observed."
        )
    return draw


def labelled(
    labels: Labels,
    objective: Objective,
    inputs: Any,
    target: Any,
    generator: torch.Generator | None,
) -> Any:
    """The labels of a batch that the loss is taken at.

    Args:
        labels: `observed`, `sampled`, or a function of the user's.
        objective: As for `labels`.
        inputs: As for `labels`.
        target: As for `labels`.
        generator: As for `labels`.

    Returns:
        What `labels` gives.

    Raises:
        WoodburyError: If it fails.
    """
    with user_code("The function of the labels fails.", keeps_refusals=True):
        return labels(objective, inputs, target, generator)
