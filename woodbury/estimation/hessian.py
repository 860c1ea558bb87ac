"""The exact diagonal of the Hessian of the loss, by one second backward pass per weight."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from woodbury.errors import WoodburyError, check_whole_number, is_out_of_memory, user_code
from woodbury.estimation.labels import Labels, labelled, observed
from woodbury.limits import Limits
from woodbury.model.batches import check_enough_data, samples_in
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective, check_dependence
from woodbury.monitor import report


def second_derivatives(
    objective: Objective,
    count: int,
    *,
    labels: Labels = observed,
    generator: torch.Generator | None = None,
) -> Tensor:
    """∂²L/∂w_q² of the mean loss L, for every weight  (eq. 35).

    Not an estimate: each entry is a Hessian-vector product of its own, by double backward, at
    about the cost of 2·d gradients of all samples. Minutes for some 10⁴ weights, days for 10⁶.

    Args:
        objective: The loss, the data and the weights.
        count: Samples that the loss is averaged over, from the first.
        labels: `observed` for the data's own, `sampled` for labels drawn from the model.
        generator: Of the sampled labels.

    Returns:
        (d,) float64, of either sign.

    Raises:
        WoodburyError: If the data gives fewer samples, the model cannot be differentiated twice,
            or a derivative is not finite.

    Example:
        >>> from woodbury.model.likelihood import squared_error
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> objective = Objective.from_model(torch.nn.Linear(1, 1), [(x, 0 * x)], squared_error)
        >>> second_derivatives(objective, 2)  # the means of x² and of 1
        tensor([5., 1.], dtype=torch.float64)
    """
    check_whole_number(count, "count", "the number of samples")
    samples_per_pass = Limits.current().hessian_samples
    passes = -(-count // samples_per_pass)
    d = objective.space.d
    total = torch.zeros_like(objective.weights, dtype=torch.float64)
    done = 0
    with eval_mode(objective.model):
        for inputs, target in objective.batches.in_batches(samples_per_pass, count):
            size = samples_in(inputs)
            target = labelled(labels, objective, inputs, target, generator)
            objective.check_mean(inputs, target)
            for where, values in _of_batch(objective, inputs, target):
                total[where] += size * values.double()
                finished = done // samples_per_pass * d + where.stop
                report("second derivatives", finished, passes * d)
            done += size
    check_enough_data(done, count)
    finite = total.isfinite()
    if not bool(finite.all()):
        name = objective.space.name_of(int((~finite).nonzero()[0]))
        raise WoodburyError(
            f"A second derivative by parameter {name!r} is not finite: look at the loss."
        )
    return total / count


class _Entries(NamedTuple):
    """Second derivatives of one batch's mean loss by some of the d weights."""

    where: slice
    values: Tensor


class Slopes(NamedTuple):
    """The first derivatives of one batch's mean loss, with the graph of their own derivatives.

    Attributes:
        parameters: Name -> tensor that they are by.
        slopes: In the same order.
    """

    parameters: dict[str, Tensor]
    slopes: list[Tensor]


@torch.enable_grad()
def slopes_to_differentiate(objective: Objective, inputs: Any, target: Any) -> Slopes:
    """The gradient of one batch's mean loss, which can be differentiated once more.

    Args:
        objective: The loss and the weights.
        inputs: The batch's inputs.
        target: Its labels.

    Returns:
        A slope for each parameter, dense; one that is constant requires no gradient.

    Raises:
        WoodburyError: If an operation of the model has no second derivative.
    """
    parameters = {
        name: tensor.detach().requires_grad_() for name, tensor in objective.parameters.items()
    }
    with sdpa_kernel(SDPBackend.MATH):  # the fused attentions have no second derivative
        loss = objective.batch_loss(parameters, inputs, target)
    check_dependence(loss)
    slopes = torch.autograd.grad(
        loss, list(parameters.values()), create_graph=True, materialize_grads=True
    )
    dense = [slope.to_dense() if slope.is_sparse else slope for slope in slopes]
    _check_twice_differentiable(parameters, dense)
    return Slopes(parameters, dense)


def _of_batch(objective: Objective, inputs: Any, target: Any) -> Iterator[_Entries]:
    parameters, slopes = slopes_to_differentiate(objective, inputs, target)
    keep = objective.space.keep.to(objective.weights.device)
    columns = Limits.current().hessian_columns
    start = 0
    for (name, parameter), slope in zip(parameters.items(), slopes, strict=True):
        kept = keep[objective.space.slices[name]].nonzero()[:, 0]
        for index in kept.split(columns):
            stop = start + len(index)
            refusal = f"The loss cannot be differentiated twice by {name!r}"
            with user_code(f"{refusal}: take diagonal_fisher() instead."):
                values = _diagonal_entries(slope, parameter, index)
            yield _Entries(slice(start, stop), values)
            start = stop


def _check_twice_differentiable(names: Iterable[str], slopes: Iterable[Tensor]) -> None:
    """Raise for an operation without a second derivative, which autograd may pass over silently."""
    for name, slope in zip(names, slopes, strict=True):
        seen = set()
        waiting = [slope.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node.name() in ("torch::autograd::Error", "torch::autograd::NotImplemented"):
                raise WoodburyError(
                    f"The loss cannot be differentiated twice by {name!r}: "
                    "take diagonal_fisher() instead."
                )
            waiting += [following for following, _ in node.next_functions]


def _diagonal_entries(slope: Tensor, parameter: Tensor, index: Tensor) -> Tensor:
    """The entries `index` (c,) of the diagonal of ∂slope/∂parameter: (c,)."""
    if not slope.requires_grad:
        return parameter.new_zeros(len(index))
    unit_vectors = parameter.new_zeros(len(index), parameter.numel())
    unit_vectors.scatter_(1, index[:, None], 1)
    vectors = unit_vectors.view(-1, *slope.shape)
    try:
        with warnings.catch_warnings():
            # An operation without a batching rule gives the right answer, one vector at a time.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            products = _hessian_products(slope, parameter, vectors, batched=True)
    except RuntimeError as error:  # torch has wrong batching rules too, as of GroupNorm
        if is_out_of_memory(error):
            raise
        each = [_hessian_products(slope, parameter, one, batched=False) for one in vectors]
        known = [one for one in each if one is not None]
        products = torch.stack(known) if known else None
    if products is None:  # the slope does not depend on its own parameter
        return parameter.new_zeros(len(index))
    return products.reshape(len(index), -1).gather(1, index[:, None])[:, 0]


def _hessian_products(
    slope: Tensor, parameter: Tensor, vectors: Tensor, *, batched: bool
) -> Tensor | None:
    """∂slope/∂parameter times vectors; None where the slope does not depend on its parameter."""
    (product,) = torch.autograd.grad(
        slope,
        parameter,
        vectors,
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=batched,
    )
    return product.to_dense() if product is not None and product.is_sparse else product
