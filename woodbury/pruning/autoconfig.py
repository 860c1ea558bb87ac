"""The best known settings for a model, a sparsity and an effort."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from woodbury.errors import WoodburyError
from woodbury.estimation.gradients import Labels, observed, sampled
from woodbury.estimation.recipes import gauss_newton, mfac
from woodbury.estimation.row_recipes import kfac_by_rows
from woodbury.limits import Limits
from woodbury.memory.budget import row_bytes
from woodbury.model.batches import Batch, samples_in
from woodbury.model.layers import known_layers
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.pruning.costs import weights
from woodbury.pruning.damping_search import DampingSearch
from woodbury.pruning.feasibility import check_reachable, current_sparsity
from woodbury.pruning.presets import Effort
from woodbury.pruning.pruner import Pruner, PruningRecipe
from woodbury.pruning.refit.layer_goal import Reconstruction
from woodbury.pruning.refit.output_fit import FisherOfRows, Refit
from woodbury.pruning.refit.solver_choice import choose_refit, describe_refit
from woodbury.pruning.refit.with_refit import WithRefit
from woodbury.pruning.schedule import Targets, check_targets, geometric, stage_count
from woodbury.pruning.scopes import global_
from woodbury.pruning.selections import iterative_greedy

SAMPLES_PER_BATCH = 16
"""Samples of one batch of the calibration set; whole batches are held back."""


MAX_BLOCK_SIZE = 128
"""Weights of a diagonal block of a space that is too large for the whole matrix.

Blocks of 500 take four times as long to choose by (docs/log.md).
"""

MIN_BLOCK_SIZE = 16
"""Weights of a block where the memory is short."""


INNER_STEPS = 4
"""Inner steps of K-FAC by rows; eight were no better (docs/log.md)."""

RIDGE = "a hundredth of the inputs' mean square"
"""The damping of K-FAC by rows, in words."""

BY_ROWS = "K-FAC by the rows of each tensor"
"""That structure, in words."""

REFIT_MC_SAMPLES = 2
"""GGN samples per input of a refit by rows; four were no better (docs/log.md)."""

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
        rows: Rows that its Fisher is estimated from, or samples of K-FAC's factors.
        structure: That of the Fisher, in words.
        mc_samples: GGN samples per input; None for labels.
        by_rows: Whether it is K-FAC by rows, which has no rows, stages or dampings to choose.
        reuse: What makes the same Fisher of the rows of a refit; None for K-FAC by rows.
    """

    pruner: Pruner
    rows: int
    structure: str
    mc_samples: int | None
    by_rows: bool = False
    reuse: FisherOfRows | None = None

    def rows_in_words(self) -> str:
        """How many rows of which kind, for a report."""
        if self.by_rows:
            return f"none, factors of {self.rows} samples"
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
    stages = 1 if step.by_rows else stage_count(sparsity, start, effort.keep_per_stage)
    recipe: PruningRecipe = step.pruner
    carried = ""
    if held_back and not step.by_rows:
        recipe = DampingSearch(step.pruner, held_back, dampings)
    if refit is not None:
        reuse = step.reuse if refit.iterations is None and stages > 1 else None
        recipe = WithRefit.around(recipe, objective, refit, reuse)
        carried = ", later those of the refits" if reuse is not None else ""
    settings = {
        "rows": step.rows_in_words() + carried,
        "structure": step.structure,
        "damping": RIDGE if step.by_rows else ", ".join(f"{damping:g}" for damping in dampings),
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

    Where the likelihood has no directions, one gradient row per sample by `labels`. Where not even
    one row per sample has room in the memory, K-FAC by rows of each tensor; where its layers are
    unknown, fewer rows.

    Args:
        objective: The network.
        samples: Samples of its calibration set to use.
        mc_samples: GGN samples per input.
        damping: Added to the diagonal of the Fisher.
        labels: Of the gradient rows: `observed`, or `sampled` where the data has none.

    Returns:
        The recipe, its rows and its structure.

    Example:
        >>> import torch
        >>> batches = [(torch.randn(20, 3), torch.arange(20) % 4)]
        >>> dense = Objective.from_model(torch.nn.Linear(3, 4), batches)
        >>> best_step(dense, samples=20, mc_samples=2, damping=1e-3).rows
        40
    """
    d = objective.space.d
    rows_in_memory = row_bytes() // (BYTES_PER_FLOAT * d)
    if rows_in_memory < samples and _has_kfac(objective):
        return _step_by_rows(objective, samples, labels)
    block = block_size(d)
    structure = f"blocks of {block}" if block else "whole matrix"
    if objective.likelihood.directions is None:
        rows = max(1, min(samples, rows_in_memory))
        fisher = mfac(rows, damping, block=block, labels=labels)
        return StepChoice(Pruner(fisher), rows, structure, None)
    rows = max(1, min(mc_samples * samples, rows_in_memory))
    fisher = mfac(rows, damping, block=block)
    pruner = Pruner(gauss_newton(fisher, mc_samples))
    return StepChoice(pruner, rows, structure, mc_samples, reuse=fisher.of_rows)


def _step_by_rows(objective: Objective, samples: int, labels: Labels) -> StepChoice:
    """K-FAC by rows and inner steps: for networks whose gradient rows have no room.

    Its curvature is exact to solve with at any sparsity, so that inner steps on one estimate do
    what stages with new gradients do elsewhere (docs/log.md).
    """
    selection = iterative_greedy(INNER_STEPS)
    if objective.likelihood.directions is None:
        return StepChoice(
            Pruner(kfac_by_rows(samples, labels=labels), selection=selection),
            samples,
            BY_ROWS,
            None,
            by_rows=True,
        )
    fisher = gauss_newton(kfac_by_rows(samples, labels=observed), 1)
    return StepChoice(Pruner(fisher, selection=selection), samples, BY_ROWS, 1, by_rows=True)


def _has_kfac(objective: Objective) -> bool:
    """Whether every tensor of the space is the weight of a layer that K-FAC knows."""
    known = {name for name, _ in known_layers(objective.model, objective.space.shapes)}
    return known == set(objective.space.shapes)


def block_size(d: int) -> int | None:
    """The size of the diagonal blocks that d weights are best divided into.

    Args:
        d: The number of weights.

    Returns:
        None for the whole matrix, up to `Limits.whole_matrix` weights; else at most
        `MAX_BLOCK_SIZE`, and less where the memory is short.

    Example:
        >>> block_size(1000), block_size(1_000_000)
        (None, 128)
    """
    limits = Limits.current()
    if d <= limits.whole_matrix:
        return None
    return max(MIN_BLOCK_SIZE, min(MAX_BLOCK_SIZE, row_bytes() // (8 * d)))


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
    wanted = Refit(
        effort.refits, REFIT_MC_SAMPLES, damping=damping, reconstruction=Reconstruction()
    )
    return choose_refit(wanted, objective, samples, sparsity)
