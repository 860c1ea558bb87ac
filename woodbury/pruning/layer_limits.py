"""How much may be removed from each tensor, or from tensors that have units in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.model.space import ParameterSpace
from woodbury.pruning.feasibility import Account
from woodbury.pruning.scopes import layerwise


class LayerLimits(NamedTuple):
    """What may still be removed.

    Attributes:
        layers: (g,) int32, which limit holds for each unit.
        costs: (l,) float64, the cost that may be removed at most within each.
    """

    layers: Tensor
    costs: Tensor


def layer_limits(
    account: Account, share: float, layers: Tensor, groups: tuple[Tensor, ...] | None
) -> LayerLimits | None:
    """The limits that a max layer sparsity sets.

    Units that lie in several tensors, as coupled channels do, have one limit with all units of
    these tensors: the share of the sum of their costs.

    Args:
        account: The costs of all weights.
        share: Of a tensor's cost that may be removed at most; 1 for no limit.
        layers: (g,) int32, the tensor that each unit begins in.
        groups: The units by size; None for single weights.

    Returns:
        None for no limit.

    Raises:
        WoodburyError: If the share is not in (0, 1].
    """
    if share == 1:
        return None
    if not 0 < share < 1:
        raise WoodburyError(
            f"max_layer_sparsity is {share}: it is the share of a tensor that may be removed at "
            "most and must lie in (0, 1]."
        )
    costs = Account.of(account.space, share, layerwise, account.costs).to_remove
    if groups is None:
        return LayerLimits(layers, costs)
    first = torch.tensor(_coupled(account.space, groups), dtype=torch.int64)
    return LayerLimits(
        first[layers.long()].to(layers.dtype), torch.zeros_like(costs).index_add_(0, first, costs)
    )


def _coupled(space: ParameterSpace, groups: Iterable[Tensor]) -> list[int]:
    """For each tensor the first one of those that units couple it with, itself included."""
    tensor_of = space.tensor_index()[space.keep.cpu()]
    first = list(range(len(space.shapes)))

    def root(tensor: int) -> int:
        while first[tensor] != tensor:
            tensor = first[tensor]
        return tensor

    for members in groups:
        tensors = tensor_of[members.cpu()]
        pairs = torch.stack([tensors[:, :1].expand_as(tensors), tensors], -1).flatten(0, 1)
        for one, other in pairs.unique(dim=0).tolist():
            one, other = root(one), root(other)
            first[max(one, other)] = min(one, other)
    return [root(tensor) for tensor in first]
