"""Whether a layer's weight takes part in the loss by the layer's own products alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from woodbury.linalg.precision import at_least_float32
from woodbury.model.batches import slice_samples
from woodbury.model.hooks import ForwardHook, forward_hooks, layer_input
from woodbury.model.layers import MatrixLayer, by_position, patches
from woodbury.model.objective import Objective, check_dependence

SAMPLES = 4
"""Samples that the two gradients are compared on."""


class _Use(NamedTuple):
    layer: MatrixLayer
    given: Tensor
    probe: Tensor


def used_elsewhere(
    objective: Objective, layers: Iterable[tuple[str, MatrixLayer]], inputs: Any, target: Any
) -> set[str]:
    """The weights that are used in other ways than their layers' products with their inputs.

    The gradient of a weight is compared with Σ g aᵀ over the uses of its layers  (eq. 27). They
    differ where a model takes a weight by itself, differentiates within its forward pass, or
    changes a layer's output by a hook of its own.

    Args:
        objective: The loss and the weights.
        layers: Names of weights, and the layers that have them.
        inputs: A batch's inputs, of which a few samples are taken.
        target: Its labels.

    Returns:
        The names of those weights.

    Example:
        >>> from torch import nn
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([0])
        >>> objective = Objective.from_model(layer, [(x, y)])
        >>> used_elsewhere(objective, [("weight", layer)], x, y)
        set()
    """
    uses: dict[str, list[_Use]] = {}

    def hook_of(name: str) -> ForwardHook:
        def note(layer: Any, positional: Any, keywords: Any, output: Tensor) -> Tensor:
            given = layer_input(positional, keywords).detach()
            probe = torch.zeros_like(output, requires_grad=True)
            uses.setdefault(name, []).append(_Use(layer, given.clone(), probe))
            return output + probe

        return note

    parameters = {name: t.detach().requires_grad_() for name, t in objective.parameters.items()}
    few = slice_samples((inputs, target), 0, SAMPLES)
    with torch.enable_grad():
        with forward_hooks((layer, hook_of(name)) for name, layer in layers):
            loss = objective.batch_loss(parameters, *few)
        check_dependence(loss)
        if not uses:
            return set()
        probes = [use.probe for of_weight in uses.values() for use in of_weight]
        weights = [parameters[name] for name in uses]
        slopes = torch.autograd.grad(loss, [*weights, *probes], materialize_grads=True)
    by_weight, by_use = slopes[: len(weights)], iter(slopes[len(weights) :])
    return {
        name
        for (name, of_weight), slope in zip(uses.items(), by_weight, strict=True)
        if not _agree(slope, sum(_product(use, next(by_use)) for use in of_weight))
    }


def _product(use: _Use, slope: Tensor) -> Tensor:
    """Σ g aᵀ over samples and positions, (o, i)."""
    gradients = at_least_float32(by_position(use.layer, slope))
    start = 0
    total = gradients.new_zeros(gradients.shape[-1], use.layer.weight[0].numel())
    for chunk in patches(use.layer, use.given):  # (c, T, i)
        part = gradients[start : start + len(chunk)].flatten(0, 1)
        total += part.T @ chunk.flatten(0, 1).to(part.dtype)
        start += len(chunk)
    return total


def _agree(slope: Tensor, products: Any) -> bool:
    """Whether they are equal up to rounding; the factors themselves name what is not finite."""
    allowed = torch.finfo(slope.dtype).eps ** 0.5 * slope.abs().max()
    return not bool(((slope.flatten(1) - products).abs() > allowed + 1e-12).any())
