"""Gradient rows: per sample or per batch, with the data's labels or with sampled ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from woodbury.errors import WoodburyError, check_whole_number, user_code
from woodbury.estimation.engines import Engine, batch_gradient, same_or_fastest
from woodbury.estimation.labels import Labels, labelled, observed, sampled, sampler
from woodbury.limits import Limits
from woodbury.linalg.precision import wide_dtype
from woodbury.linalg.ranks import Ranks
from woodbury.linalg.reused_memory import ReusedMemory
from woodbury.model.batches import check_enough_data, samples_in
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.model.spread import drawn_at_once, per_run
from woodbury.monitor import report

MAX_ROWS_PER_CHUNK = 64
"""Per-sample gradients computed at once, at most; `Limits.gradient_chunk` may ask for fewer."""

COPIES = 2
"""Of a chunk of rows while it is computed: by tensor, and in one piece."""

SAMPLES_PER_PASS = 256
"""Samples of one backward pass of a mean gradient."""

WEIGHTS_TO_LOOP = 2**22
"""Weights from which on a CPU takes one sample at a time: a gradient is then longer than a cache,
and a chunk of them, which `vmapped` makes and copies, than everything else."""


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
            total += size * batch_gradient(objective, inputs, target).to(dtype)
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
        sample = sampler(objective)
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
                engine = engine or same_or_fastest(objective, inputs, target)
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
                row = batch_gradient(objective, inputs, target, memory, draw)[None]
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
            row = settings.batch**0.5 * batch_gradient(objective, inputs, target)[None]
            _check_finite(objective, row, done)
            done += 1
            yield row
            del row  # before the next is computed
            if done == count:
                return
    settings.check_enough(objective, done)


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
