"""The outputs of a network, and their Jacobian: what it is as a linear function of its weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from woodbury.applications.vector_groups import DenseGroups, OuterGroups, VectorGroups
from woodbury.estimation.factored_gradients import factored_rows
from woodbury.estimation.ggn import repeat_per_direction
from woodbury.estimation.gradients import gradient_rows
from woodbury.model.batches import Samples
from woodbury.model.likelihood import Likelihood
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective


class Linearised(NamedTuple):
    """The outputs of some samples at the present weights, and how they change with them.

    Attributes:
        outputs: (b, k).
        jacobian: Of b samples, k outputs and d weights.
    """

    outputs: Tensor
    jacobian: VectorGroups


def outputs_at(objective: Objective, weights: Tensor, inputs: Any) -> Tensor:
    """The outputs of a batch at some weights.

    Args:
        objective: The network.
        weights: (d,).
        inputs: The batch's inputs.

    Returns:
        (b, …).
    """
    parameters = objective.space.unflatten(weights)
    return objective.likelihood.output_tensor(objective.forward(parameters, inputs))


def linearised(objective: Objective, inputs: Any, dtype: torch.dtype) -> Linearised:
    """The outputs of a batch and their Jacobian, by one gradient for each output.

    Where the layers are linear, gradients are not written out  (eq. 81).

    Args:
        objective: The network at its weights.
        inputs: The batch's inputs.
        dtype: Of the Jacobian where it is written out.

    Returns:
        Both, with all outputs of a sample in one dimension.
    """
    with torch.no_grad(), eval_mode(objective.model):
        outputs = outputs_at(objective, objective.weights, inputs)
    flat = outputs.reshape(len(outputs), -1)
    b, k = flat.shape
    eye = torch.eye(k, dtype=flat.dtype, device=flat.device)
    directions = eye.expand(b, k, k).reshape(b, k, *outputs.shape[1:])
    along = replace(
        objective,
        batches=Samples([repeat_per_direction(inputs, directions)], trusted=True),
        likelihood=Likelihood(objective.likelihood.directional),
    )
    factored = factored_rows([(along, b * k)])
    if factored is not None:
        return Linearised(flat, OuterGroups(factored, k, dtype))
    rows = gradient_rows(along, b * k).to(dtype)
    return Linearised(flat, DenseGroups(rows.view(b, k, -1)))
