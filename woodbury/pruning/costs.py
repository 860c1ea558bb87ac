"""Selection = unit × scope × budget: what competes with what, and which of it falls."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from woodbury.model.space import ParameterSpace

Cost = Callable[[ParameterSpace], Tensor]
"""space -> what each of the n weights costs, (n,) positive: a budget is a share of the sum."""


def weights(space: ParameterSpace) -> Tensor:
    """Every weight costs 1: sparsity counts weights."""
    return torch.ones(space.n, dtype=torch.float64)


def power(cost: Cost, power: float) -> Cost:
    """The cost of each weight to a power: `normalize_by=power(flops(model, inputs), 0.3)` divides saliencies by FLOPs^0.3."""
    return lambda space: cost(space).double() ** power
