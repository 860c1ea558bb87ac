"""K-FAC's two factors of each layer, collected by hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError, check_whole_number
from woodbury.estimation.labels import Labels, labelled, sampled
from woodbury.estimation.layer_products import used_elsewhere
from woodbury.limits import Limits
from woodbury.linalg.precision import at_least_float32, wide_dtype
from woodbury.linalg.ranks import Ranks
from woodbury.model.batches import check_enough_data, samples_in
from woodbury.model.hooks import ForwardHook, forward_hooks, layer_input
from woodbury.model.layers import (
    KNOWN_TYPES,
    MatrixLayer,
    by_position,
    is_known,
    known_layers,
    parameter_owners,
    patches,
)
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective, check_dependence
from woodbury.model.space import ParameterSpace
from woodbury.model.spread import drawn_at_once, per_run
from woodbury.model.wrappers import bare
from woodbury.monitor import report


class Factors(NamedTuple):
    """The Kronecker factors of one tensor's Fisher, left ⊗ right  (eq. 27).

    Attributes:
        left: (o, o), of the gradients by the layer's outputs.
        right: (i, i), of the layer's inputs; (1, 1) for a bias.
    """

    left: Tensor
    right: Tensor


def factors(
    objective: Objective,
    count: int,
    *,
    labels: Labels = sampled,
    generator: torch.Generator | None = None,
    skip_unknown: bool = False,
) -> dict[str, Factors]:
    """K-FAC's factors of every tensor of the space  (eq. 27).

    With a_nt the input and g_nt the gradient of sample n's loss by the output at position t of T
    (T = 1 in a plain Linear), the gradient of a weight is Σ_t g_nt a_ntᵀ, and over m samples
        left = 1/m Σ_n Σ_t g_nt g_ntᵀ,   right = 1/m Σ_n 1/T Σ_t a_nt a_ntᵀ,
    a_nt being the patch (i = channels·kh·kw) under position t in a convolution (Grosse & Martens
    2016, with the mean in the other factor; the product is theirs). It is the Fisher exactly if g
    and a are independent and the g of different positions uncorrelated. A bias has the exact left
    = 1/m Σ_n (Σ_t g_nt)(Σ_t g_nt)ᵀ and right = (1).

    Args:
        objective: The model, its data and the space.
        count: Samples m, from the first.
        labels: `sampled` for the true Fisher, `observed` for the empirical one.
        generator: Of the sampled labels.
        skip_unknown: Whether to leave out parameters without factors in place of an error.

    Returns:
        Parameter name -> its factors, float32 at least.

    Raises:
        WoodburyError: If a parameter is not in an nn.Linear or an ungrouped nn.Conv2d, which is
            named, or the data gives fewer samples.

    Example:
        >>> objective = Objective.from_model(nn.Linear(3, 2), [(torch.ones(4, 3), None)])
        >>> left, right = factors(objective, 4)["weight"]
        >>> left.shape, right.shape
        (torch.Size([2, 2]), torch.Size([3, 3]))
    """
    check_whole_number(count, "count", "the number of samples")
    uses = _layer_uses(objective, skip_unknown)
    sums: dict[str, Factors] = {}
    odd: set[str] | None = set() if skip_unknown else None
    done = 0
    with eval_mode(objective.model):
        at_once = drawn_at_once(Limits.current().kfac_samples)
        for inputs, target in objective.batches.in_batches(at_once, count):
            drawn_by = generator and per_run(generator, done)
            target = labelled(labels, objective, inputs, target, drawn_by)
            objective.check_mean(inputs, target)
            if not done:
                uses = _with_factors(objective, uses, inputs, target, skip_unknown)
            for name, local in _sums_of_batch(objective, uses, inputs, target, odd):
                before = sums.get(name, (0.0, 0.0))
                left = before[0] + local.left.double()
                right = before[1] + local.right.double()
                sums[name] = Factors(left, right)
            done += samples_in(inputs)
            report("factors", done, objective.batches.own(count))
    check_enough_data(done, objective.batches.own(count))
    ranks = Ranks.current()
    sums = {
        name: Factors(ranks.sum(both.left), ranks.sum(both.right)) for name, both in sums.items()
    }
    dtype = wide_dtype(objective.weights.dtype)
    names = objective.space.shapes if odd is None else sums.keys() - odd
    return {name: _averaged(name, sums, count, dtype) for name in names}


def factored(model: nn.Module) -> ParameterSpace:
    """The space of the weights that K-FAC can precondition: those with factors and a gradient.

    Args:
        model: The model.

    Returns:
        The weights of every nn.Linear and ungrouped nn.Conv2d that require a gradient.

    Raises:
        WoodburyError: If there is none.
    """
    model = bare(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    names = sorted({name for name, _ in known_layers(model, trained)})
    if not names:
        raise WoodburyError(
            "K-FAC needs an nn.Linear or an ungrouped nn.Conv2d to train: take another structure."
        )
    return ParameterSpace.from_model(model, include=names)


class _LayerUse(NamedTuple):
    """A layer of the space, and the names of its weight and bias there (None: not in the space)."""

    layer: MatrixLayer
    weight: str | None
    bias: str | None


@dataclass(frozen=True)
class _Seen:
    """What one pass showed of one parameter, which may be used several times.

    Attributes:
        products: Per use of a weight, the sum of a aᵀ.
        positions: Per use of a weight, the positions of one sample.
        probes: Per use, the layer and the zeros that were added to its output, whose gradient is g.
    """

    products: list[Tensor] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    probes: list[tuple[MatrixLayer, Tensor]] = field(default_factory=list)


def _averaged(name: str, sums: Mapping[str, Factors], count: int, dtype: torch.dtype) -> Factors:
    if name not in sums:
        raise WoodburyError(
            f"The layer of parameter {name!r} was never called by the model: {_remedy(name)}"
        )
    for factor, what in zip(sums[name], ("output gradients", "inputs"), strict=True):
        if not torch.isfinite(factor).all():
            raise WoodburyError(
                f"The {what} of parameter {name!r} are not finite: "
                "look at the data and at the loss."
            )
    left, right = sums[name]
    return Factors((left / count).to(dtype), (right / count).to(dtype))


def _layer_uses(objective: Objective, skip_unknown: bool) -> list[_LayerUse]:
    uses = []
    unknown: set[str] = set()
    for owner in parameter_owners(objective.model, objective.space.shapes):
        module = owner.module
        first = next(iter(owner.names.values()))
        if skip_unknown and not is_known(module):
            unknown.update(owner.names.values())  # also where a known layer shares it
            continue
        if type(module) not in KNOWN_TYPES:
            raise WoodburyError(
                f"K-FAC does not know {type(module).__name__}, which holds {first!r}: "
                f"{_remedy(first)}"
            )
        if not is_known(module):
            raise WoodburyError(
                f"K-FAC has no factors of the grouped convolution of {first!r}: {_remedy(first)}"
            )
        use = _LayerUse(module, owner.names.get("weight"), owner.names.get("bias"))
        if use.weight or use.bias:  # torch's own pruning keeps a weight under another name
            uses.append(use)
    return [use for use in uses if unknown.isdisjoint((use.weight, use.bias))]


def _with_factors(
    objective: Objective, uses: list[_LayerUse], inputs: Any, target: Any, skip_unknown: bool
) -> list[_LayerUse]:
    """The uses whose weights the model uses in no other way; others are an error, or left out."""
    layers = [(use.weight, use.layer) for use in uses if use.weight is not None]
    elsewhere = used_elsewhere(objective, layers, objective.batch_loss, inputs, target)
    if elsewhere and not skip_unknown:
        name = min(elsewhere)
        raise WoodburyError(
            f"{name!r} takes part in the loss in other ways than its layer's products: "
            f"{_remedy(name)}"
        )
    return [use for use in uses if use.weight not in elsewhere]


def _remedy(name: str) -> str:
    return (
        f"leave it out with exclude={name!r}, give it a diagonal with kfac(skip_unknown=True), or "
        "take another structure."
    )


def _sums_of_batch(
    objective: Objective,
    uses: list[_LayerUse],
    inputs: Any,
    target: Any,
    odd: set[str] | None,
) -> Iterator[tuple[str, Factors]]:
    """The sums over one batch's samples of both factors of each parameter.

    Parameters of layers that do not see the samples along dimension 0 are added to `odd`; where
    that is None, they are an error.
    """
    size = samples_in(inputs)
    seen = {name: _Seen() for use in uses for name in (use.weight, use.bias) if name is not None}
    parameters = {name: tensor.detach() for name, tensor in objective.parameters.items()}
    with torch.enable_grad(), _watching(uses, seen, size, odd):
        # The loss is a mean over the samples; its gradient by one sample's output is 1/size of
        # what that sample has.
        loss = size * objective.batch_loss(parameters, inputs, target)
    # A weight and its bias share a probe.
    probes = list({id(probe): probe for one in seen.values() for _, probe in one.probes}.values())
    if not probes:
        return
    check_dependence(loss, "layers")
    slopes = torch.autograd.grad(loss, probes, materialize_grads=True)
    slope_of = {id(probe): slope for probe, slope in zip(probes, slopes, strict=True)}
    for name, one in seen.items():
        if not one.probes or (odd and name in odd):
            continue
        by_use = [
            at_least_float32(by_position(layer, slope_of[id(probe)])) for layer, probe in one.probes
        ]
        gradients = torch.cat(by_use, dim=1)  # (b, T, o), T over the positions of all uses
        if one.products:
            flat = gradients.flatten(0, 1)
            right = torch.stack(one.products).sum(0) / sum(one.positions)
            yield name, Factors(flat.T @ flat, right)
        else:
            summed = gradients.sum(1)
            yield name, Factors(summed.T @ summed, summed.new_full((1, 1), size))


def _watching(
    uses: list[_LayerUse], seen: Mapping[str, _Seen], size: int, odd: set[str] | None
) -> AbstractContextManager[None]:
    """A context in which each layer's inputs and outputs are noted in `seen`."""

    def hook_of(use: _LayerUse) -> ForwardHook:
        names = [name for name in (use.weight, use.bias) if name is not None]

        def note(
            layer: MatrixLayer,
            positional: tuple[Any, ...],
            keywords: dict[str, Any],
            output: Tensor,
        ) -> Tensor:
            given = layer_input(positional, keywords)
            if not _has_samples(layer, given, size):
                if odd is None:
                    raise WoodburyError(
                        f"The layer of {names[0]!r} got an input of shape {tuple(given.shape)} in "
                        f"a batch of {size}: K-FAC needs the samples along dimension 0; "
                        f"{_remedy(names[0])}"
                    )
                odd.update(names)
                return output
            # A zero of its own carries the gradient, as the output may be overwritten in place.
            probe = torch.zeros_like(output, requires_grad=True)
            for name in names:
                seen[name].probes.append((layer, probe))
            if use.weight is not None:
                product, positions = _second_moment(layer, given.detach())
                seen[use.weight].products.append(product)
                seen[use.weight].positions.append(positions)
            return output + probe

        return note

    return forward_hooks((use.layer, hook_of(use)) for use in uses)


def _has_samples(layer: MatrixLayer, given: Tensor, size: int) -> bool:
    """Whether a layer's input has the samples along dimension 0."""
    is_image = isinstance(layer, nn.Conv2d)
    return given.ndim >= 2 and len(given) == size and (not is_image or given.ndim == 4)


def _second_moment(layer: MatrixLayer, given: Tensor) -> tuple[Tensor, int]:
    """Σ a aᵀ over samples and positions, and the number of positions of one sample."""
    products = []
    positions = 0
    for chunk in patches(layer, given):  # (c, T, i)
        flat = chunk.flatten(0, 1)
        products.append(flat.T @ flat)
        positions = chunk.shape[1]
    return torch.stack(products).sum(0), positions
