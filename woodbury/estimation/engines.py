"""Engines: ways to the gradients of single samples, and which is the fastest for a model."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_leaves, tree_map

from woodbury.errors import WoodburyError, user_code
from woodbury.estimation.layer_gradients import hooked
from woodbury.linalg.reused_memory import ReusedMemory
from woodbury.model.batches import Batch, holds_lists, samples_in, slice_samples
from woodbury.model.objective import Objective, check_dependence

Engine = Callable[[Objective, Any, Any], Tensor]
"""engine(objective, inputs, target) -> per-sample gradients (c, d) of a chunk of c samples.

`vmapped`, `looped` and `hooked` give the same rows to rounding and differ in speed.
"""

TRIAL_SAMPLES = 4
"""Samples that `looped` is timed on."""

VMAP_MARGIN = 3
"""How many times slower `vmapped` must be for `looped` to be chosen; above the noise of a clock."""

WEIGHTS_TO_TIME = 2**20
"""Weights from which on a trial is short and without a margin: seconds and memory count more."""


@torch.enable_grad()
def batch_gradient(
    objective: Objective,
    inputs: Any,
    target: Any,
    memory: ReusedMemory | None = None,
    draw: Callable[[Any], Any] | None = None,
) -> Tensor:
    """The gradient of one batch's mean loss.

    Args:
        objective: The loss and the weights.
        inputs: The inputs of the batch.
        target: Its labels.
        memory: Where the gradient is written; None for new memory.
        draw: Output -> the labels that the loss is taken at; None for `target`.

    Returns:
        (d,).

    Raises:
        WoodburyError: If the loss does not depend on the weights.
    """
    parameters = {
        name: tensor.detach().requires_grad_() for name, tensor in objective.parameters.items()
    }
    loss = objective.batch_loss(parameters, inputs, target, draw)
    check_dependence(loss)
    slopes = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    dense = [slope.to_dense() if slope.is_sparse else slope for slope in slopes]
    named = {name: slope.detach() for name, slope in zip(parameters, dense, strict=True)}
    return objective.space.flatten(named, memory)


def vmapped(objective: Objective, inputs: Any, target: Any) -> Tensor:
    """Per-sample gradients by one vectorised backward pass.

    Args:
        objective: The loss and the weights.
        inputs: The inputs of c samples.
        target: Their labels.

    Returns:
        (c, d).

    Raises:
        WoodburyError: If the model does what `torch.func.vmap` refuses, such as control flow by the
            data, or refuses the data itself.
    """
    with user_code(
        "vmapped fails on this model or its data: take engine=looped, which works for every model "
        "and says what is wrong with data."
    ):
        return _vmapped(objective, (inputs, target))


def _vmapped(objective: Objective, batch: Batch) -> Tensor:
    """`vmapped`, with errors of any type."""
    if holds_lists(batch):
        raise NotImplementedError("vmap cannot cut a list of one entry per sample.")

    def loss(parameters: dict[str, Tensor], tensors: list[Tensor]) -> Tensor:
        remaining = iter(tensors)
        sample = tree_map(
            lambda leaf: next(remaining).unsqueeze(0) if isinstance(leaf, Tensor) else leaf, batch
        )
        return objective.batch_loss(parameters, *sample)

    tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
    parameters = {name: tensor.detach() for name, tensor in objective.parameters.items()}
    # grad() ignores an outer no_grad; without one the rows would carry a graph over the parameters
    # outside the space.
    with torch.no_grad(), warnings.catch_warnings():
        # An operation without a batching rule gives the right answer; `fastest` notices its cost.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        return objective.space.flatten(vmap(grad(loss), (None, 0))(parameters, tensors))


def looped(objective: Objective, inputs: Any, target: Any) -> Tensor:
    """Per-sample gradients by one ordinary backward pass each: this works for every model.

    Args:
        objective: The loss and the weights.
        inputs: The inputs of c samples.
        target: Their labels.

    Returns:
        (c, d).
    """
    count = samples_in(inputs)
    if count == 1:
        return batch_gradient(objective, inputs, target)[None]
    rows = objective.weights.new_empty(count, objective.space.d)
    for i in range(count):
        rows[i] = batch_gradient(objective, *slice_samples((inputs, target), i, i + 1))
    return rows


ENGINES: dict[str, Engine] = {"hooked": hooked, "vmapped": vmapped, "looped": looped}
"""By their names, for files."""


@contextmanager
def one_engine(names: list[str]) -> Iterator[None]:
    """A context in which all gradient rows are taken by one engine, where a clock would choose.

    Args:
        names: The name of that engine; empty for the first that is chosen, whose name is appended.

    Raises:
        WoodburyError: If there is no engine of that name.

    Example:
        >>> with one_engine(["looped"]):
        ...     pass
    """
    known = list(ENGINES)  # as what a file holds may have no hash
    unknown = [name for name in names if name not in known]
    if unknown or len(names) > 1:
        raise WoodburyError(f"engine is {names}: give one of {', '.join(ENGINES)}, or none.")
    token = _one_engine.set(names)
    try:
        yield
    finally:
        _one_engine.reset(token)


_one_engine: ContextVar[list[str] | None] = ContextVar("one_engine", default=None)


def same_or_fastest(objective: Objective, inputs: Any, target: Any) -> Engine:
    """The engine of `one_engine`, else the fastest.

    Args:
        objective: As for `fastest`.
        inputs: As for `fastest`.
        target: As for `fastest`.

    Returns:
        `hooked`, `vmapped` or `looped`.

    Raises:
        WoodburyError: As `fastest`.
    """
    names = _one_engine.get()
    if names:
        return ENGINES[names[0]]
    engine = fastest(objective, inputs, target)
    if names is not None:
        names.append(next(name for name, known in ENGINES.items() if known is engine))
    return engine


def fastest(objective: Objective, inputs: Any, target: Any) -> Engine:
    """The faster engine for a model, by a clock.

    1. `hooked`, where all weights are in layers that it knows and it gives the rows of `looped`.
    2. Else `vmapped`, unless it fails or takes `VMAP_MARGIN` times as long as `looped`. The margin
       keeps the choice from flipping with the noise of the clock; from `WEIGHTS_TO_TIME` weights on
       there is none. Two runs that must agree bit for bit are given an engine.

    Args:
        objective: The loss and the weights.
        inputs: The inputs of the samples that the engines are timed on.
        target: Their labels.

    Returns:
        `hooked`, `vmapped` or `looped`.

    Raises:
        WoodburyError: If the data do not fit the model or the loss.
    """
    few = slice_samples((inputs, target), 0, TRIAL_SAMPLES)
    with torch.no_grad():  # says what is wrong with the loss
        objective.batch_loss(objective.parameters, *slice_samples(few, 0, 1))
    one_by_one = looped(objective, *few)
    if _agrees(hooked, objective, few, one_by_one):
        return hooked
    large = objective.space.n >= WEIGHTS_TO_TIME
    chunk = few if large else (inputs, target)
    try:
        vmapped(objective, *chunk)  # the first call pays for more than the others
        vectorised = _seconds_per_sample(vmapped, objective, *chunk)
    except Exception:  # what vmap refuses has no common type; what is wrong `looped` says too
        return looped
    seconds = _seconds_per_sample(looped, objective, *few)
    margin = 1 if large else VMAP_MARGIN
    return looped if margin * seconds < vectorised else vmapped


def _agrees(engine: Engine, objective: Objective, samples: Batch, rows: Tensor) -> bool:
    """Whether an engine gives known rows (c, d) of c samples, up to rounding."""
    try:
        found = engine(objective, *samples)
    except Exception:  # what a model does to its layers has no common type
        return False
    scale = rows.abs().amax(1, keepdim=True)
    return bool(((found - rows).abs() <= torch.finfo(rows.dtype).eps ** 0.5 * scale).all())


def _seconds_per_sample(engine: Engine, objective: Objective, inputs: Any, target: Any) -> float:
    start = time.perf_counter()
    engine(objective, inputs, target)
    return (time.perf_counter() - start) / samples_in(inputs)
