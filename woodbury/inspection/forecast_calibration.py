"""Forecasts of the loss against what is measured, over sparsities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError
from woodbury.estimation.ggn import gauss_newton_rows
from woodbury.estimation.gradients import gradient_chunks
from woodbury.inspection.agreement import in_percent
from woodbury.inspection.choices import Chooser, check_sparsities, step_to
from woodbury.inspection.curvatures import Curvatures
from woodbury.inspection.forecast_report import (
    ForecastCalibration,
    ForecastPoint,
    MeasuredPoint,
)
from woodbury.limits import Limits
from woodbury.model.batches import Batch, Samples, samples_in
from woodbury.model.objective import Objective
from woodbury.monitor import report
from woodbury.pruning.saliencies import Saliency, magnitude, obs
from woodbury.pruning.updates import Update, joint, zero

SPARSITIES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)
"""Where a forecast is tried."""
CG_RESIDUAL = 1e-3
"""At which K-FAC's conjugate gradients end: forecast and loss are those of the step as it is."""
DIRECT_SIZE = 512
"""Rows of a dense factor of K-FAC's, from which on conjugate gradients are faster."""


@checks_types
def calibrate_forecast(
    objective: Objective,
    held_back: Iterable[Batch],
    curvatures: Curvatures,
    sparsities: Sequence[float] = SPARSITIES,
    *,
    saliency: Saliency = obs,
    update: Update = joint,
    seed: int = 0,
) -> ForecastCalibration:
    """Prune in one step to several sparsities, and compare the forecast with the measured loss.

    Each step has two forecasts. The first is that of the quadratic which chose it, and too low by
    as much as the choice exploits what its samples do not show. The second is the quadratic of
    samples that it has not seen, along the same step  (eq. 80).

    Args:
        objective: The network on the samples that the curvatures were estimated from.
        held_back: Samples that they were not, with labels.
        curvatures: What `estimate_curvatures` gave.
        sparsities: Removed ÷ all weights, each in (0, 1).
        saliency: What a removal costs.
        update: How the kept weights move.
        seed: Of the directions of the rows held back.

    Returns:
        The numbers and a verdict. The model is untouched.

    Raises:
        WoodburyError: If there are no samples, or a sparsity is out of range or cannot be reached.

    Example:
        >>> from woodbury.inspection import estimate_curvatures
        >>> batches = [(torch.randn(32, 4), torch.arange(32) % 3)]
        >>> objective = Objective.from_model(torch.nn.Linear(4, 3), batches)
        >>> calibration = calibrate_forecast(
        ...     objective, batches, estimate_curvatures(objective, 32), [0.2, 0.6]
        ... )
        >>> [round(point.sparsity, 1) for point in calibration.points["gauss_newton"]]
        [0.2, 0.6]
    """
    asked = check_sparsities(sparsities)
    with replace(Limits.current(), cg_residual=CG_RESIDUAL, direct_size=DIRECT_SIZE):
        return _calibrated(objective, held_back, curvatures, asked, saliency, update, seed)


def _calibrated(
    objective: Objective,
    held_back: Iterable[Batch],
    curvatures: Curvatures,
    asked: Sequence[float],
    saliency: Saliency,
    update: Update,
    seed: int,
) -> ForecastCalibration:
    choosers = [Chooser.of(objective, held_back, each, saliency, update) for each in asked[:1]]
    choosers += [replace(choosers[0], sparsity=each) for each in asked[1:]]
    for chooser in choosers:
        _ = chooser.budget  # what cannot be reached is refused before any work
    refused: dict[str, str] = {}
    drafts: dict[str, list[_Draft]] = {}
    done = 0
    by_magnitude = _by_magnitude(choosers)
    for name, fisher in curvatures.fishers.items():
        drafts[name] = []
        for chooser in choosers:
            try:
                pruned = chooser.pruned(fisher)
            except WoodburyError as error:
                refused[name] = f"At {in_percent(chooser.sparsity)}: {error}"
                break
            drafts[name].append(
                _Draft(
                    pruned.sparsity,
                    pruned.steps[0].predicted or 0.0,
                    chooser.increase(pruned.objective),
                    step_to(pruned, objective),
                )
            )
            done += 1
            report("forecasts", done, len(curvatures.fishers) * len(asked))
    there = replace(objective, batches=choosers[0].held_back)
    samples = sum(samples_in(inputs) for inputs, _ in there.batches)
    others = iter(_forms(there, [draft.step for each in drafts.values() for draft in each], seed))
    points = {
        name: tuple(
            ForecastPoint(draft.sparsity, draft.predicted, next(others), draft.measured)
            for draft in each
        )
        for name, each in drafts.items()
        if each
    }
    return ForecastCalibration(samples, choosers[0].dense, points, refused, by_magnitude)


def _by_magnitude(choosers: Iterable[Chooser]) -> tuple[MeasuredPoint, ...]:
    """Magnitude pruning to each sparsity."""
    points = []
    for chooser in choosers:
        pruned = replace(chooser, saliency=magnitude, update=zero).pruned(None)
        points.append(MeasuredPoint(pruned.sparsity, chooser.increase(pruned.objective)))
    return tuple(points)


@dataclass(frozen=True)
class _Draft:
    """A point whose forecast by other samples is not known yet."""

    sparsity: float
    predicted: float
    measured: float
    step: Tensor


def _forms(objective: Objective, steps: Sequence[Tensor], seed: int) -> list[float]:
    """½ (1/m) Σ (gᵢᵀδ)² of each step over rows of the samples  (eq. 80).

    The rows are streamed. They are Gauss–Newton rows where the likelihood has any.
    """
    if not steps:
        return []
    samples = Samples([(inputs, target) for inputs, target in objective.batches], trusted=True)
    count = sum(samples_in(inputs) for inputs, _ in samples)
    rows = replace(objective, batches=samples)
    if objective.likelihood.directions is not None:
        rows = gauss_newton_rows(rows, 1, seed)
    columns = torch.stack(list(steps), 1)
    total = torch.zeros(len(steps), dtype=torch.float64)
    done = 0
    for chunk in gradient_chunks(rows, count):
        total += (chunk @ columns.to(chunk)).double().square().sum(0).cpu()
        done += len(chunk)
        report("rows held back", done, count)
    forms = (0.5 * total / count).tolist()
    return [each if math.isfinite(each) else math.inf for each in forms]
