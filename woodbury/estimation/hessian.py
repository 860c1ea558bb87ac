"""The diagonal of the loss's Hessian, exactly: one second backward pass per weight."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from woodbury.errors import WoodburyError
from woodbury.estimation.gradients import Labels, observed
from woodbury.limits import Limits
from woodbury.model.batches import regrouped, samples_in
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.monitor import report


def second_derivatives(
    objective: Objective,
    count: int,
    *,
    labels: Labels = observed,
    generator: torch.Generator | None = None,
) -> Tensor:
    """∂²L/∂w_q² of the mean loss L over the first `count` samples: (d,) float64, of either sign  (eq. 35).

    Not an estimate: each entry is a Hessian-vector product of its own, by double backward, so that the cost is that of
    about 2·d gradients of all samples. Minutes for some 10⁴ weights, days for 10⁶. Raises WoodburyError on too little
    data, on a model that cannot be differentiated twice, and on derivatives that are not finite.
    """
    if count < 1:
        raise WoodburyError(f"{count} samples were asked for: at least 1 is needed.")
    total = torch.zeros_like(objective.weights, dtype=torch.float64)
    done, passes, d = 0, -(-count // Limits.current().hessian_samples), objective.space.d
    with eval_mode(objective.model):
        for inputs, target in regrouped(objective.batches, Limits.current().hessian_samples, count):
            size, target = samples_in(inputs), labels(objective, inputs, target, generator)
            for part, values in _of_batch(objective, inputs, target):
                total[part] += size * values.double()
                report(
                    "second derivatives",
                    done // Limits.current().hessian_samples * d + part.stop,
                    passes * d,
                )
            done += size
    if done < count:
        raise WoodburyError(
            f"The data gave {done} of the {count} samples: give more data or ask for less."
        )
    if not bool(torch.isfinite(total).all()):
        culprit = objective.space.tensor_index()[objective.space.keep.cpu()][
            int((~total.isfinite()).float().argmax())
        ]
        raise WoodburyError(
            f"A second derivative by parameter {list(objective.space.shapes)[int(culprit)]!r} is not finite: look at the loss."
        )
    return total / count


@torch.enable_grad()
def _of_batch(
    objective: Objective, inputs: object, target: object
) -> Iterator[tuple[slice, Tensor]]:
    """Runs of the d weights left, and their second derivatives of one batch's mean loss."""
    parameters = {
        name: tensor.detach().requires_grad_() for name, tensor in objective.parameters.items()
    }
    with sdpa_kernel(SDPBackend.MATH):  # the fused ones have no second derivative
        loss = objective.batch_loss(parameters, inputs, target)
    if not loss.requires_grad:
        raise WoodburyError(
            "The loss does not depend on the chosen parameters: does the model or the loss detach them?"
        )
    slopes = torch.autograd.grad(
        loss, list(parameters.values()), create_graph=True, materialize_grads=True
    )
    _check_twice(parameters, slopes)
    keep, start = objective.space.keep.to(loss.device), 0
    for (name, parameter), slope in zip(parameters.items(), slopes, strict=True):
        for index in (
            keep[objective.space.slices[name]]
            .nonzero()[:, 0]
            .split(Limits.current().hessian_columns)
        ):
            yield slice(start, start + len(index)), _entries(slope, parameter, index)
            start += len(index)


def _check_twice(names: Iterable[str], slopes: Iterable[Tensor]) -> None:
    """An error for an operation without a second derivative, which autograd may pass over in silence."""
    for name, slope in zip(names, slopes, strict=True):
        seen, waiting = set(), [slope.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node.name() in ("torch::autograd::Error", "torch::autograd::NotImplemented"):
                raise WoodburyError(
                    f"The loss cannot be differentiated twice by {name!r}: take diagonal(), the Fisher's, instead."
                )
            waiting += [following for following, _ in node.next_functions]


def _entries(slope: Tensor, parameter: Tensor, index: Tensor) -> Tensor:
    """The entries `index` (c,) of the diagonal of ∂slope/∂parameter: (c,)."""
    if not slope.requires_grad:
        return parameter.new_zeros(len(index))
    directions = parameter.new_zeros(len(index), parameter.numel()).scatter_(1, index[:, None], 1)
    with warnings.catch_warnings():
        # An operation without a batching rule still gives the right answer, one direction at a time.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        (found,) = torch.autograd.grad(
            slope,
            parameter,
            directions.view(-1, *slope.shape),
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=True,
        )
    if found is None:  # the slope does not depend on its own parameter
        return parameter.new_zeros(len(index))
    return found.reshape(len(index), -1).gather(1, index[:, None])[:, 0]
