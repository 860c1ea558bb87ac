"""The update of the parameters: learning rate, momentum and weight decay applied to one step."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from woodbury.optim.layout import ParameterSlice

SAFE_SHARE = 0.99
"""Of the largest number of a dtype: what a bound may be and its rounded value still be finite."""


def coupled_decay(
    moving: Sequence[ParameterSlice], param_groups: Sequence[Mapping[str, Any]], like: Tensor
) -> Tensor | None:
    """weight_decay·w of the groups whose weight decay passes through the Fisher.

    Args:
        moving: The parameters that this step moves.
        param_groups: torch's parameter groups.
        like: A tensor of the dtype and on the device of the result, (d,) or (k, d).

    Returns:
        (d,), 0 for all other weights; None if no group has such a decay.
    """
    decay = None
    for part in moving:
        group = param_groups[part.param_group]
        if not group["weight_decay"] or group["decoupled"]:
            continue
        if decay is None:
            decay = like.new_zeros(like.shape[-1])
        decay[part.span].copy_(part.gather(part.parameter)).mul_(group["weight_decay"])
    return decay


def stays_finite(
    moving: Sequence[ParameterSlice],
    param_groups: Sequence[Mapping[str, Any]],
    state: Mapping[Tensor, Any],
    step: Tensor,
) -> bool:
    """Whether no weight and no momentum can overflow in `update_parameters`, by the largest ones.

    Args:
        moving: The parameters that this step moves.
        param_groups: torch's parameter groups.
        state: torch's state.
        step: (d,), F⁻¹g.

    Returns:
        False also where the step, a weight or a momentum is not finite already.
    """
    tensors = []
    for part in moving:
        memory = state.get(part.parameter, {}).get("momentum_buffer")
        tensors += [step[part.span], part.local, memory]
    largest = torch.stack([_largest(tensor, step) for tensor in tensors]).view(-1, 3).tolist()
    for part, (update, weight, memory) in zip(moving, largest, strict=True):
        group = param_groups[part.param_group]
        lr = float(group["lr"])
        decay = float(group["weight_decay"]) if group["decoupled"] else 0.0
        update += float(group["momentum"]) * memory
        # Also what is computed on the way, and the factors themselves.
        sizes = (
            *(lr, lr * decay, update + decay * weight),
            abs(1 - lr * decay) * weight + lr * update,
        )
        bound = SAFE_SHARE * torch.finfo(part.parameter.dtype).max
        if not all(size <= bound for size in sizes):  # False for NaN
            return False
    return True


def _largest(tensor: Tensor | None, like: Tensor) -> Tensor:
    """The largest absolute value, 0 where there is none; float64 on the device of `like`."""
    if tensor is None or not tensor.numel():
        return like.new_zeros((), dtype=torch.float64)
    return torch.linalg.vector_norm(tensor.detach(), torch.inf).to(like.device, torch.float64)


def update_parameters(
    moving: Sequence[ParameterSlice],
    param_groups: Sequence[Mapping[str, Any]],
    state: MutableMapping[Tensor, Any],
    step: Tensor,
) -> None:
    """Apply a step: w ← w − lr·(momentum of the step), and w ← w − lr·weight_decay·w if decoupled.

    Args:
        moving: The parameters that this step moves.
        param_groups: torch's parameter groups.
        state: torch's state, parameter -> its momentum buffer, which is updated.
        step: (d,), F⁻¹g.
    """
    for number, group in enumerate(param_groups):
        parts = [part for part in moving if part.param_group == number]
        if not parts:
            continue
        lr = float(group["lr"])
        decay = group["weight_decay"] if group["decoupled"] else 0.0
        updates = []
        for part in parts:
            update = step[part.span].to(part.local.device)
            if part.indices is None:
                update = update.view(part.local.shape)
            if group["momentum"]:
                update = _with_momentum(state, part.parameter, update, group["momentum"])
            if part.indices is not None:
                # A masked parameter decays with its update, so that removed weights stay untouched.
                kept = part.gather(part.parameter)
                update = part.scatter(update.add(kept, alpha=decay))
            elif decay:
                part.local.mul_(1 - lr * decay)
            updates.append(update)
        weights = [part.local for part in parts]
        torch._foreach_add_(weights, updates, alpha=-lr)  # pyright: ignore[reportPrivateImportUsage]


def _with_momentum(
    state: MutableMapping[Tensor, Any], parameter: Tensor, update: Tensor, momentum: float
) -> Tensor:
    """The momentum buffer of a parameter with this update in it; the first update begins it."""
    memory = state[parameter]
    if "momentum_buffer" not in memory:
        # In the parameter's dtype, as torch's SGD keeps it. A copy: `update` is a view of the step.
        memory["momentum_buffer"] = update.to(parameter.dtype, copy=True)
    else:
        memory["momentum_buffer"].mul_(momentum).add_(update)
    return memory["momentum_buffer"]
