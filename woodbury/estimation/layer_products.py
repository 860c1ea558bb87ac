"""Whether a layer's weight takes part in the loss by the layer's own products alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.model.batches import slice_samples
from woodbury.model.hooks import ForwardHook, forward_hooks
from woodbury.model.objective import Objective

SAMPLES = 4
"""Samples that the two gradients are compared on."""

Loss = Callable[[dict[str, Tensor], Any, Any], Tensor]
"""(parameters, inputs, target) -> the mean loss of the samples."""


def used_elsewhere(
    objective: Objective,
    layers: Iterable[tuple[str, nn.Module]],
    loss_of: Loss,
    inputs: Any,
    target: Any,
) -> set[str]:
    """The weights that are used in other ways than their layers' products with their inputs.

    The gradient of a weight is compared with the sum over the uses of its layers, such as Σ g aᵀ
    (eq. 27). They differ where a model takes a weight by itself, differentiates within its forward
    pass, or changes a layer's output by a hook of its own. One weight's gradient is held at a time.

    Args:
        objective: The model and the weights.
        layers: Names of weights, and layers that have them as `weight` and are linear in it.
        loss_of: The loss.
        inputs: A batch's inputs, of which a few samples are taken.
        target: Its labels.

    Returns:
        The names of those weights.

    Example:
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([0])
        >>> objective = Objective.from_model(layer, [(x, y)])
        >>> used_elsewhere(objective, [("weight", layer)], objective.batch_loss, x, y)
        set()
    """
    layers = list(layers)
    if not layers:
        return set()
    parameters = {name: tensor.detach() for name, tensor in objective.parameters.items()}
    weights = {name: parameters[name].requires_grad_() for name, _ in layers}
    watch = _Watch(torch.zeros((), requires_grad=True, device=objective.weights.device))
    for name, weight in weights.items():
        weight.register_post_accumulate_grad_hook(partial(watch.compare, name))
    few = slice_samples((inputs, target), 0, SAMPLES)
    with torch.enable_grad():
        with forward_hooks((layer, watch.hook_of(name)) for name, layer in layers):
            loss = loss_of(parameters, *few)
        if not loss.requires_grad:  # nothing depends on these layers
            return set()
        watch.is_backward = True
        # Into these alone: the model's other parameters keep the `.grad` that they have.
        torch.autograd.backward(loss, inputs=[watch.root, *weights.values()])
    return watch.elsewhere


@dataclass
class _Watch:
    """The sums of the layers' products during one backward pass, and what differs from them.

    Attributes:
        root: A zero that is added to the layers' outputs, so that these have gradients.
        products: Name of a weight -> the sum so far; removed once it is compared.
        elsewhere: The names of weights whose gradient is another.
        rounding: Name -> the relative rounding error of the layer's outputs.
        is_backward: Whether the model's own differentiation, in its forward pass, is over.
    """

    root: Tensor
    products: dict[str, Tensor] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)
    rounding: dict[str, float] = field(default_factory=dict)
    is_backward: bool = False

    def hook_of(self, name: str) -> ForwardHook:
        def note(layer: Any, positional: Any, keywords: Any, output: Tensor) -> Tensor:
            given = [_detached(each) for each in positional]
            named = {key: _detached(each) for key, each in keywords.items()}
            if output.is_floating_point():  # a half under autocast
                eps = torch.finfo(output.dtype).eps
                self.rounding[name] = max(eps, self.rounding.get(name, 0.0))
            output = output + self.root  # a sum of its own, as it may be overwritten in place
            output.register_hook(partial(self._add, name, layer, given, named))
            return output

        return note

    def compare(self, name: str, weight: Tensor) -> None:
        """Called when the gradient of a weight is complete, which is freed then."""
        gradient, weight.grad = weight.grad, None
        products = self.products.pop(name, None)
        if gradient is not None and not _agree(gradient, products, self.rounding.get(name, 0.0)):
            self.elsewhere.add(name)

    def _add(
        self, name: str, layer: nn.Module, given: list[Any], named: dict[str, Any], slope: Tensor
    ) -> None:
        if self.is_backward:
            product = _product(layer, given, named, slope.detach())
            before = self.products.get(name)
            self.products[name] = product if before is None else before.add_(product)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _product(layer: nn.Module, given: list[Any], named: dict[str, Any], slope: Tensor) -> Tensor:
    """The gradient of a layer's weight by one use of the layer alone, such as Σ g aᵀ."""
    alone = copy.copy(layer)  # which no hook sees
    weight = torch.zeros_like(layer.get_parameter("weight"), requires_grad=True)
    # The backward pass is outside of the model's autocast: its halves are the weight's dtype here.
    given = [_as_dtype(each, weight.dtype) for each in given]
    named = {key: _as_dtype(each, weight.dtype) for key, each in named.items()}
    alone._parameters = {**layer._parameters, "weight": nn.Parameter(weight)}
    with torch.enable_grad():
        output = alone.forward(*given, **named)
        # With a slope of its own, `grad` imports torch.fx first, which takes a second.
        along = (output * slope.to(output.dtype)).sum()
        return torch.autograd.grad(along, alone.get_parameter("weight"))[0]


def _as_dtype(value: Any, dtype: torch.dtype) -> Any:
    """A tensor of real numbers in another dtype; all else as it is."""
    is_real = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if is_real else value


def _agree(gradient: Tensor, products: Tensor | None, rounding: float) -> bool:
    """Whether they are equal up to rounding; the factors themselves name what is not finite."""
    gradient = gradient.to_dense()  # an embedding's may be sparse
    distance = gradient if products is None else gradient - products.to_dense()
    eps = max(torch.finfo(gradient.dtype).eps, rounding)
    allowed = eps**0.5 * gradient.abs().max()
    return not bool((distance.abs() > allowed + 1e-12).any())
