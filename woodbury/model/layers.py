"""Linear and convolutional layers as sums of products over positions: the only file that knows layer types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, unfold

from woodbury.limits import Limits
from woodbury.linalg.precision import at_least_float32

KINDS = (nn.Linear, nn.Conv2d)  # and no subclass of them, which may compute something else


MatrixLayer = nn.Linear | nn.Conv2d


def is_known(module: nn.Module) -> TypeGuard[MatrixLayer]:
    """Whether each output of the module, at each position, is the inner product of a row of its weight with a patch."""
    return type(module) in KINDS and getattr(module, "groups", 1) == 1


def patches(layer: MatrixLayer, given: Tensor, drawn: Tensor | None = None) -> Iterator[Tensor]:
    """What the rows of the weight are multiplied by, (b, T, i) for some of the samples at a time, at the T positions drawn or
    at all."""
    if isinstance(layer, nn.Linear):
        flat = at_least_float32(given).reshape(len(given), -1, given.shape[-1])
        yield flat if drawn is None else flat[:, drawn]
        return
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    for one in given.split(max(1, Limits.current().patches // (given[0].numel() * layer.weight[0, 0].numel()))):
        # The layer's own list of paddings knows 'same' and the modes that unfold does not.
        padded = pad(at_least_float32(one), layer._reversed_padding_repeated_twice, mode=mode)
        yield (
            _unfolded(layer, padded).transpose(1, 2) if drawn is None else _at(layer, padded, drawn)
        )


def _unfolded(layer: nn.Conv2d, padded: Tensor) -> Tensor:
    """All patches of padded inputs (b, c, …): (b, c·k, T), k entries of each channel."""
    return unfold(padded, layer.weight.shape[2:], layer.dilation, 0, layer.stride)


def _at(layer: nn.Conv2d, padded: Tensor, drawn: Tensor) -> Tensor:
    """The drawn patches of padded inputs, (b, T, c·k), by where the entries of each lie."""
    pixels = padded[0, 0].numel()
    places = torch.arange(pixels, dtype=torch.float64, device=padded.device).view(
        1, 1, *padded.shape[2:]
    )
    where = _unfolded(layer, places)[0].long()[:, drawn]
    return padded.flatten(2)[:, :, where].permute(0, 3, 1, 2).flatten(2)


def positions(layer: MatrixLayer, output: Tensor) -> Tensor:
    """A layer's output, or its gradient, as (b, T, o)."""
    if isinstance(layer, nn.Linear):
        return output.reshape(len(output), -1, output.shape[-1])
    return output.flatten(2).transpose(1, 2)
