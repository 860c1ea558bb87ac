"""Gradient rows: per sample or per batch, with the data's labels or with sampled ones."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_leaves, tree_map

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, check_whole_number, user_code
from woodbury.estimation.layer_gradients import hooked
from woodbury.limits import Limits
from woodbury.linalg.precision import wide_dtype
from woodbury.linalg.ranks import Ranks
from woodbury.linalg.reused_memory import ReusedMemory
from woodbury.model.batches import (
    Batch,
    check_enough_data,
    holds_lists,
    samples_in,
    slice_samples,
)
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective, check_dependence
from woodbury.model.spread import drawn_at_once, per_run
from woodbury.monitor import report

Labels = Callable[[Objective, Any, Any, torch.Generator | None], Any]
"""labels(objective, inputs, target, generator) -> the labels that the loss is taken at.

`observed` gives the empirical Fisher, `sampled` the true one.
"""

Engine = Callable[[Objective, Any, Any], Tensor]
"""engine(objective, inputs, target) -> per-sample gradients (c, d) of a chunk of c samples.

`vmapped`, `looped` and `hooked` give the same rows to rounding and differ in speed.
"""

MAX_ROWS_PER_CHUNK = 64
"""Per-sample gradients computed at once, at most; `Limits.gradient_chunk` may ask for fewer."""

COPIES = 2
"""Of a chunk of rows while it is computed: by tensor, and in one piece."""

SAMPLES_PER_PASS = 256
"""Samples of one backward pass of a mean gradient."""

TRIAL_SAMPLES = 4
"""Samples that `looped` is timed on."""

VMAP_MARGIN = 3
"""How many times slower `vmapped` must be for `looped` to be chosen; above the noise of a clock."""

WEIGHTS_TO_TIME = 2**20
"""Weights from which on a trial is short and without a margin: seconds and memory count more."""

WEIGHTS_TO_LOOP = 2**22
"""Weights from which on a CPU takes one sample at a time: a gradient is then longer than a cache,
and a chunk of them, which `vmapped` makes and copies, than everything else."""


@checks_types
def observed(
    objective: Objective, inputs: Any, target: Any, generator: torch.Generator | None
) -> Any:
    """The data's own labels: the empirical Fisher.

    Args:
        objective: Not used.
        inputs: Not used.
        target: The batch's labels.
        generator: Not used.

    Returns:
        `target`.

    Raises:
        WoodburyError: If it is None.
    """
    if target is None:
        raise WoodburyError(
            "The batches carry no labels (None): give them, or take labels=sampled."
        )
    return target


@checks_types
@torch.no_grad()
def sampled(
    objective: Objective, inputs: Any, target: Any, generator: torch.Generator | None
) -> Any:
    """Labels drawn from the model's own distribution, one per sample: the true Fisher.

    Args:
        objective: The model at its weights, and its likelihood.
        inputs: The batch's inputs.
        target: The batch's labels or None. The likelihood reads them only where they mark positions
            without an observation, which stay so.
        generator: Of the drawn labels; None for torch's own.

    Returns:
        Labels as the likelihood draws them.

    Raises:
        WoodburyError: If the likelihood draws none.
    """
    draw = _sampler(objective)
    return draw(objective.forward(objective.parameters, inputs), target, generator)


def _sampler(objective: Objective) -> Callable[[Any, Any, torch.Generator | None], Any]:
    """(output, target, generator) -> labels drawn from the model's own distribution."""
    draw = objective.likelihood.sample
    if draw is None:
        raise WoodburyError(
            "This likelihood cannot draw labels: give it `sample`, or take labels=observed."
        )
    return draw


def labelled(
    labels: Labels,
    objective: Objective,
    inputs: Any,
    target: Any,
    generator: torch.Generator | None,
) -> Any:
    """The labels of a batch that the loss is taken at.

    Args:
        labels: `observed`, `sampled`, or a function of the user's.
        objective: As for `labels`.
        inputs: As for `labels`.
        target: As for `labels`.
        generator: As for `labels`.

    Returns:
        What `labels` gives.

    Raises:
        WoodburyError: If it fails.
    """
    with user_code("The function of the labels fails.", keeps_refusals=True):
        return labels(objective, inputs, target, generator)


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
        return _mean_gradient(objective, inputs, target)[None]
    rows = objective.weights.new_empty(count, objective.space.d)
    for i in range(count):
        rows[i] = _mean_gradient(objective, *slice_samples((inputs, target), i, i + 1))
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


def _same_or_fastest(objective: Objective, inputs: Any, target: Any) -> Engine:
    """The engine of `one_engine`, else the fastest."""
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
        `hooked`, `hooked`, `vmapped` or `looped`.

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


def gradient_chunks(
    objective: Objective,
    count: int,
    *,
    batch: int = 1,
    labels: Labels = observed,
    generator: torch.Generator | None = None,
    engine: Engine | None = None,
) -> Iterator[Tensor]:
    """Rows of G, some at a time  (eq. 2).

    The model is in eval mode until the last chunk is taken.

    Args:
        objective: The loss, the data and the weights.
        count: Rows in all, m.
        batch: Samples that a row averages. Such a row is scaled by √batch, so that (1/m) Σ g gᵀ
            keeps the meaning of the Fisher.
        labels: `observed` for the empirical, `sampled` for the true Fisher.
        generator: Of the sampled labels.
        engine: `hooked`, `vmapped` or `looped`; None for the `fastest` on the first chunk.

    Returns:
        Chunks (c, d) of exactly `count` rows. `Limits.gradient_chunk` bounds their bytes.

    Raises:
        WoodburyError: If the data gives fewer rows, or a row is not finite.

    Example:
        >>> batches = [(torch.ones(5, 3), torch.zeros(5, dtype=torch.int64))]
        >>> objective = Objective.from_model(torch.nn.Linear(3, 2), batches)
        >>> [tuple(chunk.shape) for chunk in gradient_chunks(objective, 2, batch=2)]
        [(1, 8), (1, 8)]
    """
    check_whole_number(count, "count", "the number of gradient rows")
    check_whole_number(batch, "batch", "the number of samples that a row averages")
    settings = _RowSettings(count, batch, labels, generator, engine)
    return _single_rows(objective, settings) if batch == 1 else _mean_rows(objective, settings)


def gradient_rows(objective: Objective, count: int, **options: Any) -> Tensor:
    """The rows of `gradient_chunks` in one tensor.

    Args:
        objective: The loss, the data and the weights.
        count: Rows, m.
        **options: As for `gradient_chunks`.

    Returns:
        G, (count, d).

    Raises:
        WoodburyError: As `gradient_chunks`.

    Example:
        >>> batches = [(torch.ones(5, 3), torch.zeros(5, dtype=torch.int64))]
        >>> objective = Objective.from_model(torch.nn.Linear(3, 2), batches)
        >>> gradient_rows(objective, 5).shape
        torch.Size([5, 8])
    """
    matrix: Tensor | None = None
    own = objective.batches.own(count)
    done = 0
    for chunk in gradient_chunks(objective, count, **options):
        if matrix is None:
            matrix = chunk.new_empty(own, objective.space.d)
        matrix[done : done + len(chunk)] = chunk
        done += len(chunk)
        report("gradients", done, own)
    # Of ranks, one may have no sample among the first `count`.
    return objective.weights.new_empty(0, objective.space.d) if matrix is None else matrix


def mean_gradient(
    objective: Objective, count: int | None = None, samples_per_pass: int = SAMPLES_PER_PASS
) -> Tensor:
    """The gradient of the mean loss.

    Args:
        objective: The loss, the data and the weights.
        count: Samples that the mean is over, from the first; None for all.
        samples_per_pass: Samples of one backward pass.

    Returns:
        (d,), float32 at least.

    Raises:
        WoodburyError: If the data gives fewer samples or none, or the gradient is not finite.
    """
    dtype = wide_dtype(objective.weights.dtype)
    total = torch.zeros_like(objective.weights, dtype=dtype)
    samples = 0
    with eval_mode(objective.model):
        for inputs, target in objective.batches.in_batches(samples_per_pass, count):
            size = samples_in(inputs)
            objective.check_mean(inputs, target)
            total += size * _mean_gradient(objective, inputs, target).to(dtype)
            samples += size
    check_enough_data(samples, objective.batches.own(count or 1))
    _check_finite(objective, total[None], 0)
    ranks = Ranks.current()
    return ranks.sum(total) / ranks.total(samples)


@dataclass(frozen=True)
class _RowSettings:
    """The arguments of `gradient_chunks`."""

    count: int
    batch: int
    labels: Labels
    generator: torch.Generator | None
    engine: Engine | None

    def labelled(self, objective: Objective, inputs: Any, target: Any, done: int) -> Any:
        """The labels of a batch that comes after `done` samples."""
        generator = self.generator and per_run(self.generator, done)
        return labelled(self.labels, objective, inputs, target, generator)

    def draw(self, objective: Objective, target: Any, done: int) -> Callable[[Any], Any] | None:
        """Output -> the labels, where they are `sampled`: by the forward pass of the gradient."""
        if self.labels is not sampled:
            return None
        sample = _sampler(objective)
        generator = self.generator and per_run(self.generator, done)

        def draw(output: Any) -> Any:
            with user_code("The function of the labels fails.", keeps_refusals=True):
                return sample(output, target, generator)

        return draw

    def at_once(self, samples: int) -> int:
        return samples if self.labels is observed else drawn_at_once(samples)

    def check_enough(self, objective: Objective, rows: int) -> None:
        needed = objective.batches.own(self.count * self.batch) // self.batch
        check_enough_data(rows, needed, f"rows of {self.batch} sample(s)")


def _single_rows(objective: Objective, settings: _RowSettings) -> Iterator[Tensor]:
    """Rows of one sample each, in chunks that fit the limits."""
    large = objective.space.n >= WEIGHTS_TO_LOOP and objective.weights.device.type == "cpu"
    if large and settings.engine is None:
        yield from _rows_one_by_one(objective, settings)
        return
    space = objective.space
    bytes_per_row = objective.weights.element_size() * (
        COPIES * space.n + (space.d < space.n) * space.d
    )
    fitting = Limits.current().gradient_chunk // bytes_per_row
    chunk_size = max(1, min(MAX_ROWS_PER_CHUNK, fitting))
    engine = settings.engine
    done = 0
    with eval_mode(objective.model):
        chunk_size = settings.at_once(chunk_size)
        for inputs, target in objective.batches.in_batches(chunk_size, settings.count):
            target = settings.labelled(objective, inputs, target, done)
            with user_code(_refusal(done, done + samples_in(inputs))):
                objective.check_mean(inputs, target)
                engine = engine or _same_or_fastest(objective, inputs, target)
                rows = engine(objective, inputs, target)
            _check_finite(objective, rows, done)
            done += len(rows)
            yield rows
            del rows  # before the next are computed
    settings.check_enough(objective, done)


def _rows_one_by_one(objective: Objective, settings: _RowSettings) -> Iterator[Tensor]:
    """Rows of one sample each, one pass for each.

    A row takes the memory of one that is used no more, as new memory takes longer than a copy.
    """
    memory = ReusedMemory()
    done = 0
    with eval_mode(objective.model):
        for inputs, target in objective.batches.in_batches(1, settings.count):
            draw = settings.draw(objective, target, done)
            if draw is None:
                target = settings.labelled(objective, inputs, target, done)
            with user_code(_refusal(done, done + 1)):
                row = _mean_gradient(objective, inputs, target, memory, draw)[None]
            _check_finite(objective, row, done)
            done += 1
            yield row
            del row  # before the next is computed
    settings.check_enough(objective, done)


def _refusal(done: int, last: int) -> str:
    """The sentence for samples that the model or its loss refuses."""
    return (
        f"The model or its loss refuses one of the samples {done + 1} to {last}: "
        "look at them and at their labels."
    )


def _mean_rows(objective: Objective, settings: _RowSettings) -> Iterator[Tensor]:
    """Rows that average `batch` samples of one shape; samples that fill no row are left out."""
    done = 0
    count = objective.batches.own(settings.count * settings.batch) // settings.batch
    with eval_mode(objective.model):
        for inputs, target in objective.batches.in_batches(settings.batch):
            if samples_in(inputs) < settings.batch:
                continue
            target = settings.labelled(objective, inputs, target, done * settings.batch)
            objective.check_mean(inputs, target)
            row = settings.batch**0.5 * _mean_gradient(objective, inputs, target)[None]
            _check_finite(objective, row, done)
            done += 1
            yield row
            del row  # before the next is computed
            if done == count:
                return
    settings.check_enough(objective, done)


@torch.enable_grad()
def _mean_gradient(
    objective: Objective,
    inputs: Any,
    target: Any,
    memory: ReusedMemory | None = None,
    draw: Callable[[Any], Any] | None = None,
) -> Tensor:
    """The gradient of one batch's mean loss, (d,), in some memory or in new one."""
    parameters = {
        name: tensor.detach().requires_grad_() for name, tensor in objective.parameters.items()
    }
    loss = objective.batch_loss(parameters, inputs, target, draw)
    check_dependence(loss)
    slopes = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    dense = [slope.to_dense() if slope.is_sparse else slope for slope in slopes]
    named = {name: slope.detach() for name, slope in zip(parameters, dense, strict=True)}
    return objective.space.flatten(named, memory)


def _seconds_per_sample(engine: Engine, objective: Objective, inputs: Any, target: Any) -> float:
    start = time.perf_counter()
    engine(objective, inputs, target)
    return (time.perf_counter() - start) / samples_in(inputs)


def _check_finite(objective: Objective, rows: Tensor, done: int) -> None:
    """Raise for a row that is not finite; `done` rows came before."""
    finite = torch.isfinite(rows.sum(1))  # a sum is finite unless an entry is not, or it overflows
    if not finite.all():
        finite = torch.isfinite(rows).all(1)
    if finite.all():
        return
    row = int((~finite).nonzero()[0])
    name = objective.space.name_of(int((~torch.isfinite(rows[row])).nonzero()[0]))
    raise WoodburyError(
        f"Gradient {done + row} is not finite at parameter {name!r}: "
        "look at that sample and at the loss."
    )
