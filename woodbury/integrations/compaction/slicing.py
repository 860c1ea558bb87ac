"""The channels of single layers: the weights that read or make them, and layers without some."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from woodbury.model.channels import is_transposed_linear

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORM_OF_TIMM = ("timm.layers.norm_act", "BatchNormAct2d")
"""A BatchNorm2d with an activation in it; timm is not imported for it."""

MATRIX_LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
"""Layers that make channels and read others."""


def is_matrix_layer(layer: nn.Module) -> bool:
    """Whether a layer multiplies channels by weights, in a way that is known here.

    Args:
        layer: Any module. A subclass of a known layer may compute something else.
    """
    if is_transposed_linear(layer):
        return True
    if type(layer) not in MATRIX_LAYERS:
        return False
    return type(layer) not in TRANSPOSED or layer.groups == 1  # type: ignore[union-attr]


def has_features_last(layer: nn.Module) -> bool:
    """Whether the last dimension of a layer's inputs is their channels.

    Args:
        layer: A matrix layer.
    """
    return isinstance(layer, nn.Linear) or is_transposed_linear(layer)


def is_channelwise(layer: nn.Module) -> bool:
    """Whether a layer computes each channel from the same channel alone, in a way known here.

    Args:
        layer: Any module.
    """
    if type(layer) in CONVOLUTIONS:
        conv: Any = layer
        return 1 < conv.groups == conv.in_channels == conv.out_channels
    return type(layer) in (*NORMS, nn.PReLU) or _is_norm_of_timm(layer)


def _is_norm_of_timm(layer: nn.Module) -> bool:
    """Whether a layer is timm's BatchNorm, and its activation has no weights of its own."""
    is_norm = (type(layer).__module__, type(layer).__name__) == NORM_OF_TIMM
    return is_norm and all("." not in name for name, _ in layer.named_parameters())


def groups_of(layer: nn.Module) -> int:
    """Equal groups of a layer's channels of which each must keep as many as the others.

    Args:
        layer: A layer of either kind.
    """
    return 1 if is_channelwise(layer) else getattr(layer, "groups", 1)


def outputs_of(layer: Any) -> int:
    """How many channels a layer makes.

    Args:
        layer: A layer of either kind.
    """
    if is_transposed_linear(layer):
        return layer.nf
    if isinstance(layer, nn.Linear):
        return layer.out_features
    if isinstance(layer, _BatchNorm):
        return layer.num_features
    return layer.num_parameters if isinstance(layer, nn.PReLU) else layer.out_channels


def inputs_of(layer: Any) -> int:
    """How many channels a layer reads.

    Args:
        layer: A matrix layer.
    """
    if is_transposed_linear(layer):
        return layer.weight.shape[0]
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def zero_rows(layer: Any) -> Tensor:
    """Which outputs of a matrix layer have no weight but zeros: (outputs,) bool.

    Args:
        layer: A matrix layer.
    """
    by_output = layer.weight.detach().movedim(_output_dimension(layer), 0)
    return by_output.flatten(1).eq(0).all(1)


def columns_of(layer: Any) -> Tensor:
    """The weights of a matrix layer by input channel.

    Args:
        layer: A matrix layer.

    Returns:
        (inputs, o, k): the o outputs that read the channel, k positions of the kernel.
    """
    weight = layer.weight.detach()
    if is_transposed_linear(layer):
        return weight.unsqueeze(2)
    if isinstance(layer, nn.Linear):
        return weight.T.unsqueeze(2)
    if isinstance(layer, _ConvTransposeNd):
        return weight.flatten(2)
    by_group = weight.flatten(2).unflatten(0, (layer.groups, -1))  # (groups, o, inputs, k)
    return by_group.transpose(1, 2).flatten(0, 1)


def set_columns(layer: Any, columns: Tensor) -> None:
    """Give a matrix layer other weights, mostly for fewer inputs.

    Args:
        layer: A matrix layer.
        columns: (inputs, o, k), as `columns_of` gives them.
    """
    inputs = len(columns)
    if is_transposed_linear(layer):
        weight = columns.squeeze(2)
        layer.nx = inputs
    elif isinstance(layer, nn.Linear):
        weight = columns.squeeze(2).T
        layer.in_features = inputs
    elif isinstance(layer, _ConvTransposeNd):
        weight = columns.unflatten(2, layer.kernel_size)
        layer.in_channels = inputs
    else:
        by_group = columns.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
        weight = by_group.unflatten(2, layer.kernel_size)
        layer.in_channels = inputs
    layer.weight = _like(layer.weight, weight)


def keep_outputs(layer: Any, keep: Tensor) -> None:
    """Remove outputs of a layer.

    Args:
        layer: A matrix layer.
        keep: (outputs,) bool, as many True in each of its groups.
    """
    weight = layer.weight.detach().movedim(_output_dimension(layer), 0)[keep]
    layer.weight = _like(layer.weight, weight.movedim(0, _output_dimension(layer)))
    if layer.bias is not None:
        layer.bias = _like(layer.bias, layer.bias.detach()[keep])
    if is_transposed_linear(layer):
        layer.nf = int(keep.sum())
    elif isinstance(layer, nn.Linear):
        layer.out_features = int(keep.sum())
    else:
        layer.out_channels = int(keep.sum())


def keep_channels(layer: Any, keep: Tensor) -> None:
    """Remove channels of a layer that computes each from itself.

    Args:
        layer: A channelwise layer.
        keep: (channels,) bool.
    """
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        if tensor.ndim:  # the number of batches of a BatchNorm has none
            kept = tensor.detach()[keep]
            setattr(layer, name, _like(tensor, kept) if name in layer._parameters else kept)
    count = int(keep.sum())
    if isinstance(layer, _ConvNd):
        layer.in_channels = layer.out_channels = layer.groups = count
    elif isinstance(layer, _BatchNorm):
        layer.num_features = count
    else:
        layer.num_parameters = count


def add_to_bias(layer: Any, values: Tensor) -> None:
    """Add to the bias of a layer, which gets one where it has none.

    Args:
        layer: A matrix layer.
        values: (outputs,).
    """
    if not values.any():
        return
    bias = torch.zeros_like(values) if layer.bias is None else layer.bias.detach()
    layer.bias = _like(layer.weight if layer.bias is None else layer.bias, bias + values)


def folds_exactly(layer: Any) -> bool:
    """Whether an input channel that is constant adds the same at every position of the output.

    Args:
        layer: A matrix layer. A convolution that pads with zeros adds less at the borders.
    """
    if has_features_last(layer):
        return True
    if isinstance(layer, _ConvTransposeNd):
        return False
    return layer.padding_mode != "zeros" or not any(layer._reversed_padding_repeated_twice)


def _output_dimension(layer: nn.Module) -> int:
    return int(isinstance(layer, _ConvTransposeNd) or is_transposed_linear(layer))


def _like(parameter: Tensor, values: Tensor) -> nn.Parameter:
    """A parameter with other values, of the same type, and frozen where that is."""
    values = values.to(parameter.dtype).contiguous().clone()
    return nn.Parameter(values, requires_grad=parameter.requires_grad)
