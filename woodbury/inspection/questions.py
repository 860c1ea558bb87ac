"""The questions of an inspection, one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from woodbury.errors import WoodburyError
from woodbury.inspection.choices import Chooser, step_to
from woodbury.inspection.curvatures import Curvatures, estimate_curvatures
from woodbury.inspection.direction import losses_along
from woodbury.inspection.findings import Inspection, Settings
from woodbury.inspection.forecast_calibration import calibrate_forecast
from woodbury.inspection.hessian_comparison import compare_with_hessian
from woodbury.inspection.room import rows_that_fit
from woodbury.inspection.settings_tried import sensitivity
from woodbury.model.batches import Batch, Samples, samples_in
from woodbury.model.objective import Objective
from woodbury.monitor import whole
from woodbury.pruning.held_back import split_samples, with_labels
from woodbury.pruning.saliencies import magnitude
from woodbury.pruning.updates import zero

HELD_BACK = 0.5
"""Of the samples: as many to measure the loss on as to estimate from."""
MOST_HELD_BACK = 256
"""Samples that the loss is measured on at most."""
SAMPLES_AT_ONCE = 64
"""Of a batch that the loss is measured on."""


class Prepared(NamedTuple):
    """A network with samples to estimate from and others to measure on.

    Attributes:
        objective: On the samples to estimate from, with labels.
        held_back: The others, with labels.
        count: How many the first are.
        has_labels: Whether the labels of the first are those of the data.
    """

    objective: Objective
    held_back: Samples
    count: int
    has_labels: bool


def prepared(
    objective: Objective, settings: Settings, held_back: Iterable[Batch] | float = HELD_BACK
) -> Prepared:
    """Split the samples, give them labels where they have none, and see what the memory holds.

    Args:
        objective: The network on all of its samples.
        settings: What is inspected.
        held_back: The share of the samples, or other batches.

    Raises:
        WoodburyError: If there are too few samples, or there is no room for a few rows.
    """
    if isinstance(held_back, (int, float)):
        if not 0 < held_back < 1:
            raise WoodburyError(
                f"held_back is {held_back}: it is a fraction of the samples and must lie in (0, 1)."
            )
        most = round(settings.count / (1 - held_back)) + MOST_HELD_BACK
        calibration, others = split_samples(objective, held_back, most)
        if not others:
            raise WoodburyError(
                "The samples are too few to hold a part of them back: give more, or held_back=… "
                "of other training data."
            )
    else:
        calibration = list(objective.batches.in_batches(SAMPLES_AT_ONCE, settings.count))
        others = list(Samples.of(held_back).in_batches(SAMPLES_AT_ONCE, MOST_HELD_BACK))
        others = with_labels(objective, others)
    has_labels = all(target is not None for _, target in calibration)
    calibration = with_labels(objective, calibration)
    available = sum(samples_in(inputs) for inputs, _ in calibration)
    count = min(settings.count, available, rows_that_fit(objective, settings.count))
    known = replace(objective, batches=Samples(calibration))
    there = Samples(list(Samples(others).in_batches(SAMPLES_AT_ONCE, MOST_HELD_BACK)))
    return Prepared(known, there, count, has_labels)


def answers(network: Prepared, settings: Settings) -> Iterator[Inspection]:
    """Answer one question after the other, each with all answers before it.

    Args:
        network: What `prepared` gave.
        settings: What is inspected.

    Yields:
        What is known so far, so that an interruption loses nothing that was computed.

    Raises:
        WoodburyError: As `inspect`.
    """
    objective, held_back, count, has_labels = network
    chooser = Chooser.of(objective, held_back, settings.sparsity)
    known = Inspection(
        weights=objective.space.d,
        count=count,
        samples_held_back=sum(samples_in(inputs) for inputs, _ in held_back),
    )
    questions = (_of_hessian, _along, _of_settings, _of_forecast)
    with whole("part", "inspection", 1 + len(questions)) as parts:
        curvatures = estimate_curvatures(
            objective, count, settings.damping, has_labels=has_labels, seed=settings.seed
        )
        work = _Work(network, settings, chooser, curvatures)
        known = replace(known, left_out=dict(curvatures.left_out))
        parts.advance()
        for answered in questions:
            known = answered(known, work)
            parts.advance()
            yield known


class _Work(NamedTuple):
    """What every question is answered from."""

    network: Prepared
    settings: Settings
    chooser: Chooser
    curvatures: Curvatures


def _of_hessian(known: Inspection, work: _Work) -> Inspection:
    try:
        found = compare_with_hessian(
            work.network.objective, work.curvatures, seed=work.settings.seed
        )
    except WoodburyError as error:  # a model that can be differentiated once is inspected too
        return replace(known, left_out={**known.left_out, "hessian": str(error)})
    return replace(known, hessian=found)


def _along(known: Inspection, work: _Work) -> Inspection:
    by = next(iter(work.curvatures.fishers.values()))
    without = replace(work.chooser, saliency=magnitude, update=zero)
    steps = {
        "magnitude pruning": step_to(without.pruned(None), work.network.objective),
        "the joint update": step_to(work.chooser.pruned(by), work.network.objective),
    }
    scales = {} if known.hessian is None else known.hessian.scales
    along = losses_along(
        work.network.objective,
        work.network.held_back,
        steps,
        work.curvatures,
        scales=scales,
        hessian=known.hessian is not None,
    )
    return replace(known, along=along)


def _of_settings(known: Inspection, work: _Work) -> Inspection:
    found = sensitivity(
        work.network.objective,
        work.network.held_back,
        work.settings.sparsity,
        count=work.network.count,
        damping=work.settings.damping,
        curvatures=work.curvatures,
        has_labels=work.network.has_labels,
        seed=work.settings.seed,
    )
    return replace(known, sensitivity=found)


def _of_forecast(known: Inspection, work: _Work) -> Inspection:
    reached = work.network.objective.space.sparsity
    sparsities = [each for each in work.settings.sparsities if each > reached]
    found = calibrate_forecast(
        work.network.objective,
        work.network.held_back,
        work.curvatures,
        sparsities,
        seed=work.settings.seed,
    )
    return replace(known, forecast=found)
