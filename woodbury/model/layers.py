"""Linear and convolutional layers as products of their weight with patches of their input."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, unfold

from woodbury.limits import Limits
from woodbury.linalg.precision import at_least_float32

KNOWN_TYPES = (nn.Linear, nn.Conv2d)
"""And no subclass of them, which may compute something else."""

MatrixLayer = nn.Linear | nn.Conv2d


def is_known(module: nn.Module) -> TypeGuard[MatrixLayer]:
    """Whether a module only multiplies rows of its weight by patches of its input.

    Args:
        module: Any module.

    Returns:
        True for a Linear and an ungrouped Conv2d.
    """
    return type(module) in KNOWN_TYPES and getattr(module, "groups", 1) == 1


class ParameterOwner(NamedTuple):
    """A module that holds parameters itself, not through a submodule.

    Attributes:
        path: Its name in the model.
        module: The module.
        names: Its attribute, such as "weight" -> the parameter's name in the model. Where modules
            share a parameter, each has it, under the name of the first.
    """

    path: str
    module: nn.Module
    names: Mapping[str, str]


def memory_of(tensor: Tensor) -> tuple[Any, ...]:
    """What two tensors have in common that are one and the same memory, seen in the same way.

    Args:
        tensor: Any tensor.

    Returns:
        Equal for tied tensors, also where they are two objects.
    """
    if not tensor.numel() or tensor.is_meta or type(tensor) not in (Tensor, nn.Parameter):
        return (id(tensor),)
    return (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())


def parameter_owners(model: nn.Module, names: Container[str]) -> Iterator[ParameterOwner]:
    """The modules that hold some parameters.

    Args:
        model: The model.
        names: The parameters' names.

    Returns:
        Those modules in the model's order, each with its parameters that are named in `names`.
    """
    name_of = {
        memory_of(tensor): name for name, tensor in model.named_parameters() if name in names
    }
    for path, module in model.named_modules():
        local = {
            attribute: name_of[memory_of(tensor)]
            for attribute, tensor in module.named_parameters(recurse=False)
            if memory_of(tensor) in name_of
        }
        if local:
            yield ParameterOwner(path, module, local)


def known_layers(model: nn.Module, names: Container[str]) -> Iterator[tuple[str, MatrixLayer]]:
    """The layers that `is_known` whose weight is among some parameters.

    Args:
        model: The model.
        names: The parameters' names.

    Returns:
        The name of each layer's weight, and the layer.
    """
    for owner in parameter_owners(model, names):
        if is_known(owner.module) and "weight" in owner.names:
            yield owner.names["weight"], owner.module


def patches(
    layer: MatrixLayer, inputs: Tensor, positions: Tensor | None = None
) -> Iterator[Tensor]:
    """What the rows of a layer's weight are multiplied by.

    Args:
        layer: A layer that `is_known`.
        inputs: Its input, (b, …).
        positions: The indices of some output positions; None for all T of them.

    Returns:
        (c, T, i) for some samples at a time, float32 at least: i = channels·kh·kw entries under
        each position. `Limits.patches` bounds the elements of one.
    """
    if isinstance(layer, nn.Linear):
        flat = at_least_float32(inputs).reshape(len(inputs), -1, inputs.shape[-1])
        yield flat if positions is None else flat[:, positions]
        return
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    elements = inputs[0].numel() * layer.weight[0, 0].numel()  # of one sample, unfolded
    for chunk in inputs.split(max(1, Limits.current().patches // elements)):
        # The layer's own list of paddings knows 'same' and the modes that unfold does not.
        padded = pad(at_least_float32(chunk), layer._reversed_padding_repeated_twice, mode=mode)
        if positions is None:
            yield _unfolded(layer, padded).transpose(1, 2)
        else:
            yield _patches_at(layer, padded, positions)


def by_position(layer: MatrixLayer, output: Tensor) -> Tensor:
    """A layer's output, or a gradient by it, as (b, T, o): T positions of o channels.

    Args:
        layer: A layer that `is_known`.
        output: (b, …, o) of a Linear, (b, o, h, w) of a Conv2d.
    """
    if isinstance(layer, nn.Linear):
        return output.reshape(len(output), -1, output.shape[-1])
    return output.flatten(2).transpose(1, 2)


def _unfolded(layer: nn.Conv2d, padded: Tensor) -> Tensor:
    """All patches of padded inputs (b, c, …): (b, c·k, T), k entries of each channel."""
    return unfold(padded, layer.weight.shape[2:], layer.dilation, 0, layer.stride)


def _patches_at(layer: nn.Conv2d, padded: Tensor, positions: Tensor) -> Tensor:
    """The patches of padded inputs at some positions, (b, T, c·k)."""
    # Unfolding the pixels' own numbers says which pixels lie under each position: (k, T).
    pixels = torch.arange(padded[0, 0].numel(), dtype=torch.float64, device=padded.device)
    numbered = pixels.view(1, 1, *padded.shape[2:])
    under = _unfolded(layer, numbered)[0].long()[:, positions]
    gathered = padded.flatten(2)[:, :, under]  # (b, c, k, T)
    return gathered.permute(0, 3, 1, 2).flatten(2)
