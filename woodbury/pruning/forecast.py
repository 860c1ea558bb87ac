"""Forecast: the seconds and bytes of what an effort has chosen, from a few timed samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from woodbury.estimation.ggn import gauss_newton_rows
from woodbury.estimation.gradients import MAX_ROWS_PER_CHUNK, fastest, mean_gradient, sampled
from woodbury.limits import Limits
from woodbury.memory.machine_rates import MachineRates
from woodbury.model.batches import Batch, samples_in, slice_samples
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.model.profile import ModelProfile
from woodbury.pruning.autoconfig import StepChoice
from woodbury.pruning.refit.output_fit import DIAGONAL_PROBES, Refit
from woodbury.pruning.run_plan import Phase

TRIAL_SAMPLES = 256
"""Samples of a timed pass, at most: the speed of small networks depends on the batch."""

TRIAL_SECONDS = 0.3
"""What a timed forward pass should take."""

REPEATS = 4
"""Further trials of a pass that is shorter."""

FLOAT = 4
"""Bytes of float32."""

DOUBLE = 8
"""Bytes of float64."""

ROW_COPIES = 3
"""Copies of a chunk of rows in `torch.func.vmap`: by tensor, flattened, and checked."""

ACTIVATIONS_KEPT = 3
"""What a backward pass holds for each element that a module returns."""

VECTORS = 12
"""Vectors over all weights that a stage holds in float32: weights, scores, masks, steps."""


class Trial(NamedTuple):
    """What one sample takes in a model on this machine.

    Attributes:
        forward: Seconds of a forward pass.
        backward: Seconds of a forward and a backward pass.
        row: Seconds of a gradient row.
    """

    forward: float
    backward: float
    row: float

    @classmethod
    def of(cls, objective: Objective, rows: bool) -> Trial:
        """Time the first samples of an objective.

        Args:
            objective: The network, its data and its likelihood.
            rows: Whether gradient rows are taken, for which a large network has no room.

        Returns:
            Seconds per sample.
        """
        inputs, _ = next(objective.batches.in_batches(1, 1))
        alone = _seconds(lambda: _forward(objective, inputs))
        count = max(1, min(TRIAL_SAMPLES, int(TRIAL_SECONDS / alone)))
        directed, (inputs, target) = _directed(objective, count)
        count = samples_in(inputs)
        forward = _seconds(lambda: _forward(objective, inputs)) / count
        once = replace(directed, batches=[(inputs, target)])
        backward = _seconds(lambda: mean_gradient(once)) / count
        row = backward
        if rows:
            few = slice_samples((inputs, target), 0, min(count, MAX_ROWS_PER_CHUNK))
            with eval_mode(objective.model):
                engine = fastest(directed, *few)
                row = _seconds(lambda: engine(directed, *few)) / samples_in(few[0])
        return cls(forward, backward, row)


@dataclass(frozen=True)
class Forecast:
    """What turns choices into seconds and bytes.

    Attributes:
        trial: Of the model.
        rates: Of the machine.
        profile: Of the model.
        samples: That are read.
        n: Weights in the space.
    """

    trial: Trial
    rates: MachineRates
    profile: ModelProfile
    samples: int
    n: int

    def stage(self, step: StepChoice, d: int) -> Iterator[Phase]:
        """The phases of one pruning step of d weights."""
        if step.by_rows:
            yield from self.kfac(step)
            return
        if step.block is None:
            yield self.gradient_rows(step.rows, FLOAT * step.rows * d)
            yield self.whole_matrix(step.rows, d)
        else:
            yield self.gradient_rows(step.rows, DOUBLE * d * step.block)
            yield self.blocks(step.rows, d, step.block)

    def kfac(self, step: StepChoice) -> Iterator[Phase]:
        """The factors of all layers, and the inner steps on them."""
        yield Phase("factors", self.samples * self.trial.backward, self._vectors, 1)

    def gradient_rows(self, m: int, stored: int) -> Phase:
        """Gradient rows, m of them, of which `stored` bytes are kept in whatever form."""
        at_once = self._rows_at_once
        chunk = ROW_COPIES * FLOAT * self.n * at_once + self._activations(at_once)
        return Phase("gradient rows", m * self.trial.row, stored + chunk + self._vectors, 1)

    def whole_matrix(self, m: int, d: int) -> Phase:
        """The Gram matrix of m rows of d, its factor, and the whitened rows."""
        flops = 2 * m**2 * d + m**3  # two triangles of m²d multiplications
        held = FLOAT * m * d + 3 * DOUBLE * m**2
        return Phase("curvature", flops / self.rates.float32, held + self._vectors)

    def blocks(self, m: int, d: int, s: int) -> Phase:
        """Sums of m rows in blocks of s, their factors, inverse elements and the update."""
        flops = 2 * m * d * s + 3 * d * s**2
        held = 3 * DOUBLE * d * s
        return Phase("curvature", flops / self.rates.float64, held + self._vectors)

    def refit(self, refit: Refit, d: int) -> Phase:
        """One refit of d kept weights."""
        m = refit.mc_samples * self.samples
        layers = 2 * self.samples * self.trial.forward if refit.reconstruction else 0.0
        compared = 4 * self.samples * self.trial.forward  # the goal, and the steps that are tried
        if refit.iterations is None:
            solve = (m**2 * d + m**3 / 3) / self.rates.float64
            seconds = m * self.trial.row + solve
            held = FLOAT * m * d + DOUBLE * m**2
            held += ROW_COPIES * FLOAT * self.n * self._rows_at_once
        else:
            products = refit.iterations + DIAGONAL_PROBES
            seconds = products * self.samples * (self.trial.backward + self.trial.forward)
            held = FLOAT * m * self.profile.output_elements
        held += self._activations(self._rows_at_once) + self._vectors
        passes = 2 + (refit.iterations or 0)
        return Phase("refit", refit.steps * (seconds + layers + compared), held, passes)

    @property
    def _rows_at_once(self) -> int:
        fitting = Limits.current().gradient_chunk // (FLOAT * self.n)
        return max(1, min(MAX_ROWS_PER_CHUNK, fitting))

    @property
    def _vectors(self) -> int:
        return VECTORS * FLOAT * self.n

    def _activations(self, samples: int) -> int:
        return ACTIVATIONS_KEPT * FLOAT * samples * self.profile.total_activation_elements


def merged(phases: Sequence[Phase]) -> tuple[Phase, ...]:
    """The phases of all stages, those of one name together: seconds in sum, bytes at most.

    Args:
        phases: In the order in which they run.

    Returns:
        One for each name, in the order of their first run.
    """
    return tuple(_merged(phases))


def _merged(phases: Sequence[Phase]) -> Iterator[Phase]:
    for name in dict.fromkeys(phase.name for phase in phases):
        same = [phase for phase in phases if phase.name == name]
        seconds = sum(phase.seconds for phase in same)
        passes = sum(phase.passes for phase in same)
        yield Phase(name, seconds, max(phase.peak_bytes for phase in same), passes)


def _directed(objective: Objective, count: int) -> tuple[Objective, Batch]:
    """The objective whose gradients are the rows, and `count` of its samples."""
    if objective.likelihood.directions is not None:
        objective = gauss_newton_rows(objective, 1)
    inputs, target = next(objective.batches.in_batches(count, count))
    if target is None:
        target = sampled(objective, inputs, target, None)
    return objective, (inputs, target)


@torch.no_grad()
def _forward(objective: Objective, inputs: Any) -> None:
    with eval_mode(objective.model):
        objective.forward(objective.parameters, inputs)


def _seconds(call: Callable[[], object]) -> float:
    """The fastest of some calls: other work on the machine makes single ones slower."""
    seconds = _timed(call)
    if seconds < TRIAL_SECONDS:
        seconds = min(seconds, *(_timed(call) for _ in range(REPEATS)))
    return seconds


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start
