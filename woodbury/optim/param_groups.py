"""Parameter groups: what they may hold, and which of their weights move."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from woodbury.errors import WoodburyError
from woodbury.fisher.checks import check_damping
from woodbury.linalg.precision import dtype_name
from woodbury.model.parameters import check_mask, is_dtensor


def check_param_group(group: Mapping[str, Any]) -> None:
    """Raise unless the parameters and options of a parameter group are in range.

    Args:
        group: One of torch's parameter groups, with all defaults filled in.

    Raises:
        WoodburyError: If a parameter is no real floating-point one, or an option is out of range.
    """
    for parameter in group["params"]:
        if is_lazy(parameter):
            raise WoodburyError(
                "A parameter has no shape yet: show the model some data once, as its layers are "
                "lazy."
            )
        if not parameter.is_floating_point():
            raise WoodburyError(
                f"A parameter has dtype {dtype_name(parameter.dtype)}: "
                "only real floating-point ones can move."
            )
    for name in ("lr", "weight_decay"):
        value = float(group[name])
        if not (math.isfinite(value) and value >= 0):
            raise WoodburyError(f"{name} is {value}: it must be at least 0 and finite.")
    if not 0 <= group["momentum"] < 1:
        raise WoodburyError(f"momentum is {group['momentum']}: it must lie in [0, 1).")
    check_damping(group["damping"])


def moving_indices(masks: Mapping[Any, Tensor], group: Mapping[str, Any]) -> dict[Tensor, Tensor]:
    """Which weights of a parameter group move.

    Args:
        masks: Parameter or name -> bool mask, True = kept.
        group: One of torch's parameter groups, with `param_names` if the masks have names.

    Returns:
        Parameter -> (k,) int64, the indices of its kept weights, flattened; for those with a mask.

    Raises:
        WoodburyError: If masks have names and parameters none, or a mask does not fit.
    """
    names = group.get("param_names")
    if names is None and any(isinstance(key, str) for key in masks):
        raise WoodburyError(
            "keep has masks by name: "
            "give the optimizer model.named_parameters(), or masks by parameter."
        )
    result = {}
    for position, parameter in enumerate(group["params"]):
        name = None if names is None else names[position]
        mask = masks.get(parameter, masks.get(name))
        if mask is None:
            continue
        described = f"a parameter of shape {tuple(parameter.shape)}" if name is None else repr(name)
        if is_dtensor(parameter):
            raise WoodburyError(
                f"keep has a mask for {described}, which is a DTensor: leave it out, "
                "or train before the model is sharded."
            )
        check_mask(mask, parameter, described)
        result[parameter] = mask.reshape(-1).nonzero()[:, 0].to(parameter.device)
    return result
