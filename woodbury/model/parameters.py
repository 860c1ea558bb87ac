"""Parameters that are masked or sharded, and optimizers that are wrapped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError, WrongType
from woodbury.linalg.precision import dtype_name
from woodbury.model.space import ParameterSpace
from woodbury.model.wrappers import bare

Keep = ParameterSpace | Mapping[Any, Tensor]
"""Which weights are kept: a space, such as `pruned.objective.space`, or bool masks, True = kept.

A mask has the shape of its parameter. Its key is the parameter's name, or, where an optimizer is
given parameters without names, the parameter itself. A parameter without a mask is kept whole.
"""

INSIDE = ("optimizer", "base_optimizer", "base")
"""What wrappers call the optimizer that they are around."""


def masks_of(keep: Keep | None) -> Mapping[Any, Tensor]:
    """The masks that a `Keep` stands for.

    Args:
        keep: A space, masks, or None for no mask at all.

    Returns:
        Parameter or name -> bool mask of the parameter's shape, True = kept.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> import woodbury
        >>> space = woodbury.ParameterSpace.from_model(nn.Linear(2, 1))
        >>> masks_of(space.restrict(torch.tensor([True, False, True])))["weight"]
        tensor([[ True, False]])
    """
    if not isinstance(keep, ParameterSpace):
        return keep or {}
    return {name: keep.keep[part].view(keep.shapes[name]) for name, part in keep.slices.items()}


def check_mask(mask: Tensor, parameter: Tensor, name: str) -> None:
    """Raise unless a mask fits its parameter.

    Args:
        mask: What was given for the parameter.
        parameter: A parameter, no DTensor.
        name: What to call the parameter in the sentence.

    Raises:
        WoodburyError: If the mask is not bool, or of another shape than the parameter.
    """
    if not isinstance(mask, Tensor):
        raise WrongType(f"keep for {name} is a {type(mask).__name__}: give a bool mask.")
    if mask.dtype != torch.bool or mask.shape != parameter.shape:
        raise WoodburyError(
            f"keep for {name} is {dtype_name(mask.dtype)} of shape {tuple(mask.shape)}: "
            f"give a bool mask of shape {tuple(parameter.shape)}, True = kept."
        )


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor.

    Args:
        tensor: Any tensor; under FSDP2 a DTensor, which is spread over the ranks.

    Returns:
        This rank's shard of a DTensor; any other tensor as it is.
    """
    # Asked by the method: to import DTensor takes two seconds, and most users have none.
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, of which this rank holds a part.

    Args:
        tensor: Any tensor.

    Returns:
        True for a DTensor, also where this rank's part is the whole.
    """
    return local(tensor) is not tensor


def unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside the wrappers of accelerate, Lightning and others.

    Args:
        optimizer: A torch optimizer, or a wrapper that has one under one of the names of `INSIDE`
            and whose `step` calls the step of that.

    Returns:
        The innermost optimizer, whose hooks run with every step.

    Raises:
        WrongType: If there is no torch optimizer inside.
        WoodburyError: If a wrapper may move weights after the step of the optimizer inside, and
            calls no hooks then.
    """
    inner = _inner(optimizer)
    if inner is not None:
        if not (_only_passes_on(optimizer) or _calls_hooks(optimizer)):
            kind = type(optimizer).__name__
            raise WoodburyError(
                f"A {kind} around an optimizer may move weights where no hook is called, so that "
                f"zeros would not stay: let {kind}.__init__ call torch.optim.Optimizer.__init__, "
                "or train with the optimizer inside."
            )
        return unwrapped(inner)
    check_optimizer(optimizer)
    return optimizer


def check_optimizer(optimizer: Any) -> None:
    """Raise unless something is a torch optimizer, or a wrapper of one.

    Args:
        optimizer: What was given as one.

    Raises:
        WrongType: If it is something else.
    """
    inner = _inner(optimizer)
    if inner is not None:
        check_optimizer(inner)
    elif not isinstance(optimizer, torch.optim.Optimizer):
        raise WrongType(
            f"The optimizer is a {type(optimizer).__name__}: give a torch.optim.Optimizer."
        )


def wrappers_without_hooks(optimizer: Any) -> list[Any]:
    """The wrappers around an optimizer that may move weights after its step, and call no hooks.

    Args:
        optimizer: What `unwrapped` takes.

    Returns:
        Those that are no torch optimizers, from the outermost; not those of accelerate and
        Lightning, which only pass on.
    """
    found = []
    while (inner := _inner(optimizer)) is not None:
        if not (_is_of_trainer(optimizer) or isinstance(optimizer, torch.optim.Optimizer)):
            found.append(optimizer)
        optimizer = inner
    return found


def _inner(optimizer: Any) -> Any:
    """What a wrapper of an optimizer has inside; None where nothing is."""
    found = (getattr(optimizer, name, None) for name in INSIDE)
    return next((inner for inner in found if inner is not None), None)


def _only_passes_on(wrapper: Any) -> bool:
    """Whether a wrapper seems to have no state beside that of the optimizer inside."""
    if _is_of_trainer(wrapper):
        return True
    return not isinstance(wrapper, torch.optim.Optimizer) and not hasattr(wrapper, "state")


def _is_of_trainer(wrapper: Any) -> bool:
    """Whether a wrapper does no more in its step than call that of the optimizer inside."""
    package = type(wrapper).__module__.partition(".")[0]
    return package in ("accelerate", "lightning", "pytorch_lightning")


def _calls_hooks(optimizer: Any) -> bool:
    """Whether torch has put its hooks around the steps of an optimizer."""
    patched = getattr(type(optimizer).step, "hooked", False)
    return bool(patched) and hasattr(optimizer, "_optimizer_step_post_hooks")


def optimized_parameters(
    optimizer: torch.optim.Optimizer, model: nn.Module, *, trainable: bool = False
) -> dict[str, nn.Parameter]:
    """The parameters of a model that an optimizer has.

    Args:
        optimizer: The optimizer, unwrapped.
        model: The model; another optimizer may have the rest of its parameters.
        trainable: Whether to leave out what requires no gradient.

    Returns:
        Name -> parameter, in the order of the model.

    Raises:
        WoodburyError: If there is none.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> list(optimized_parameters(torch.optim.SGD(model[1].parameters()), model))
        ['1.weight', '1.bias']
    """
    owned = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    result = {
        name: parameter
        for name, parameter in bare(model).named_parameters()
        if parameter in owned and (parameter.requires_grad or not trainable)
    }
    if not result:
        raise WoodburyError(
            "The optimizer moves none of the model's parameters: make it from this model's."
        )
    return result
