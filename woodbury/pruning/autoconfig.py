"""The best known settings for a model, a sparsity and an effort."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from woodbury.errors import WoodburyError
from woodbury.estimation.gradients import Labels, observed, sampled
from woodbury.estimation.output_residuals import supports_forward_mode
from woodbury.estimation.recipes import gauss_newton, mfac
from woodbury.limits import Limits
from woodbury.model.batches import Batch, samples_in
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.model.profile import ModelProfile
from woodbury.model.space import ParameterSpace
from woodbury.pruning.costs import weights
from woodbury.pruning.damping_search import DampingSearch
from woodbury.pruning.feasibility import check_reachable, current_sparsity, kept_count
from woodbury.pruning.presets import Effort
from woodbury.pruning.pruner import Pruner, PruningRecipe
from woodbury.pruning.refit.least_squares import Refit
from woodbury.pruning.refit.reconstruction import Reconstruction
from woodbury.pruning.refit.with_refit import WithRefit
from woodbury.pruning.schedule import Targets, check_targets, geometric, stage_count
from woodbury.pruning.scopes import global_

SAMPLES_PER_BATCH = 16
"""Samples of one batch of the calibration set; whole batches are held back."""


MAX_BLOCK_SIZE = 500
"""Weights of a diagonal block of a space that is too large for the whole matrix."""

MIN_BLOCK_SIZE = 16
"""Weights of a block where the memory is short."""


CG_ITERATIONS = 100
"""Conjugate gradients of a refit that is solved by them (docs/results.md)."""

CG_MC_SAMPLES = 10
"""GGN samples per input of such a refit, which cost it no more than one (docs/results.md)."""

BYTES_PER_FLOAT = 4
"""Of a gradient row and of a direction of the output."""


@dataclass(frozen=True)
class Choice:
    """What an effort chooses for one model.

    Attributes:
        recipe: Prunes once; it is called at each stage.
        objective: The dense network on the samples that the recipe estimates curvature from.
        sparsities: Of the stages, rising.
        settings: What was chosen, in words.
    """

    recipe: PruningRecipe
    objective: Objective
    sparsities: list[Targets]
    settings: Mapping[str, str | int]


class StepChoice(NamedTuple):
    """What is chosen for one pruning step.

    Attributes:
        pruner: The recipe.
        rows: Rows that its Fisher is estimated from.
        block: Weights per diagonal block; None for the whole matrix.
        mc_samples: GGN samples per input; None for gradient rows by labels.
    """

    pruner: Pruner
    rows: int
    block: int | None
    mc_samples: int | None

    def rows_in_words(self) -> str:
        """How many rows of which kind, for a report."""
        if self.mc_samples is None:
            return f"{self.rows} gradient rows"
        return f"{self.rows} Gauss–Newton rows, {self.mc_samples} per input"


class _Split(NamedTuple):
    calibration: list[Batch]
    held_back: list[Batch]


def choose(objective: Objective, sparsity: Targets, effort: Effort) -> Choice:
    """The best known settings for a model, a sparsity and an effort (docs/results.md).

    1. Curvature: one matrix, or large diagonal blocks, of Gauss–Newton rows; of gradient rows where
       the likelihood has no directions.
    2. Update: joint.
    3. Stages: as few as keep `effort.keep_per_stage` of the weights each.
    4. Damping: the first of `effort.dampings`; with samples held back, each stage chooses among all
       of them by the loss there. Samples without labels are given labels drawn from the model.
    5. Refit: after each stage, as `choose_refit` chooses it; none where the likelihood has no
       directions.

    Args:
        objective: The dense network on the calibration set.
        sparsity: Removed ÷ all weights of the original space.
        effort: How much time to take.

    Returns:
        The recipe, its samples, the sparsities of its stages, and the same in words.

    Raises:
        WoodburyError: If there are no samples, or the sparsity is below the current one.

    Example:
        >>> import torch
        >>> from woodbury.pruning.presets import quick
        >>> batches = [(torch.randn(20, 3), torch.arange(20) % 4)]
        >>> dense = Objective.from_model(torch.nn.Linear(3, 4), batches)
        >>> choose(dense, 0.5, quick).settings["rows"]
        '20 Gauss–Newton rows, 1 per input'
    """
    check_reachable(objective.space, check_targets(sparsity), global_, weights)
    start = current_sparsity(objective.space, sparsity, weights)
    calibration, held_back = _split_samples(objective, effort)
    objective = replace(objective, batches=calibration)
    samples = _count_samples(calibration)
    refit = _refit_of(effort, objective, samples, sparsity)
    # A refit by conjugate gradients corrects what a second row per input would (docs/log.md).
    mc_samples = 1 if refit is not None and refit.iterations is not None else effort.mc_samples
    labels = sampled if any(target is None for _, target in calibration) else observed
    step = best_step(objective, samples, mc_samples, effort.dampings[0], labels)
    dampings = effort.dampings if held_back else effort.dampings[:1]
    stages = stage_count(sparsity, start, effort.keep_per_stage)
    recipe: PruningRecipe = step.pruner
    if held_back:
        recipe = DampingSearch(step.pruner, held_back, dampings)
    if refit is not None:
        recipe = WithRefit.around(recipe, objective, refit)
    settings = {
        "rows": step.rows_in_words(),
        "structure": f"blocks of {step.block}" if step.block else "whole matrix",
        "damping": ", ".join(f"{damping:g}" for damping in dampings),
        "samples_held_back": _count_samples(held_back),
        "stages": stages,
        "refit_per_stage": describe_refit(refit),
    }
    sparsities = geometric(sparsity, stages, start if stages > 1 else 0.0)
    return Choice(recipe, objective, sparsities, settings)


def best_step(
    objective: Objective,
    samples: int,
    mc_samples: int,
    damping: float,
    labels: Labels = observed,
) -> StepChoice:
    """The best known recipe for one pruning step: Gauss–Newton rows and the joint update.

    Where the likelihood has no directions, one gradient row per sample by `labels`. The rows are
    fewer than the samples give where they have no room in `Limits.memory`.

    Args:
        objective: The network.
        samples: Samples of its calibration set to use.
        mc_samples: GGN samples per input.
        damping: Added to the diagonal of the Fisher.
        labels: Of the gradient rows: `observed`, or `sampled` where the data has none.

    Returns:
        The recipe, its rows and its blocks.

    Example:
        >>> import torch
        >>> batches = [(torch.randn(20, 3), torch.arange(20) % 4)]
        >>> dense = Objective.from_model(torch.nn.Linear(3, 4), batches)
        >>> best_step(dense, samples=20, mc_samples=2, damping=1e-3).rows
        40
    """
    d = objective.space.d
    block = block_size(d)
    rows_in_memory = Limits.current().memory // (BYTES_PER_FLOAT * d)
    if objective.likelihood.directions is None:
        rows = max(1, min(samples, rows_in_memory))
        return StepChoice(
            Pruner(mfac(rows, damping, block=block, labels=labels)), rows, block, None
        )
    rows = max(1, min(mc_samples * samples, rows_in_memory))
    fisher = gauss_newton(mfac(rows, damping, block=block), mc_samples)
    return StepChoice(Pruner(fisher), rows, block, mc_samples)


def block_size(d: int) -> int | None:
    """The size of the diagonal blocks that d weights are best divided into.

    Args:
        d: The number of weights.

    Returns:
        None for the whole matrix, up to `Limits.whole_matrix` weights; else at most
        `MAX_BLOCK_SIZE`, and less where the memory is short.

    Example:
        >>> block_size(1000), block_size(1_000_000)
        (None, 500)
    """
    limits = Limits.current()
    if d <= limits.whole_matrix:
        return None
    return max(MIN_BLOCK_SIZE, min(MAX_BLOCK_SIZE, limits.memory // (8 * d)))


def choose_refit(
    refit: Refit, objective: Objective, samples: int, sparsity: Targets, required: bool = False
) -> Refit | None:
    """The solver of a refit, and whether the outputs of layers take part in it.

    1. By rows: as many GGN samples per input as were asked for, fewer where the rows have no room
       in `Limits.memory`.
    2. By conjugate gradients: where they take fewer FLOPs than rows, their directions have room,
       and the model can be differentiated forward.
    3. None: where rows have no room, and conjugate gradients take more FLOPs than one row per input
       would, or are impossible. A refit that is `required` takes the slower conjugate gradients.
    4. Without the outputs of layers: where their matrices have no room, or the network's own
       outputs give `Limits.equations_per_weight` equations per kept weight.

    Args:
        refit: What was asked for; its `mc_samples` is the most that rows take.
        objective: The dense network.
        samples: Samples of its calibration set that the refit reads.
        sparsity: Of the last stage.
        required: Whether the user asked for a refit, so that there is no way around it.

    Returns:
        The refit with the solver chosen, or None.

    Raises:
        WoodburyError: If a refit is required and impossible, or a target matches no parameter.

    Example:
        >>> import torch
        >>> batches = [(torch.randn(20, 3), torch.arange(20) % 4)]
        >>> dense = Objective.from_model(torch.nn.Linear(3, 4), batches)
        >>> choose_refit(Refit(), dense, samples=20, sparsity=0.5).iterations is None
        True
    """
    chosen = _choose_solver(refit, objective, samples, required)
    if chosen is None or chosen.reconstruction is None:
        return chosen
    equations = chosen.mc_samples * samples
    kept = kept_count(objective.space, sparsity)
    outputs_suffice = equations >= Limits.current().equations_per_weight * kept
    if outputs_suffice or not _layers_fit_in_memory(objective.space):
        return replace(chosen, reconstruction=None)
    return chosen


def _choose_solver(
    refit: Refit, objective: Objective, samples: int, required: bool
) -> Refit | None:
    """The refit by rows or by conjugate gradients: the first three rules of `choose_refit`."""
    memory = Limits.current().memory
    d = objective.space.d
    profile = ModelProfile.measure(objective)
    outputs = profile.output_elements
    bytes_per_row = BYTES_PER_FLOAT * max(d, outputs)
    mc_samples = min(refit.mc_samples, memory // (samples * bytes_per_row))
    # Rows: their Gram matrix, and a forward and a backward pass for each, about three forward.
    m = max(mc_samples, 1) * samples
    rows_flops = m**2 * d + 3 * m * profile.forward_flops
    # Conjugate gradients: forward mode and a backward pass per iteration, about five forward.
    cg_flops = 5 * CG_ITERATIONS * samples * profile.forward_flops
    directions_fit = BYTES_PER_FLOAT * samples * CG_MC_SAMPLES * outputs <= memory
    wants_cg = cg_flops < rows_flops or (required and not mc_samples)
    if wants_cg and directions_fit and supports_forward_mode(objective):
        return replace(refit, mc_samples=CG_MC_SAMPLES, iterations=CG_ITERATIONS)
    if mc_samples:
        return replace(refit, mc_samples=mc_samples)
    if required:
        raise WoodburyError(
            f"A refit on {samples} samples of {d:,} weights and {outputs:,} outputs takes more "
            f"than {memory / 2**30:.3g} GiB by rows, and conjugate gradients are impossible here: "
            "take fewer samples, or no refit."
        )
    return None


def describe_refit(refit: Refit | None) -> str:
    """A refit in words.

    Args:
        refit: The refit, or None for no refit.

    Returns:
        Its steps, solver and samples, for a report.

    Example:
        >>> describe_refit(Refit(steps=2))
        '2 steps by rows, 4 GGN samples per input'
        >>> describe_refit(None)
        'none'
    """
    if refit is None:
        return "none"
    solver = "rows" if refit.iterations is None else f"{refit.iterations} conjugate gradients"
    layers = "" if refit.reconstruction is None else ", with the outputs of layers"
    steps = "1 step" if refit.steps == 1 else f"{refit.steps} steps"
    return f"{steps} by {solver}, {refit.mc_samples} GGN samples per input{layers}"


def _split_samples(objective: Objective, effort: Effort) -> _Split:
    """The samples to estimate curvature from, and those to choose a damping on."""
    batches = list(objective.batches.in_batches(SAMPLES_PER_BATCH, effort.samples))
    if not batches:
        raise WoodburyError("The batches hold no samples: give some to calibrate on.")
    count = min(round(effort.held_back * len(batches)), len(batches) - 1)
    first_held_back = len(batches) - count
    return _Split(batches[:first_held_back], _labelled(objective, batches[first_held_back:]))


def _labelled(objective: Objective, batches: Iterable[Batch]) -> list[Batch]:
    """The batches with labels, which a loss needs: where there are none, the model draws them."""
    generator = torch.Generator(objective.weights.device).manual_seed(0)
    with eval_mode(objective.model):
        return [
            (inputs, sampled(objective, inputs, None, generator) if target is None else target)
            for inputs, target in batches
        ]


def _count_samples(batches: Iterable[Batch]) -> int:
    return sum(samples_in(inputs) for inputs, _ in batches)


def _refit_of(
    effort: Effort, objective: Objective, samples: int, sparsity: Targets
) -> Refit | None:
    """The refit of an effort, if the likelihood has directions and there is room."""
    if not effort.refits or objective.likelihood.directions is None:
        return None
    damping = effort.dampings[0]
    wanted = Refit(effort.refits, damping=damping, reconstruction=Reconstruction())
    return choose_refit(wanted, objective, samples, sparsity)


def _layers_fit_in_memory(space: ParameterSpace) -> bool:
    """Whether the layers' least-squares problems have room.

    For a tensor of r rows of i inputs: r float32 factors (i, i), a float64 sum (i, i) of moments,
    and four such temporaries for one tensor at a time.
    """
    rows = [shape[0] for shape in space.shapes.values()]
    squares = [shape[1:].numel() ** 2 for shape in space.shapes.values()]
    lasting = sum((4 * r + 8) * square for r, square in zip(rows, squares, strict=True))
    return lasting + 32 * max(squares) <= Limits.current().memory
