"""Latency as a cost: the seconds that a weight of each layer takes on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, user_code
from woodbury.model.batches import samples_in
from woodbury.model.calling import call_model
from woodbury.model.hooks import record_calls
from woodbury.model.layers import parameter_owners
from woodbury.model.modes import eval_mode
from woodbury.model.random_numbers import random_kept
from woodbury.model.space import ParameterSpace
from woodbury.runtime import products
from woodbury.runtime.api import can_be_sparse, trial

SPARSITIES = (0.8, 0.95)
"""A layer is timed with so many random zeros; between them its time is a line in its non-zeros."""
LEAST_SECONDS = 1e-13
"""Of a weight, where the clock saw no difference."""


@dataclass(frozen=True)
class Latency:
    """Seconds per sample that each weight takes, for layers that run sparse.

    It is a cost for pruning: a `Pruner` calls it with its space.

    Attributes:
        per_weight: Parameter name -> seconds of one of its weights that is not zero, per sample.

    Example:
        >>> space = ParameterSpace.from_model(nn.Linear(2, 1, bias=False))
        >>> Latency({"weight": 2e-9})(space)
        tensor([2.0000e-09, 2.0000e-09], dtype=torch.float64)
    """

    per_weight: Mapping[str, float]

    def __call__(self, space: ParameterSpace) -> Tensor:
        """The seconds of each weight of a space.

        Args:
            space: A space of the model that the seconds were measured on.

        Returns:
            (n,) float64, kept and removed weights alike.

        Raises:
            WoodburyError: If those of a parameter of the space are not known.
        """
        for name in space.shapes:
            if name not in self.per_weight:
                raise WoodburyError(
                    f"The seconds of {name!r} are not known: it is no weight of a layer that runs "
                    "sparse; leave it out of the weights to prune."
                )
        each = torch.tensor([self.per_weight[name] for name in space.shapes], dtype=torch.float64)
        return each[space.tensor_index()]


@checks_types
@torch.no_grad()
@random_kept()
def latency(model: nn.Module, inputs: Any) -> Latency:
    """Measure what a weight of each layer costs in the runtime of `accelerate`.

    Each Linear, Conv2d and Conv1D is timed on inputs of the shape that it sees, at two sparsities;
    the difference over the difference of the non-zeros is the price of one. A pruner with this cost
    removes a share of the *time* of the non-zeros: `Pruner(cost=latency(model, inputs))`. What a
    layer takes whatever its zeros is no weight's cost.

    Args:
        model: A float32 model on the CPU, which is left as it was.
        inputs: A batch's inputs, of the size that the network will run with.

    Returns:
        Seconds per sample, for the weights of those layers.

    Raises:
        MissingDependency: If Numba is not installed.
        WoodburyError: If the model refuses the inputs, or has no such layer.

    Example:
        >>> import pytest; _ = pytest.importorskip("numba")
        >>> seconds = latency(nn.Linear(64, 64), torch.randn(8, 64)).per_weight["weight"]
        >>> 0 < seconds < 1
        True
    """
    products.kernels()
    with user_code("The model refuses the inputs that it is timed on."), eval_mode(model):
        _, calls = record_calls(model, lambda: call_model(model, inputs))
    samples = max(1, samples_in(inputs))
    result: dict[str, float] = {}
    names = [name for name, _ in model.named_parameters()]
    for owner in parameter_owners(model, names):
        layer: Any = owner.module
        if "weight" not in owner.names or not can_be_sparse(layer):
            continue
        name = owner.names["weight"]
        for use in calls.get(layer, []):
            shape = use.input_shape
            result[name] = result.get(name, 0.0) + _seconds_per_weight(layer, shape) / samples
    if not result:
        raise WoodburyError(
            "No layer of the model can run sparse: latency is for float32 Linear, Conv2d and "
            "Conv1D layers on the CPU."
        )
    return Latency(result)


def _seconds_per_weight(layer: Any, shape: torch.Size) -> float:
    inputs = torch.randn(shape)
    timed = [trial(_with_zeros(layer, sparsity), inputs) for sparsity in SPARSITIES]
    few, many = (round((1 - sparsity) * layer.weight.numel()) for sparsity in SPARSITIES)
    slower = timed[0].sparse_seconds - timed[1].sparse_seconds
    return max(slower / max(1, few - many), LEAST_SECONDS)


def _with_zeros(layer: Any, sparsity: float) -> nn.Module:
    """A copy of a layer with random zeros."""
    copy = deepcopy(layer)
    weight = copy.weight
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(weight.numel(), generator=generator).argsort()
    weight.data = torch.ones_like(weight).contiguous()
    weight.data.view(-1)[order[: round(sparsity * weight.numel())]] = 0
    return copy
