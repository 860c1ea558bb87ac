"""The best known settings for a model, a sparsity and an effort."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from woodbury.estimation.labels import observed, sampled
from woodbury.linalg.ranks import Ranks
from woodbury.model.batches import Batch, samples_in
from woodbury.model.objective import Objective
from woodbury.pruning.costs import weights
from woodbury.pruning.damping_search import DampingSearch
from woodbury.pruning.feasibility import check_reachable, current_sparsity, kept_count
from woodbury.pruning.held_back import first_samples, split_samples
from woodbury.pruning.layers_first import LayersFirst, in_turn_to
from woodbury.pruning.prediction import HELD_BACK_SAMPLES, LEAST_HELD_BACK
from woodbury.pruning.presets import Effort
from woodbury.pruning.pruner import Pruner, PruningRecipe
from woodbury.pruning.refit.layer_by_layer import LayerByLayer, WithLayers
from woodbury.pruning.refit.layer_goal import Reconstruction
from woodbury.pruning.refit.output_fit import Refit
from woodbury.pruning.refit.solver_choice import choose_refit, describe_refit
from woodbury.pruning.refit.with_refit import WithRefit
from woodbury.pruning.schedule import (
    Targets,
    check_targets,
    geometric,
    one_shot,
    stage_count,
)
from woodbury.pruning.scopes import global_
from woodbury.pruning.selections import iterative_greedy
from woodbury.pruning.share_search import ShareSearch, goes_in_turn
from woodbury.pruning.step_choice import (
    RIDGE,
    ROWS_UP_TO,
    StepChoice,
    best_step,
    rows_of_refits,
    step_by_rows,
    takes_kfac,
)

LAYER_PASSES = 3
"""Passes over the samples of the layers' fit that follows K-FAC by rows; one if it is to be quick.
"""

KEPT_PER_STEP = 0.66
"""Share of the weights that an inner step of K-FAC by rows keeps at least: four steps to .8."""

IN_TURN = "least squares of one layer after the other"
"""The structure of a `LayerSequence`, in words."""

REFIT_MC_SAMPLES = 2
"""GGN samples per input of a refit by rows; four were no better (docs/log)."""


@dataclass(frozen=True)
class Choice:
    """What an effort chooses for one model.

    Attributes:
        recipe: Prunes once; it is called at each stage.
        objective: The dense network on the samples that the recipe estimates curvature from.
        sparsities: Of the stages, rising.
        step: One pruning step of the recipe, after layers in turn.
        samples: That curvature and refit are estimated from.
        settings: What was chosen, in words.
        beyond: Samples after those that are used, to judge the result on; empty without any.
        refit: What follows each step; None for nothing.
        layers: What follows K-FAC by rows in its place.
        sequence: What prunes one layer after the other in the first stage; else None.
        dampings: That each stage tries.
    """

    recipe: PruningRecipe
    objective: Objective
    sparsities: list[Targets]
    step: StepChoice
    samples: int
    settings: Mapping[str, str | int]
    beyond: list[Batch]
    refit: Refit | None = None
    layers: LayerByLayer | None = None
    sequence: ShareSearch | None = None
    dampings: int = 1


def choose(objective: Objective, sparsity: Targets, effort: Effort) -> Choice:
    """The best known settings for a model, a sparsity and an effort (docs/results).

    Where `effort.in_turn` and the network allow it, one layer is pruned after the other by a
    `ShareSearch`, as far as `in_turn_to` says. The rest is pruned in stages:

    1. Curvature: one matrix, or large diagonal blocks, of Gauss–Newton rows; of gradient rows where
       the likelihood has no directions.
    2. Update: joint.
    3. Stages: as few as keep `keep_per_stage` of the weights each, of `effort.in_turn` after layers
       in turn, else of the effort.
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
    given = _given(objective, effort)
    begun: Targets | None = None
    if effort.in_turn is not None and goes_in_turn(given.objective, given.samples, ROWS_UP_TO):
        begun = in_turn_to(sparsity, effort.in_turn.until)
        if begun == sparsity:
            return _all_in_turn(given, sparsity)
    if takes_kfac(given.objective, given.samples):
        return _by_rows(given, sparsity, effort)
    return _in_stages(given, sparsity, effort, begun)


class _Given(NamedTuple):
    """What an effort takes of the calibration set.

    Attributes:
        objective: The dense network on the samples that are pruned by.
        samples: How many these are, on all ranks.
        held_back: Those that a damping is chosen on.
        beyond: Those that come after.
    """

    objective: Objective
    samples: int
    held_back: list[Batch]
    beyond: list[Batch]


def _given(objective: Objective, effort: Effort) -> _Given:
    used, beyond = first_samples(
        objective.batches, effort.samples, HELD_BACK_SAMPLES, LEAST_HELD_BACK
    )
    objective = replace(objective, batches=objective.batches.read(used))
    calibration, held_back = split_samples(objective, effort.held_back)
    samples = Ranks.current().total(_count_samples(calibration))
    objective = replace(objective, batches=objective.batches.read(calibration))
    return _Given(objective, samples, held_back, beyond)


def _in_stages(given: _Given, sparsity: Targets, effort: Effort, begun: Targets | None) -> Choice:
    """Stages on gradient rows with refits, from the start or after layers in turn to `begun`."""
    objective, samples, held_back, beyond = given
    refit = _refit_of(effort, objective, samples, sparsity)
    # A refit by conjugate gradients corrects what a second row per input would (docs/log).
    mc_samples = 1 if refit is not None and refit.iterations is not None else effort.mc_samples
    labels = sampled if any(target is None for _, target in objective.batches) else observed
    step = best_step(objective, samples, mc_samples, effort.dampings[0], labels)
    recipe: PruningRecipe = step.pruner
    dampings = effort.dampings if held_back else effort.dampings[:1]
    if held_back:
        recipe = DampingSearch(step.pruner, held_back, dampings)
    start = current_sparsity(objective.space, sparsity, weights)
    if begun is not None and kept_count(objective.space, begun) >= objective.space.d:
        begun = None  # the network is as sparse already
    sparsities = _sparsities(effort, sparsity, start, begun)
    carried = ""
    if refit is not None:
        several = len(sparsities) - (begun is not None) > 1
        reuse = rows_of_refits(step, refit) if several else None
        # Nothing writes to the model before the end.
        recipe = WithRefit(recipe, objective, refit, reuse)
        carried = ", later those of the refits" if reuse is not None else ""
    structure, sequence = step.structure, None
    if begun is not None:
        sequence = ShareSearch()
        recipe = LayersFirst(sequence, recipe, int(kept_count(objective.space, begun)))
        structure = f"{IN_TURN}, then {step.structure}"
    settings = {
        **_settings(given, step, len(sparsities), describe_refit(refit)),
        "rows": step.rows_in_words() + carried,
        "structure": structure,
        "damping": ", ".join(f"{damping:g}" for damping in dampings),
    }
    return Choice(
        recipe,
        objective,
        sparsities,
        step,
        samples,
        settings,
        beyond,
        refit=refit,
        sequence=sequence,
        dampings=len(dampings),
    )


def _by_rows(given: _Given, sparsity: Targets, effort: Effort) -> Choice:
    """One stage of K-FAC by rows in inner steps, and a fit of the layers."""
    objective, samples, held_back, beyond = given
    step = step_by_rows(objective, samples)
    one_stage = not effort.keep_per_stage
    recipe: PruningRecipe = _with_inner_steps(step.pruner, objective, sparsity, one_stage)
    layers, fit = None, describe_refit(None)
    if effort.refits:
        layers = LayerByLayer(passes=1 if one_stage else LAYER_PASSES)
        recipe, fit = WithLayers(recipe, objective, layers), layers.in_words()
    settings = _settings(given, step, 1, fit)
    dampings = len(effort.dampings) if held_back else 1
    stages = one_shot(sparsity)
    return Choice(
        recipe, objective, stages, step, samples, settings, beyond, layers=layers, dampings=dampings
    )


def _all_in_turn(given: _Given, sparsity: Targets) -> Choice:
    """One layer after the other: no rows, no stages, no dampings, no refit."""
    objective, samples, _, beyond = given
    sequence = ShareSearch()
    step = StepChoice(sequence.rules, 0, IN_TURN, None)
    settings = _settings(given, step, 1, describe_refit(None))
    stages = one_shot(sparsity)
    return Choice(sequence, objective, stages, step, samples, settings, beyond, sequence=sequence)


def _settings(given: _Given, step: StepChoice, stages: int, refit: str) -> dict[str, str | int]:
    """What was chosen, in words, with the damping of least squares by the inputs."""
    return {
        "rows": step.rows_in_words(),
        "structure": step.structure,
        "damping": RIDGE,
        "samples_held_back": _count_samples(given.held_back),
        "stages": stages,
        "refit_per_stage": refit,
    }


def _sparsities(
    effort: Effort, sparsity: Targets, start: Targets, begun: Targets | None
) -> list[Targets]:
    """The sparsities of all stages; the first is `begun` where layers are pruned in turn to it."""
    if begun is None or effort.in_turn is None:
        count = stage_count(sparsity, start, effort.keep_per_stage)
        return geometric(sparsity, count, start if count > 1 else 0.0)
    count = stage_count(sparsity, begun, effort.in_turn.keep_per_stage)
    return [begun, *geometric(sparsity, count, begun)]


def _with_inner_steps(
    pruner: Pruner, objective: Objective, sparsity: Targets, one_stage: bool
) -> Pruner:
    """As many inner steps as keep `KEPT_PER_STEP` each; two at most if it is to be quick."""
    kept = kept_count(objective.space, sparsity) / objective.space.d
    steps = max(1, math.ceil(math.log(kept) / math.log(KEPT_PER_STEP))) if 0 < kept < 1 else 1
    return replace(pruner, selection=iterative_greedy(min(steps, 2) if one_stage else steps))


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
