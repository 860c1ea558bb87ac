"""Forecast: the seconds and bytes of what an effort has chosen, from a few timed samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from woodbury.estimation.engines import fastest
from woodbury.estimation.ggn import gauss_newton_rows
from woodbury.estimation.gradients import MAX_ROWS_PER_CHUNK, mean_gradient
from woodbury.estimation.labels import sampled
from woodbury.estimation.row_costs import row_cost
from woodbury.estimation.turn_costs import turn_cost
from woodbury.fisher.blocks_of_rows import MAX_ROWS_AT_ONCE
from woodbury.limits import Limits
from woodbury.linalg.dual_solve import COLUMNS_PER_ROW
from woodbury.linalg.symmetric_blocks import block_bytes
from woodbury.memory.machine_rates import MachineRates
from woodbury.model.batches import Batch, Samples, samples_in, slice_samples
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.model.profile import ModelProfile
from woodbury.pruning.autoconfig import Choice
from woodbury.pruning.refit.output_fit import DIAGONAL_PROBES, Refit
from woodbury.pruning.run_plan import Phase
from woodbury.pruning.selections import iterative_greedy
from woodbury.pruning.share_search import ShareSearch
from woodbury.pruning.step_choice import StepChoice

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

BLOCK_SOLVES = 3
"""Products of s³ in the factor, the inverse and the update of a block."""

PRODUCT_SHARE = 0.5
"""Of the speed of large square products that those of blocks, sketches and layers have."""

SKETCHED_READS = 24
"""Reads of the rows in a sketched solve: two in each of about a dozen iterations."""

UNCOUNTED = 1.7
"""Measured seconds ÷ counted ones where rows are taken (docs/results/scale.md).

Not counted are the layers' moments, copies, masks, and passes slower than the fastest.
"""

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
        shapes: Of its tensors.
    """

    trial: Trial
    rates: MachineRates
    profile: ModelProfile
    samples: int
    n: int
    shapes: tuple[torch.Size, ...]

    def rows(self, step: StepChoice, d: int, dampings: int) -> Iterator[Phase]:
        """The phases of a pruning step of d weights on gradient rows of its own."""
        sums = self._block_sums(d, step.block)
        stored = FLOAT * step.rows * d if step.block is None else sums
        at_once = self._rows_at_once
        chunk = ROW_COPIES * FLOAT * self.n * at_once + self._activations(at_once)
        held = stored + chunk + self._vectors
        yield Phase("gradient rows", UNCOUNTED * step.rows * self.trial.row, held, 1)
        yield self.curvature(step, step.rows, d, dampings)

    def curvature(self, step: StepChoice, m: int, d: int, dampings: int) -> Phase:
        """What is made of m rows of d weights to choose by, and the update with every damping."""
        if step.block is None:
            # Two triangles of m²d multiplications: the Gram matrix once, what is made of it often.
            flops = (1.0 + dampings) * m**2 * d + dampings * m**3
            held = FLOAT * m * d + 3 * DOUBLE * m**2
            seconds = flops / (PRODUCT_SHARE * self.rates.float32)
            return Phase("choice", UNCOUNTED * seconds, held + self._vectors)
        s = step.block
        sums = 2 * m * d * s / self.rates.float32
        solves = dampings * BLOCK_SOLVES * d * s**2 / self.rates.float64
        held = self._block_sums(d, s) + self._vectors
        return Phase("choice", UNCOUNTED * (sums + solves) / PRODUCT_SHARE, held)

    def by_rows(self, choice: Choice) -> Iterator[Phase]:
        """The phases of K-FAC by rows, and of the layers' fit after it."""
        selection = choice.recipe.rules.selection
        steps = selection.steps if isinstance(selection, iterative_greedy) else 1
        passes = 0
        if choice.layers is not None:
            passes = choice.layers.passes or len(choice.objective.space.shapes)
        cost = row_cost(choice.objective, self.samples, steps, passes)
        products = (cost.moments_flops + cost.solves_flops) / (PRODUCT_SHARE * self.rates.float32)
        yield Phase("factors", self.samples * self.trial.backward, cost.bytes, 1)
        yield Phase("solves", products, cost.bytes)
        if passes:
            seconds = 2 * passes * self.samples * self.trial.forward
            yield Phase("fits of the layers", seconds, cost.bytes, 2 * passes)

    def in_turn(self, choice: Choice, search: ShareSearch) -> Iterator[Phase]:
        """The phases of one layer after the other."""
        cost = turn_cost(choice.objective, self.samples, search.sequence.positions)
        products = cost.equations_flops / self.rates.float32
        products += cost.solves_flops / self.rates.float64
        forward = 2 * self.samples * self.trial.forward
        samples = min(search.samples, self.samples)
        tried = 2 * len(search.candidates) * samples * self.trial.forward
        yield Phase("trials of the shares", UNCOUNTED * tried, cost.bytes)
        yield Phase("passes of all samples", UNCOUNTED * forward, cost.bytes, 2)
        yield Phase("layers", products / PRODUCT_SHARE, cost.bytes)

    def refit(self, refit: Refit, step: StepChoice, d: int, stages: int) -> Phase:
        """One refit of d kept weights, in a path of so many stages."""
        m = refit.mc_samples * self.samples
        forward = self.samples * self.trial.forward
        seconds = 2 * refit.steps * forward  # where it starts, and where it ends
        held = self._vectors + self._activations(self._rows_at_once)
        if refit.reconstruction is not None:
            factors, solves = self._layer_factors(d)
            seconds += refit.steps * solves / (PRODUCT_SHARE * self.rates.float64)
            held += factors
        if refit.iterations is None:
            seconds += refit.steps * (m * self.trial.row + self._dual_seconds(m, d))
            held += FLOAT * m * d + 3 * DOUBLE * m**2
            held += ROW_COPIES * FLOAT * self.n * self._rows_at_once
            if stages > 1:  # its rows become the next stage's curvature
                held += self._block_sums(d, step.block)
        else:
            products = refit.iterations + DIAGONAL_PROBES * (refit.reconstruction is not None)
            seconds += refit.steps * products * (self.samples * self.trial.backward + forward)
            held += FLOAT * m * self.profile.output_elements
        passes = refit.steps * (2 + (refit.iterations or 1))
        return Phase("refit", UNCOUNTED * seconds, held, passes)

    def _dual_seconds(self, m: int, d: int) -> float:
        """Solving by m rows of d: through a sketch, or the whole Gram matrix."""
        if d <= 2 * COLUMNS_PER_ROW * m:
            return (m**2 * d + m**3 / 3) / self.rates.float64
        sketch = COLUMNS_PER_ROW * m**3 / self.rates.float32 + m**3 / 3 / self.rates.float64
        sketch /= PRODUCT_SHARE
        return sketch + SKETCHED_READS * FLOAT * m * d / self.rates.copied

    def _layer_factors(self, d: int) -> tuple[int, float]:
        """The bytes and FLOPs of the factors of all rows of all layers, of d kept weights."""
        share = d / self.n
        rows = [(shape[0], share * shape[1:].numel()) for shape in self.shapes]
        elements = sum(count * size**2 for count, size in rows)
        return int(FLOAT * elements), sum(count * size**3 for count, size in rows)

    def _block_sums(self, d: int, size: int | None) -> int:
        """Sums in blocks; in float64, as small dampings need."""
        if size is None:
            return 0
        return block_bytes(-(-d // size), size, torch.float64) + MAX_ROWS_AT_ONCE * FLOAT * d

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
    # Only these: outputs of a language model for a usual batch may have no room.
    first = list(objective.batches.in_batches(count, count))
    objective = replace(objective, batches=Samples(first, trusted=True))
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
