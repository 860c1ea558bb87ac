"""Rows of G, streamed: gradients per sample or per batch, of observed or sampled labels."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_leaves, tree_map

from woodbury.errors import WoodburyError
from woodbury.limits import Limits
from woodbury.model.batches import regrouped, samples_in, slice_samples
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.monitor import report

Labels = Callable[[Objective, Any, Any, torch.Generator | None], Any]


Engine = Callable[[Objective, Any, Any], Tensor]


def observed(
    objective: Objective, inputs: Any, target: Any, generator: torch.Generator | None
) -> Any:
    """The data's own labels: the empirical Fisher."""
    if target is None:
        raise WoodburyError(
            "The batches carry no labels (None): give them, or take labels=sampled."
        )
    return target


@torch.no_grad()
def sampled(
    objective: Objective, inputs: Any, target: Any, generator: torch.Generator | None
) -> Any:
    """Labels drawn from the model's own distribution: the true Fisher, by one draw per sample; `target` may be None."""
    likelihood = objective.likelihood
    if likelihood.sample is None:
        raise WoodburyError(
            "This likelihood cannot draw labels: give it `sample`, or take labels=observed."
        )
    drawn = likelihood.sample(objective.forward(objective.parameters, inputs), generator)
    if likelihood.ignored is None or not isinstance(target, Tensor) or target.is_floating_point():
        return drawn
    return torch.where(target == likelihood.ignored, target, drawn)


def vmapped(objective: Objective, inputs: Any, target: Any) -> Tensor:
    """Per-sample gradients (c, d) of a chunk, by one vectorised backward pass."""
    batch = (inputs, target)

    def loss(parameters: dict[str, Tensor], tensors: list[Tensor]) -> Tensor:
        one = iter(tensors)
        sample = tree_map(
            lambda leaf: next(one).unsqueeze(0) if isinstance(leaf, Tensor) else leaf, batch
        )
        return objective.batch_loss(parameters, *sample)

    tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
    parameters = {name: tensor.detach() for name, tensor in objective.parameters.items()}
    # grad() ignores an outer no_grad; without one the rows would carry a graph over the parameters outside the space.
    with torch.no_grad(), warnings.catch_warnings():
        # An operation without a batching rule still gives the right answer; `fastest` is what notices its cost.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        return objective.space.flatten(vmap(grad(loss), (None, 0))(parameters, tensors))


def looped(objective: Objective, inputs: Any, target: Any) -> Tensor:
    """Per-sample gradients (c, d) of a chunk, by one ordinary backward pass each: works for every model."""
    return torch.stack(
        [
            _mean_gradient(objective, *slice_samples((inputs, target), i, i + 1))
            for i in range(samples_in(inputs))
        ]
    )


def fastest(objective: Objective, inputs: Any, target: Any) -> Engine:
    """The engine for this model: `vmapped`, unless it fails or takes three times as long as `looped` on the samples given.

    Both give the same rows to rounding. The margin keeps the choice from flipping with the noise of a clock; pin an engine
    where two runs must agree bit for bit.
    """
    few = slice_samples((inputs, target), 0, 4)
    try:
        vmapped(objective, inputs, target)  # the first call pays for more than the others
        vectorised = _seconds_per_sample(vmapped, objective, inputs, target)
    except WoodburyError:
        raise
    except (
        Exception
    ):  # data-dependent control flow, in-place masks, …: what vmap refuses has no common type
        return looped
    looped(objective, *few)
    return looped if 3 * _seconds_per_sample(looped, objective, *few) < vectorised else vmapped


def _seconds_per_sample(engine: Engine, objective: Objective, inputs: Any, target: Any) -> float:
    start = time.perf_counter()
    engine(objective, inputs, target)
    return (time.perf_counter() - start) / samples_in(inputs)


def gradient_chunks(
    objective: Objective,
    count: int,
    *,
    batch: int = 1,
    labels: Labels = observed,
    generator: torch.Generator | None = None,
    engine: Engine | None = None,
) -> Iterator[Tensor]:
    """Exactly `count` rows of G, streamed in chunks (c, d)  (eq. 2).

    batch: how many samples a row averages; such a row is scaled by √batch, so that (1/m) Σ g gᵀ keeps the meaning of
    the Fisher. engine: `vmapped` or `looped`, None for the faster. The model is in eval mode until the last chunk is taken.
    Raises WoodburyError when the data gives fewer rows, or a row that is not finite.
    """
    if count < 1 or batch < 1:
        raise WoodburyError(
            f"{count} rows of {batch} samples were asked for: both must be at least 1."
        )
    return _stream(objective, count, batch, labels, generator, engine)


def _stream(
    objective: Objective,
    count: int,
    batch: int,
    labels: Labels,
    generator: torch.Generator | None,
    engine: Engine | None,
) -> Iterator[Tensor]:
    rows_at_once = max(
        1,
        min(
            64,
            Limits.current().gradient_chunk
            // (objective.weights.element_size() * objective.space.n),
        ),
    )
    done = 0
    with eval_mode(objective.model):
        # A row of several samples takes them from one shape; those that do not fill a row are left out.
        most = count if batch == 1 else None
        for inputs, target in regrouped(
            objective.batches, rows_at_once if batch == 1 else batch, most
        ):
            if batch > 1 and samples_in(inputs) < batch:
                continue
            target = labels(objective, inputs, target, generator)
            if batch == 1:
                engine = engine or fastest(objective, inputs, target)
                rows = engine(objective, inputs, target)
            else:
                rows = batch**0.5 * _mean_gradient(objective, inputs, target)[None]
            _check_rows(objective, rows, done)
            done += len(rows)
            yield rows
            if done == count:
                return
    if done < count:
        raise WoodburyError(
            f"The data gave {done} of the {count} rows of {batch} sample(s): give more data or ask for less."
        )


def gradient_rows(objective: Objective, count: int, **options: Any) -> Tensor:
    """The rows of `gradients` in one tensor (count, d)."""
    matrix, done = None, 0
    for chunk in gradient_chunks(objective, count, **options):
        matrix = chunk.new_empty(count, objective.space.d) if matrix is None else matrix
        matrix[done : done + len(chunk)] = chunk
        done += len(chunk)
        report("gradients", done, count)
    assert matrix is not None  # gradients() gives count >= 1 rows or raises
    return matrix


def mean_gradient(objective: Objective, count: int | None = None, at_once: int = 256) -> Tensor:
    """The gradient of the mean loss over the first `count` samples (default: all), so many of them at once: (d,)."""
    dtype = torch.promote_types(objective.weights.dtype, torch.float32)
    total, samples = torch.zeros_like(objective.weights, dtype=dtype), 0
    with eval_mode(objective.model):
        for inputs, target in regrouped(objective.batches, at_once, count):
            total += samples_in(inputs) * _mean_gradient(objective, inputs, target).to(dtype)
            samples += samples_in(inputs)
    if not samples or (count and samples < count):
        raise WoodburyError(f"The data gave {samples} of the {count or 1} samples asked for.")
    _check_rows(objective, total[None], 0)
    return total / samples


@torch.enable_grad()
def _mean_gradient(objective: Objective, inputs: Any, target: Any) -> Tensor:
    parameters = {
        name: tensor.detach().requires_grad_() for name, tensor in objective.parameters.items()
    }
    loss = objective.batch_loss(parameters, inputs, target)
    if not loss.requires_grad:
        raise WoodburyError(
            "The loss does not depend on the chosen parameters: does the model or the loss detach them?"
        )
    parts = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return objective.space.flatten(dict(zip(parameters, parts, strict=True))).detach()


def _check_rows(objective: Objective, rows: Tensor, done: int) -> None:
    finite = torch.isfinite(rows.sum(1))  # a sum is finite unless an entry is not, or it overflows
    if not finite.all():
        finite = torch.isfinite(rows).all(1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        culprit = objective.space.tensor_index()[objective.space.keep.cpu()][
            int((~torch.isfinite(rows[row])).float().argmax())
        ]
        name = list(objective.space.shapes)[int(culprit)]
        raise WoodburyError(
            f"Gradient {done + row} is not finite at parameter {name!r}: look at that sample and at the loss."
        )
