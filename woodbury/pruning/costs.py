"""Selection = unit × scope × budget: what competes with what, and which of it falls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from woodbury.model.flop_count import Flops as Flops
from woodbury.model.flop_count import flops as flops
from woodbury.model.space import ParameterSpace

Cost = Callable[[ParameterSpace], Tensor]
"""space -> what each of the n weights costs, (n,) positive: a budget is a share of the sum."""


def weights(space: ParameterSpace) -> Tensor:
    """Every weight costs 1: sparsity counts weights."""
    return torch.ones(space.n, dtype=torch.float64)


@dataclass(frozen=True)
class power:
    """A cost to a power.

    `normalize_by=power(flops(model, inputs), 0.3)` divides saliencies by FLOPs^0.3.

    Args:
        cost: The cost of each weight.
        exponent: The power; 0 counts weights.

    Example:
        >>> import torch, woodbury
        >>> space = woodbury.ParameterSpace.from_model(torch.nn.Linear(2, 1, bias=False))
        >>> woodbury.costs.power(woodbury.costs.weights, 0.5)(space)
        tensor([1., 1.], dtype=torch.float64)
    """

    cost: Cost
    exponent: float

    def __call__(self, space: ParameterSpace) -> Tensor:
        """What each of the n weights costs, (n,)."""
        return self.cost(space).double() ** self.exponent
