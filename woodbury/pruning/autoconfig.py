"""Effort: how much time to give, and the best known settings for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from woodbury.errors import WoodburyError
from woodbury.estimation.gradients import Labels, observed, sampled
from woodbury.estimation.output_residuals import Residuals, activation_sizes
from woodbury.estimation.recipes import gauss_newton, mfac
from woodbury.limits import Limits
from woodbury.model.batches import Batch, regrouped, samples_in
from woodbury.model.flop_count import flops
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.model.space import ParameterSpace
from woodbury.pruning.budget import check_reachable, current_sparsity, kept_count
from woodbury.pruning.costs import weights
from woodbury.pruning.damping_search import DampingSearch
from woodbury.pruning.presets import Effort
from woodbury.pruning.pruner import Pruner, Recipe
from woodbury.pruning.refit.least_squares import Refit
from woodbury.pruning.refit.reconstruction import Reconstruction
from woodbury.pruning.refit.with_refit import WithRefit
from woodbury.pruning.schedule import Targets, check_targets, geometric
from woodbury.pruning.scopes import global_

BLOCK = 500


ITERATIONS, DIRECTIONS = 100, 10
"""Of a refit by iterations (docs/results.md)."""


@dataclass(frozen=True)
class Choice:
    """What an effort comes to on one model: the recipe, the sparsities of its stages, and the same in words."""

    recipe: Recipe
    objective: Objective
    sparsities: list[Targets]
    settings: Mapping[str, Any]


def choose(objective: Objective, sparsity: Targets, effort: Effort) -> Choice:
    """The best known settings for a model and an effort: Gauss–Newton rows, joint update, stages, refits (docs/results.md).

    Without labels, those held back are drawn from the model. Raises WoodburyError when there are no samples, and for
    targets below what is reached already.
    """
    check_reachable(objective.space, check_targets(sparsity), global_, weights)
    start = current_sparsity(objective.space, sparsity, weights)
    batches = list(regrouped(objective.batches, 16, effort.samples))
    if not batches:
        raise WoodburyError("The batches hold no samples: give some to calibrate on.")
    apart = min(round(effort.held_back * len(batches)), len(batches) - 1)
    seen, held = (
        batches[: len(batches) - apart],
        _labelled(objective, batches[len(batches) - apart :]),
    )
    exact = objective.likelihood.directions is not None
    samples = sum(samples_in(inputs) for inputs, _ in seen)
    refit = None
    if effort.refits and exact:
        asked = Refit(
            effort.refits,
            damping=effort.dampings[0],
            reconstruction=Reconstruction(),
        )
        refit = choose_refit(asked, replace(objective, batches=seen), samples, sparsity)
    mended = (
        refit is not None and refit.iterations is not None
    )  # what they mend needs no better choice (docs/log.md)
    mc_samples = effort.mc_samples if exact and not mended else 1
    labels = sampled if any(target is None for _, target in seen) else observed
    pruner, count, block = best_step(objective, samples, mc_samples, effort.dampings[0], labels)
    stages = stages_to(sparsity, start, effort.keep_per_stage)
    sparsities = geometric(sparsity, stages, start if stages > 1 else 0.0)
    settings = {
        "rows": f"{count} Gauss–Newton rows, {mc_samples} to a sample"
        if exact
        else f"{count} gradients",
        "structure": f"blocks of {block}" if block else "whole matrix",
        "damping": ", ".join(
            f"{damping:g}" for damping in (effort.dampings if held else effort.dampings[:1])
        ),
        "samples held back": sum(samples_in(inputs) for inputs, _ in held),
        "stages": len(sparsities),
        "refits after each": describe_refit(refit),
    }
    recipe = DampingSearch(pruner, held, effort.dampings) if held else pruner
    recipe = WithRefit(recipe, objective, refit) if refit else recipe
    return Choice(recipe, replace(objective, batches=seen), sparsities, settings)


def best_step(
    objective: Objective,
    samples: int,
    mc_samples: int,
    damping: float,
    labels: Labels = observed,
) -> tuple[Pruner, int, int | None]:
    """The best known recipe for one step, how many rows it takes, and in which blocks: Gauss–Newton rows, `mc_samples` to a sample,
    or one gradient by `labels` where the likelihood has no directions."""
    exact, d = objective.likelihood.directions is not None, objective.space.d
    count = max(1, min((mc_samples if exact else 1) * samples, Limits.current().memory // (4 * d)))
    block = fitting_block(d)
    rows = mfac(count, damping, block=block, labels=observed if exact else labels)
    return Pruner(gauss_newton(rows, mc_samples) if exact else rows), count, block


def _labelled(objective: Objective, batches: Iterable[Batch]) -> list[Batch]:
    """The batches, those without labels with some drawn from the model: what a loss is measured on needs them."""
    generator = torch.Generator(objective.weights.device).manual_seed(0)
    with eval_mode(objective.model):
        return [(x, sampled(objective, x, None, generator) if y is None else y) for x, y in batches]


def choose_refit(
    refit: Refit, objective: Objective, samples: int, sparsity: Targets, patient: bool = False
) -> Refit | None:
    """The refit by rows, in as many directions as have room, or by iterations where those cost fewer FLOPs and can be.

    Where rows have no room in Limits.current().memory, and iterations are the slower or not possible: None; the `patient` get iterations all
    the same, or a WoodburyError. The outputs of layers are left out where what they ask of every row of a weight has no room,
    and where the network's own say Limits.current().equations_per_weight of the weights that stay at `sparsity`. Raises WoodburyError for a target that
    matches no parameter.
    """
    found = _choose_solver(refit, objective, samples, patient)
    if found is None or found.reconstruction is None:
        return found
    enough = found.mc_samples * samples >= Limits.current().equations_per_weight * kept_count(
        objective.space, sparsity
    )
    return (
        replace(found, reconstruction=None)
        if enough or not _layers_fit_in_memory(objective.space)
        else found
    )


def _choose_solver(refit: Refit, objective: Objective, samples: int, patient: bool) -> Refit | None:
    d, forward, (*_, out) = (
        objective.space.d,
        _forward_flops(objective),
        activation_sizes(objective),
    )
    mc_samples = min(refit.mc_samples, Limits.current().memory // (4 * samples * max(d, out)))
    m = max(mc_samples, 1) * samples
    rows, iterations = m**2 * d + 3 * m * forward, 5 * ITERATIONS * samples * forward
    fits = 4 * samples * DIRECTIONS * out <= Limits.current().memory
    if (
        (iterations < rows or (patient and not mc_samples))
        and fits
        and _supports_forward_mode(objective)
    ):
        return replace(refit, mc_samples=DIRECTIONS, iterations=ITERATIONS)
    if patient and not mc_samples:
        raise WoodburyError(
            f"A refit on {samples} samples of {d:,} weights and {out:,} outputs takes more than {Limits.current().memory / 2**30:.3g} GiB by "
            "rows, and no iterations are possible: take fewer samples, or no refit."
        )
    return replace(refit, mc_samples=mc_samples) if mc_samples else None


def describe_refit(refit: Refit | None) -> str:
    """A refit in words."""
    if refit is None:
        return "0"
    how = "by rows" if refit.iterations is None else f"{refit.iterations} iterations"
    layers = "" if refit.reconstruction is None else ", and the outputs of layers"
    return f"{refit.steps}, {how}, {refit.mc_samples} directions to a sample{layers}"


def _layers_fit_in_memory(space: ParameterSpace) -> bool:
    """Whether a matrix over the inputs of every row of every weight does, a sum of float64 for each weight, and a few such
    for one of them at a time."""
    squares = [(shape[0], shape[1:].numel() ** 2) for shape in space.shapes.values()]
    return (
        sum((4 * rows + 8) * square for rows, square in squares) + 32 * max(s for _, s in squares)
        <= Limits.current().memory
    )


def _forward_flops(objective: Objective) -> float:
    """FLOPs of a sample's forward pass, by the weights of all its parameters."""
    inputs, _ = next(regrouped(objective.batches, 1, 1))
    each = flops(objective.model, inputs).per_weight
    return sum(
        each[name] * parameter.numel() for name, parameter in objective.model.named_parameters()
    )


def _supports_forward_mode(objective: Objective) -> bool:
    """Whether the model has a forward mode, at a precision that bears iterations."""
    few = replace(objective, batches=list(regrouped(objective.batches, 1, 1)))
    if objective.weights.dtype not in (torch.float32, torch.float64):
        return False
    try:
        Residuals.between(few, few, 1, 0).curved(few.weights)
    except Exception:  # what an operation without a forward mode raises has no common type
        return False
    return True


def fitting_block(d: int) -> int | None:
    """The size of the blocks that d weights are best taken in, None for the whole matrix."""
    return (
        None
        if d <= Limits.current().whole_matrix
        else max(16, min(BLOCK, Limits.current().memory // (8 * d)))
    )


def stages_to(sparsity: Targets, start: Targets, keeps: float) -> int:
    """How many stages from sparsity `start` keep the fraction `keeps` each, at least; one if that is 0."""
    goals = sparsity if isinstance(sparsity, Mapping) else {"*": sparsity}
    starts = start if isinstance(start, Mapping) else dict.fromkeys(goals, start)
    kept = min((1 - goal) / (1 - starts[pattern]) for pattern, goal in goals.items())
    return max(1, math.ceil(math.log(kept) / math.log(keeps) - 1e-9)) if keeps else 1
