"""Costs: what each weight counts towards a sparsity, 1 or its FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from woodbury.argument_types import check_fields, checks_types
from woodbury.errors import user_code
from woodbury.io.representation import readable
from woodbury.model.flop_count import Flops as Flops
from woodbury.model.flop_count import flops as flops
from woodbury.model.space import ParameterSpace

Cost = Callable[[ParameterSpace], Tensor]
"""space -> the cost of each of the n weights, (n,) positive; a sparsity is a share of the sum."""


@checks_types
def weights(space: ParameterSpace) -> Tensor:
    """Every weight costs 1, so that a sparsity counts weights.

    Args:
        space: The weights to prune.

    Returns:
        (n,) ones in float64, stored once.

    Example:
        >>> import torch, woodbury
        >>> weights(woodbury.ParameterSpace.from_model(torch.nn.Linear(2, 1)))
        tensor([1., 1., 1.], dtype=torch.float64)
    """
    return torch.ones(1, dtype=torch.float64).expand(space.n)


@dataclass(frozen=True)
class power:
    """A cost raised to a power.

    `Pruner(normalize_by=power(flops(model, inputs), 0.3))` divides saliencies by FLOPs^0.3, the
    FLOPs-aware rule of WoodFisher (Singh & Alistarh, NeurIPS 2020)  (eq. 51).

    Args:
        cost: The cost of each weight.
        exponent: The power; 0 counts weights, 1 leaves the cost as it is.

    Example:
        >>> import torch, woodbury
        >>> space = woodbury.ParameterSpace.from_model(torch.nn.Linear(2, 1, bias=False))
        >>> power(weights, 0.5)(space)
        tensor([1., 1.], dtype=torch.float64)
        >>> power(weights, 0.5)
        power(cost=weights, exponent=0.5)
    """

    cost: Cost
    exponent: float

    __repr__ = readable

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, space: ParameterSpace) -> Tensor:
        """The cost of each of the n weights, (n,) float64."""
        with user_code("The cost fails on this space."):
            return self.cost(space).double() ** self.exponent
