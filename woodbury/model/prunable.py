"""check_prunable: whether what is pruned can be written, before any work."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from woodbury.errors import WoodburyError
from woodbury.model.memory_of_weights import check_writable
from woodbury.model.wrappers import bare

PRUNED_BY_TORCH = "_orig"
"""What torch.nn.utils.prune puts behind the name of a parameter that it masks."""


def check_prunable(model: nn.Module, names: Iterable[str]) -> None:
    """Raise unless zeros can be written into the named parameters, and act as zeros there.

    Args:
        model: The model.
        names: Of its parameters that are to be pruned.

    Raises:
        WoodburyError: For a parameter of a parametrization, under a mask of torch.nn.utils.prune,
            expanded, or in memory that may only be read; and within inference mode.

    Example:
        >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
        >>> check_prunable(layer, ["parametrizations.weight.original1"])
        Traceback (most recent call last):
        woodbury.errors.WoodburyError: 'parametrizations.weight.original1' is a part from which ...
    """
    if torch.is_inference_mode_enabled():
        raise WoodburyError(
            "Pruning needs gradients, which inference mode forbids: call it outside, or under "
            "torch.no_grad()."
        )
    model = bare(model)
    names = list(names)
    for name in names:
        _check_parameter(model, name)
    check_writable({name: model.get_parameter(name) for name in names})


def _check_parameter(model: nn.Module, name: str) -> None:
    parameter = model.get_parameter(name)
    path, _, own_name = name.rpartition(".")
    owner, _, _ = path.rpartition(".parametrizations")
    if ".parametrizations." in f".{name}" and is_parametrized(model.get_submodule(owner)):
        tensor = path.rpartition(".")[2]
        raise WoodburyError(
            f"{name!r} is a part from which {tensor!r} is computed, where zeros of it are none: "
            "prune the tensor itself, after "
            f"torch.nn.utils.parametrize.remove_parametrizations(module, {tensor!r}), "
            f"or leave it out with exclude={name!r}."
        )
    masked = own_name.removesuffix(PRUNED_BY_TORCH)
    if masked != own_name and f"{masked}_mask" in model.get_submodule(path)._buffers:
        raise WoodburyError(
            f"{name!r} has a mask of torch.nn.utils.prune beside it: make its zeros weights with "
            "woodbury.apply_masks(model), and keep them with keep_zeros=True."
        )
    hooks = model.get_submodule(path)._forward_pre_hooks.values()
    for hook in hooks:
        if isinstance(hook, (SpectralNorm, WeightNorm)) and own_name.startswith(f"{hook.name}_"):
            kind = "spectral" if isinstance(hook, SpectralNorm) else "weight"
            raise WoodburyError(
                f"{name!r} is a part from which {hook.name!r} is computed: prune that tensor "
                f"itself, after torch.nn.utils.remove_{kind}_norm(module), or leave it out with "
                f"exclude={name!r}."
            )
    steps = zip(parameter.shape, parameter.stride(), strict=True)
    if any(size > 1 and step == 0 for size, step in steps):
        raise WoodburyError(
            f"{name!r} is expanded, so that several weights share one place: give it memory of its "
            "own with parameter.data = parameter.data.clone()."
        )
