"""K-FAC's statistics of each layer, by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.estimation.gradients import Labels, sampled
from woodbury.limits import Limits
from woodbury.linalg.precision import at_least_float32
from woodbury.model.batches import regrouped, samples_in
from woodbury.model.layers import KINDS, MatrixLayer, is_known, patches, positions
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.monitor import report

Users = list[tuple[MatrixLayer, str | None, str | None]]
"""The layers of a space, each with the names of its weight and its bias (None: not in the space)."""


@dataclass(frozen=True)
class _Seen:
    """What one pass showed of one parameter, which more than one layer may use, or one layer more than once.

    products, places: per use of a weight, the sum of a aᵀ and the positions of one sample. probes: per use, the layer and
    the zeros that were added to its output, whose gradient is g.
    """

    products: list[Tensor] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    probes: list[tuple[MatrixLayer, Tensor]] = field(default_factory=list)


def factors(
    objective: Objective,
    count: int,
    *,
    labels: Labels = sampled,
    generator: torch.Generator | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Parameter name -> (left (o, o), right (i, i)), whose Kronecker product is K-FAC's Fisher of that tensor  (eq. 27).

    With a_nt the input and g_nt the gradient of sample n's loss by the output at position t of T (T = 1 in a plain
    Linear), the gradient of a weight is Σ_t g_nt a_ntᵀ, and for `count` samples
        left = 1/count Σ_n Σ_t g_nt g_ntᵀ,   right = 1/count Σ_n 1/T Σ_t a_nt a_ntᵀ,
    a_nt being the patch (i = channels·kh·kw) under position t in a convolution (Grosse & Martens 2016, with the mean in
    the other factor; the product is theirs). It is the Fisher exactly if g and a are independent and the g of different
    positions uncorrelated. A bias has the exact left = 1/count Σ_n (Σ_t g_nt)(Σ_t g_nt)ᵀ and right = (1).

    Raises WoodburyError, naming the parameter, for one that is not in an nn.Linear or an ungrouped nn.Conv2d, or when
    the data gives fewer than `count` samples.
    """
    if count < 1:
        raise WoodburyError(f"{count} samples were asked for: at least 1 is needed.")
    users = _users(objective)
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    done = 0
    with eval_mode(objective.model):
        for inputs, target in regrouped(objective.batches, Limits.current().kfac_samples, count):
            target = labels(objective, inputs, target, generator)
            for name, pair in _pass(objective, users, inputs, target):
                before = sums.get(name, (0.0, 0.0))
                sums[name] = before[0] + pair[0].double(), before[1] + pair[1].double()
            done += samples_in(inputs)
            report("factors", done, count)
    if done < count:
        raise WoodburyError(
            f"The data gave {done} of the {count} samples: give more data or ask for less."
        )
    return {
        name: _finished(name, sums, count, objective.weights) for name in objective.space.shapes
    }


def _finished(
    name: str, sums: Mapping[str, tuple[Tensor, Tensor]], count: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    if name not in sums:
        raise WoodburyError(
            f"The layer of parameter {name!r} was never called by the model: {_remedy(name)}"
        )
    for factor, what in zip(sums[name], ("output gradients", "inputs"), strict=True):
        if not torch.isfinite(factor).all():
            raise WoodburyError(
                f"The {what} of parameter {name!r} are not finite: look at the data and at the loss."
            )
    dtype = torch.promote_types(like.dtype, torch.float32)
    left, right = ((factor / count).to(dtype) for factor in sums[name])
    return left, right


def factored(model: nn.Module) -> ParameterSpace:
    """The space of the weights that have factors and require a gradient. Raises WoodburyError where there is none."""
    moving = {
        id(parameter): name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    known = [module.weight for module in model.modules() if is_known(module)]
    names = sorted({moving[id(weight)] for weight in known if id(weight) in moving})
    if not names:
        raise WoodburyError(
            "K-FAC needs an nn.Linear or an ungrouped nn.Conv2d to train: take another structure."
        )
    return ParameterSpace.from_model(model, include=names)


def _users(objective: Objective) -> Users:
    """The layers of the space, each with the names of its weight and its bias there (None: not in the space)."""
    names = {
        id(parameter): name
        for name, parameter in objective.model.named_parameters()
        if name in objective.space.shapes
    }
    users = []
    for module in objective.model.modules():
        held = [names[id(p)] for p in module.parameters(recurse=False) if id(p) in names]
        if not held:
            continue
        if type(module) not in KINDS:
            raise WoodburyError(
                f"K-FAC does not know {type(module).__name__}, which holds {held[0]!r}: {_remedy(held[0])}"
            )
        if not is_known(module):
            raise WoodburyError(
                f"K-FAC has no factors of the grouped convolution of {held[0]!r}: {_remedy(held[0])}"
            )
        users.append((module, names.get(id(module.weight)), names.get(id(module.bias))))
    return users


def _remedy(name: str) -> str:
    return f"leave it out with exclude={name!r}, or take another structure."


def _pass(
    objective: Objective, users: Users, inputs: Any, target: Any
) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """The sums over one batch's samples of both factors of each parameter."""
    size = samples_in(inputs)
    seen = {name: _Seen() for _, *both in users for name in both if name is not None}
    parameters = {name: tensor.detach() for name, tensor in objective.parameters.items()}
    with torch.enable_grad(), _watching(users, seen, size):
        # The loss is a mean over the samples; its gradient by one sample's output is 1/size of what that sample has.
        loss = size * objective.batch_loss(parameters, inputs, target)
    probes = list({id(probe): probe for one in seen.values() for _, probe in one.probes}.values())
    if not probes:
        return
    if not loss.requires_grad:
        raise WoodburyError(
            "The loss does not depend on the chosen layers: does the model or the loss detach them?"
        )
    found = torch.autograd.grad(loss, probes, materialize_grads=True)
    by_probe = {id(probe): gradient for probe, gradient in zip(probes, found, strict=True)}
    for name, one in seen.items():
        if not one.probes:
            continue
        gradients = torch.cat(
            [
                at_least_float32(positions(layer, by_probe[id(probe)]))
                for layer, probe in one.probes
            ],
            dim=1,
        )  # (b, T, o)
        if one.products:
            flat = gradients.flatten(0, 1)
            yield name, (flat.T @ flat, torch.stack(one.products).sum(0) / sum(one.places))
        else:
            summed = gradients.sum(1)
            yield name, (summed.T @ summed, summed.new_full((1, 1), size))


@contextmanager
def _watching(users: Users, seen: Mapping[str, _Seen], size: int) -> Iterator[None]:
    """Each layer's inputs and outputs noted in `seen`; the hooks are gone afterwards, whatever happens."""

    def hook(weight: str | None, bias: str | None) -> Callable[..., Tensor]:
        def note(
            layer: MatrixLayer,
            positional: tuple[Any, ...],
            keywords: dict[str, Any],
            output: Tensor,
        ) -> Tensor:
            given = positional[0] if positional else keywords["input"]
            _check_batch(layer, given, size, weight or bias)
            # A zero of its own carries the gradient: the output itself may be overwritten by an in-place activation.
            probe = torch.zeros_like(output, requires_grad=True)
            for name in (weight, bias):
                if name is not None:
                    seen[name].probes.append((layer, probe))
            if weight is not None:
                product, places = _products(layer, given.detach())
                seen[weight].products.append(product)
                seen[weight].places.append(places)
            return output + probe

        return note

    handles = []
    try:
        for layer, weight, bias in users:
            handles.append(layer.register_forward_hook(hook(weight, bias), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_batch(layer: MatrixLayer, given: Tensor, size: int, name: str | None) -> None:
    if given.ndim < 2 or len(given) != size or (isinstance(layer, nn.Conv2d) and given.ndim != 4):
        raise WoodburyError(
            f"The layer of {name!r} got an input of shape {tuple(given.shape)} in a batch of {size}: K-FAC needs the samples "
            f"along dimension 0; {_remedy(str(name))}"
        )


def _products(layer: MatrixLayer, given: Tensor) -> tuple[Tensor, int]:
    """Σ a aᵀ over samples and positions, and the number of positions of one sample."""
    products, places = [], 0
    for part in patches(layer, given):  # (b, T, i)
        flat, places = part.flatten(0, 1), part.shape[1]
        products.append(flat.T @ flat)
    return torch.stack(products).sum(0), places
