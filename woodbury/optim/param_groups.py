"""Parameter groups: what they may hold, and which of their weights move."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from woodbury.argument_types import is_of
from woodbury.errors import WoodburyError, WrongType, check_whole_number
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
    check_options(group)


def check_options(group: Mapping[str, Any]) -> None:
    """Raise unless the options of a parameter group are in range.

    Args:
        group: One of torch's parameter groups, with all defaults filled in.

    Raises:
        WoodburyError: If an option is out of range.
        WrongType: If an option is no number.
    """
    for name in ("lr", "weight_decay", "momentum"):
        if name not in group or not is_of(group[name], float):
            raise WrongType(f"{name} is {str(group.get(name))[:60]}: give a number.")
    for name in ("lr", "weight_decay"):
        value = float(group[name])
        if not (math.isfinite(value) and value >= 0):
            raise WoodburyError(f"{name} is {value}: it must be at least 0 and finite.")
    if not 0 <= group["momentum"] < 1:
        raise WoodburyError(f"momentum is {group['momentum']}: it must lie in [0, 1).")
    check_damping(group["damping"])


def check_saved_groups(saved: Any, param_groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise unless a saved state of MFAC can be taken, as far as torch's part of it goes.

    Args:
        saved: What `MFAC.state_dict` gave.
        param_groups: Those of the optimizer.

    Raises:
        WoodburyError: If a part is missing, or its values are not those of an optimizer.
        WrongType: If it is no dict.
    """
    if not isinstance(saved, Mapping):
        raise WrongType(f"The state is a {type(saved).__name__}: give what state_dict() gave.")
    if not isinstance(saved.get("windows"), Mapping):
        raise WoodburyError(
            "This state holds no windows: it was saved by another optimizer than MFAC."
        )
    state, groups = saved.get("state"), saved.get("param_groups")
    if not isinstance(state, Mapping) or not isinstance(groups, list):
        raise WoodburyError("This state lacks torch's part, state and param_groups: it is damaged.")
    windows = saved["windows"]
    missing = {"capacity", "shapes", "masks", "skipped", "spans"} - set(windows)
    if missing:
        raise WoodburyError(f"The windows of this state lack {', '.join(sorted(missing))}.")
    if windows["capacity"] is not None:
        check_whole_number(windows["capacity"], "The saved capacity", "the gradients remembered")
    check_whole_number(windows["skipped"], "The saved skipped", "the steps skipped", least=0)
    parameters = [p for group in param_groups for p in group["params"]]
    counts = [len(group["params"]) for group in param_groups]
    if [len(group.get("params", ())) if isinstance(group, Mapping) else -1 for group in groups] != (
        counts
    ):
        raise WoodburyError(
            "The saved parameter groups have other numbers of parameters: of another model."
        )
    for group in groups:
        check_options(group)
    places = dict(zip(_places(groups), parameters, strict=True))
    for place, entries in state.items():
        _check_entries(entries, places.get(place))


def _places(groups: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The numbers by which a saved state names its parameters."""
    return [place for group in groups for place in group["params"]]


def _check_entries(entries: Any, parameter: Tensor | None) -> None:
    """Raise unless the saved state of one parameter is finite tensors of its shape."""
    if parameter is None or not isinstance(entries, Mapping):
        raise WoodburyError("The saved state is of a parameter that this optimizer has not.")
    for name, entry in entries.items():
        if not isinstance(entry, Tensor) or not bool(entry.isfinite().all()):
            raise WoodburyError(f"The saved {name!r} of a parameter is no finite tensor.")
        if entry.ndim and entry.shape != parameter.shape:
            raise WoodburyError(
                f"The saved {name!r} has shape {tuple(entry.shape)}, the parameter "
                f"{tuple(parameter.shape)}: it belongs to another model."
            )


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
