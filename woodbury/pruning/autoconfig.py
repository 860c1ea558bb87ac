"""The best known settings for a model, a sparsity and an effort."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from woodbury.estimation.gradients import Labels, observed, sampled
from woodbury.estimation.recipes import gauss_newton, mfac
from woodbury.estimation.row_recipes import kfac_by_rows
from woodbury.fisher.base import Fisher
from woodbury.fisher.kronecker import AllRowsAtOnce
from woodbury.limits import Limits
from woodbury.linalg.ranks import Ranks
from woodbury.memory.budget import row_bytes
from woodbury.model.batches import Batch, samples_in
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.pruning.costs import weights
from woodbury.pruning.damping_search import DampingSearch
from woodbury.pruning.feasibility import check_reachable, current_sparsity, kept_count
from woodbury.pruning.held_back import first_samples, split_samples
from woodbury.pruning.prediction import HELD_BACK_SAMPLES, LEAST_HELD_BACK
from woodbury.pruning.presets import Effort
from woodbury.pruning.pruner import Pruner, PruningRecipe
from woodbury.pruning.refit.layer_by_layer import LayerByLayer, WithLayers
from woodbury.pruning.refit.layer_goal import Reconstruction
from woodbury.pruning.refit.output_fit import FisherOfRows, Refit
from woodbury.pruning.refit.solver_choice import choose_refit, describe_refit
from woodbury.pruning.refit.with_refit import WithRefit
from woodbury.pruning.schedule import Targets, check_targets, geometric, stage_count
from woodbury.pruning.scopes import global_
from woodbury.pruning.selections import iterative_greedy
from woodbury.pruning.share_search import ShareSearch, goes_in_turn

MAX_BLOCK_SIZE = 128
"""Weights of a diagonal block of a space that is too large for the whole matrix.

Blocks of 500 take four times as long to choose by (docs/log).
"""

MIN_BLOCK_SIZE = 16
"""Weights of a block where the memory is short."""


ROWS_UP_TO = 1_500_000
"""Weights beyond which K-FAC by rows is taken even where gradient rows have room."""

LAYER_PASSES = 3
"""Passes over the samples of the layers' fit that follows K-FAC by rows; one if it is to be quick.
"""

KEPT_PER_STEP = 0.66
"""Share of the weights that an inner step of K-FAC by rows keeps at least: four steps to .8."""

INNER_STEPS = 4
"""Inner steps of K-FAC by rows where no sparsity is known; eight were no better (docs/log)."""

RIDGE = "a hundredth of the inputs' mean square"
"""The damping of K-FAC by rows, in words."""

BY_ROWS = "K-FAC by the rows of each tensor"
"""That structure, in words."""

IN_TURN = "least squares of one layer after the other"
"""The structure of a `LayerSequence`, in words."""

REFIT_MC_SAMPLES = 2
"""GGN samples per input of a refit by rows; four were no better (docs/log)."""

BYTES_PER_FLOAT = 4
"""Of a gradient row and of a direction of the output."""


@dataclass(frozen=True)
class Choice:
    """What an effort chooses for one model.

    Attributes:
        recipe: Prunes once; it is called at each stage.
        objective: The dense network on the samples that the recipe estimates curvature from.
        sparsities: Of the stages, rising.
        step: One pruning step of the recipe.
        refit: What follows each step; None for nothing.
        layers: What follows K-FAC by rows in its place.
        sequence: What prunes one layer after the other, in place of a step and a refit; else None.
        samples: That curvature and refit are estimated from.
        dampings: That each stage tries.
        settings: What was chosen, in words.
        beyond: Samples after those that are used, to judge the result on; empty without any.
    """

    recipe: PruningRecipe
    objective: Objective
    sparsities: list[Targets]
    step: StepChoice
    refit: Refit | None
    layers: LayerByLayer | None
    samples: int
    dampings: int
    settings: Mapping[str, str | int]
    beyond: list[Batch]
    sequence: ShareSearch | None = None


class StepChoice(NamedTuple):
    """What is chosen for one pruning step.

    Attributes:
        pruner: The recipe.
        rows: Rows that its Fisher is estimated from, or samples of K-FAC's factors.
        structure: That of the Fisher, in words.
        mc_samples: GGN samples per input; None for labels.
        block: Weights of a diagonal block; None for the whole matrix.
        by_rows: Whether it is K-FAC by rows, which has no rows, stages or dampings to choose.
        fisher_of_rows: What makes the same Fisher of the rows of a refit; None for K-FAC by rows.
    """

    pruner: Pruner
    rows: int
    structure: str
    mc_samples: int | None
    block: int | None = None
    by_rows: bool = False
    fisher_of_rows: mfac | None = None

    def rows_in_words(self) -> str:
        """How many rows of which kind, for a report."""
        if self.pruner.fisher is None:
            return "none"
        if self.by_rows:
            return f"none, factors of {self.rows} samples"
        if self.mc_samples is None:
            return f"{self.rows} gradient rows"
        return f"{self.rows} Gauss–Newton rows, {self.mc_samples} per input"


@dataclass(frozen=True)
class EveryNthRow:
    """The Fisher of every n-th row of a refit, which has several rows of each input in a row.

    Half of the rows take a quarter of the time of their Gram matrix, and choose no worse
    (docs/log/selection.md).

    Attributes:
        fisher: What makes a Fisher of rows.
        n: At least 1.
    """

    fisher: mfac
    n: int

    def __call__(self, rows: Tensor, space: ParameterSpace) -> Fisher:
        """The Fisher of rows 0, n, 2n, … of (m, d), which are copied."""
        return self.fisher.of_rows(rows[:: self.n], space)


def choose(objective: Objective, sparsity: Targets, effort: Effort) -> Choice:
    """The best known settings for a model, a sparsity and an effort (docs/results).

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

    Where `effort.in_turn` and the network allows it, `ShareSearch` takes the place of all five.

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
    used, beyond = first_samples(
        objective.batches, effort.samples, HELD_BACK_SAMPLES, LEAST_HELD_BACK
    )
    objective = replace(objective, batches=objective.batches.read(used))
    calibration, held_back = split_samples(objective, effort.held_back)
    objective = replace(objective, batches=objective.batches.read(calibration))
    samples = Ranks.current().total(_count_samples(calibration))
    if effort.in_turn and goes_in_turn(objective, samples, ROWS_UP_TO):
        return _in_turn(objective, sparsity, samples, beyond)
    by_rows = _takes_kfac(objective, samples)
    refit = None if by_rows else _refit_of(effort, objective, samples, sparsity)
    # A refit by conjugate gradients corrects what a second row per input would (docs/log).
    mc_samples = 1 if refit is not None and refit.iterations is not None else effort.mc_samples
    labels = sampled if any(target is None for _, target in calibration) else observed
    step = best_step(objective, samples, mc_samples, effort.dampings[0], labels)
    dampings = effort.dampings if held_back else effort.dampings[:1]
    stages = 1 if step.by_rows else stage_count(sparsity, start, effort.keep_per_stage)
    recipe: PruningRecipe = step.pruner
    carried = ""
    if held_back and not step.by_rows:
        recipe = DampingSearch(step.pruner, held_back, dampings)
    layers = None
    if step.by_rows:
        one_stage = not effort.keep_per_stage
        recipe = _with_inner_steps(step.pruner, objective, sparsity, one_stage)
        if effort.refits:
            layers = LayerByLayer(passes=1 if one_stage else LAYER_PASSES)
    if refit is not None:
        reuse = _reuse(step, refit) if stages > 1 else None
        # Nothing writes to the model before the end.
        recipe = WithRefit(recipe, objective, refit, reuse)
        carried = ", later those of the refits" if reuse is not None else ""
    if layers is not None:
        recipe = WithLayers(recipe, objective, layers)
    settings = {
        "rows": step.rows_in_words() + carried,
        "structure": step.structure,
        "damping": RIDGE if step.by_rows else ", ".join(f"{damping:g}" for damping in dampings),
        "samples_held_back": _count_samples(held_back),
        "stages": stages,
        "refit_per_stage": describe_refit(refit) if layers is None else layers.in_words(),
    }
    sparsities = geometric(sparsity, stages, start if stages > 1 else 0.0)
    return Choice(
        recipe, objective, sparsities, step, refit, layers, samples, len(dampings), settings, beyond
    )


def _in_turn(objective: Objective, sparsity: Targets, samples: int, beyond: list[Batch]) -> Choice:
    """One layer after the other: no rows, no stages, no dampings, no refit."""
    sequence = ShareSearch()
    step = StepChoice(sequence.rules, 0, IN_TURN, None)
    settings = {
        "rows": step.rows_in_words(),
        "structure": step.structure,
        "damping": RIDGE,
        "samples_held_back": 0,
        "stages": 1,
        "refit_per_stage": describe_refit(None),
    }
    target = geometric(sparsity, 1, 0.0)
    return Choice(
        sequence, objective, target, step, None, None, samples, 1, settings, beyond, sequence
    )


@Ranks.apart()
def best_step(
    objective: Objective,
    samples: int,
    mc_samples: int,
    damping: float,
    labels: Labels = observed,
) -> StepChoice:
    """The best known recipe for one pruning step: Gauss–Newton rows and the joint update.

    Where the likelihood has no directions, one gradient row per sample by `labels`. Where not even
    one row per sample has room in the memory, or the network has more than `ROWS_UP_TO` weights,
    K-FAC by rows of each tensor.

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
    if _takes_kfac(objective, samples):
        return _step_by_rows(objective, samples)
    block = block_size(d)
    structure = f"blocks of {block}" if block else "whole matrix"
    if objective.likelihood.directions is None:
        rows = max(1, min(samples, rows_in_memory))
        fisher = mfac(rows, damping, block=block, labels=labels)
        return StepChoice(Pruner(fisher), rows, structure, None, block)
    rows = max(1, min(mc_samples * samples, rows_in_memory))
    fisher = mfac(rows, damping, block=block)
    pruner = Pruner(gauss_newton(fisher, mc_samples))
    return StepChoice(pruner, rows, structure, mc_samples, block, fisher_of_rows=fisher)


def _reuse(step: StepChoice, refit: Refit) -> FisherOfRows | None:
    """What makes the next stage's Fisher of a refit's rows; None for a refit without rows."""
    if refit.iterations is not None or step.fisher_of_rows is None:
        return None
    if step.block is not None:  # their sums take a share of the time that is small
        return step.fisher_of_rows.of_rows
    return EveryNthRow(step.fisher_of_rows, max(1, refit.mc_samples // (step.mc_samples or 1)))


def _with_inner_steps(
    pruner: Pruner, objective: Objective, sparsity: Targets, one_stage: bool
) -> Pruner:
    """As many inner steps as keep `KEPT_PER_STEP` each; two at most if it is to be quick."""
    kept = kept_count(objective.space, sparsity) / objective.space.d
    steps = max(1, math.ceil(math.log(kept) / math.log(KEPT_PER_STEP))) if 0 < kept < 1 else 1
    return replace(pruner, selection=iterative_greedy(min(steps, 2) if one_stage else steps))


@Ranks.apart()
def _takes_kfac(objective: Objective, samples: int) -> bool:
    """Whether not even one gradient row per sample has room, or the network is large."""
    d = objective.space.d
    return d > ROWS_UP_TO or row_bytes() // (BYTES_PER_FLOAT * d) < samples


def _step_by_rows(objective: Objective, samples: int) -> StepChoice:
    """K-FAC by rows and inner steps: for networks whose gradient rows have no room.

    All rows of a tensor are solved at once at any sparsity, so that inner steps on one estimate do
    what stages with new gradients do elsewhere (docs/log).
    """
    fisher = kfac_by_rows(samples, approximation=AllRowsAtOnce())
    pruner = Pruner(fisher, selection=iterative_greedy(INNER_STEPS))
    mc_samples = None if objective.likelihood.directions is None else 1
    return StepChoice(pruner, samples, BY_ROWS, mc_samples, by_rows=True)


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


def _count_samples(batches: Iterable[Batch]) -> int:
    return sum(samples_in(inputs) for inputs, _ in batches)


@Ranks.apart()
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
