"""Models whose parameters are sharded over ranks, as by FSDP2: a whole copy, and the way back."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.errors import user_code
from woodbury.model.parameters import is_dtensor, local

DISTRIBUTED = "torch.distributed"
"""The package that puts hooks and types around the modules that it shards."""

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
"""Where a module has its hooks."""


def is_sharded(model: nn.Module) -> bool:
    """Whether a rank holds only parts of a model's parameters.

    Args:
        model: The bare model.

    Example:
        >>> is_sharded(nn.Linear(2, 1))
        False
    """
    by_fsdp = any(_is_of_fsdp(module) for module in model.modules())
    return by_fsdp or any(is_dtensor(parameter) for parameter in model.parameters())


def reshard(model: nn.Module) -> None:
    """Let FSDP2 put its parts back where a forward pass has left whole tensors.

    Args:
        model: The bare model.
    """
    for module in model.modules():
        if _is_of_fsdp(module):
            module.reshard()  # type: ignore[operator]


@torch.no_grad()
def whole_copy(model: nn.Module) -> nn.Module:
    """A copy of a sharded model with whole parameters, which calls no other rank.

    Every rank of the model's mesh calls it, and holds all d weights then. Hooks and types that
    torch put around the modules are left out; hooks of others are kept.

    Args:
        model: The bare model.

    Returns:
        The copy; a model that is not sharded comes back as it is.

    Raises:
        WoodburyError: If something in the model cannot be copied.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> whole_copy(layer) is layer
        True
    """
    if not is_sharded(model):
        return model
    reshard(model)
    memo: dict[int, Any] = {}
    for module in model.modules():
        kind: Any = _type_without_fsdp(type(module))
        memo[id(module)] = kind.__new__(kind)
        for parameter in module._parameters.values():
            if parameter is not None and is_dtensor(parameter) and id(parameter) not in memo:
                whole = _full(parameter)
                memo[id(parameter)] = nn.Parameter(whole, parameter.requires_grad)
        for buffer in module._buffers.values():
            if buffer is not None and is_dtensor(buffer):
                memo[id(buffer)] = _full(buffer)
    with user_code("The sharded model cannot be copied, as its whole weights need."):
        for module in model.modules():
            vars(memo[id(module)]).update(copy.deepcopy(_own_state(module), memo))
    return memo[id(model)]


def own_shard(tensor: Tensor, parameter: Tensor) -> Tensor:
    """This rank's part of a whole tensor; nothing is sent.

    Args:
        tensor: Of a parameter's shape, the same on all ranks.
        parameter: The parameter; a DTensor says how the tensor is cut.

    Returns:
        What lies where `local(parameter)` does; of a plain parameter the tensor itself.
    """
    if not is_dtensor(parameter):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate  # takes seconds, but is there already

    sharded: Any = parameter
    everywhere = [Replicate()] * sharded.device_mesh.ndim
    there = tensor.to(local(parameter).device)
    whole = DTensor.from_local(there, sharded.device_mesh, everywhere, run_check=False)
    return whole.redistribute(placements=sharded.placements).to_local()


@torch.no_grad()
def write_into(model: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Copy whole tensors into a model's parameters; of a sharded one, into this rank's parts.

    Args:
        model: The bare model.
        tensors: Names and tensors, the same on all ranks.
    """
    reshard(model)
    parameters = dict(model.named_parameters())
    for name, tensor in tensors:
        local(parameters[name]).copy_(own_shard(tensor, parameters[name]))


def _full(tensor: Any) -> Tensor:
    """All of a DTensor, in memory of its own."""
    return tensor.full_tensor().detach().clone()


def _is_of_fsdp(module: nn.Module) -> bool:
    return _type_without_fsdp(type(module)) is not type(module)


def _type_without_fsdp(kind: type) -> type:
    """The type that `fully_shard` has put its own in front of.

    It is found by its name, as to import it takes seconds, and releases of torch have it at
    different places.
    """
    for index, base in enumerate(kind.__mro__):
        if base.__name__ == "FSDPModule" and base.__module__.startswith(DISTRIBUTED):
            return kind.__mro__[index + 1]
    return kind


def _own_state(module: nn.Module) -> dict[str, Any]:
    """What a module has without what torch put there to shard it."""
    state = {name: value for name, value in vars(module).items() if not _is_mark(name)}
    for name in HOOKS:
        if name in state:
            hooks = state[name].items()
            state[name] = OrderedDict((key, hook) for key, hook in hooks if not _is_torchs(hook))
    return state


def _is_mark(name: str) -> bool:
    return name.startswith(("_is_fsdp", "_fsdp", "__composable_api"))


def _is_torchs(hook: Callable[..., Any]) -> bool:
    """Whether a hook is one of those by which torch shards a module."""
    function = getattr(hook, "hook", hook)  # in a wrapper of state_dict's
    return str(getattr(function, "__module__", "")).startswith(DISTRIBUTED)
