"""The tables of an inspection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from woodbury.inspection.direction import LossAlong
from woodbury.inspection.findings import Inspection
from woodbury.inspection.forecast_report import ForecastCalibration, ForecastPoint
from woodbury.inspection.hessian_comparison import HessianComparison
from woodbury.inspection.matches import BlockMatch
from woodbury.inspection.sensitivity_report import Axis, Trial
from woodbury.reporting.grid import MISSING, Grid, Mark, aligned, each_rounded, percent, with_minus
from woodbury.reporting.inspection_charts import in_words


def verdicts(found: Inspection) -> Grid:
    """Questions and their answers in words.

    Args:
        found: What is known.
    """
    rows = tuple(found.verdicts.items())
    return Grid("In words", ("question", "answer"), rows)


def left_out(reasons: Mapping[str, str]) -> Grid:
    """What could not be computed.

    Args:
        reasons: What -> why.
    """
    rows = tuple((in_words(name), why) for name, why in reasons.items())
    return Grid("Left out", ("what", "why"), rows)


def sources(found: Inspection) -> Grid:
    """Where each number of the page is in report.json, and which function alone gives it.

    Args:
        found: What is known.
    """
    rows = [("In words", "verdicts", "inspect")]
    if found.hessian is not None:
        rows += [
            ("Fisher, Gauss–Newton, Hessian", "hessian.matches", "compare_with_hessian"),
            ("its spectra", "hessian.spectra", "compare_with_hessian"),
            ("Some weights, exactly", "hessian.blocks", "compare_with_hessian"),
        ]
    if found.along:
        rows.append(("Along a step", "along", "loss_along"))
    if found.sensitivity is not None:
        rows.append(("Settings", "sensitivity.axes", "sensitivity"))
    if found.forecast is not None:
        rows += [
            ("Forecasts", "forecast.points", "calibrate_forecast"),
            ("Magnitude pruning", "forecast.magnitude", "calibrate_forecast"),
        ]
    return Grid(
        "Where each number is from",
        ("part of the page", "key of report.json", "function of woodbury.inspection"),
        tuple(rows),
        note="One run of the command gives all of them; the function gives one part in Python.",
    )


def along_step(found: LossAlong) -> Grid:
    """The curvature along a step, by each estimate.

    Args:
        found: What was measured.
    """
    names = list(found.curvatures)
    forms = [None, found.hessian, *found.curvatures.values()]
    ratios = [None, None if found.hessian is None else 1.0, *map(found.ratios.get, names)]
    scales = [None, None, *map(found.scales.get, names)]
    halves = [0.5 * form for form in found.curvatures.values()]
    increases = [_at_full(found), _taylor_at_full(found), *halves]
    scaled = [
        None if form is None or scale is None else 0.5 * form * scale
        for form, scale in zip(forms, scales, strict=True)
    ]
    columns = map(each_rounded, (forms, ratios, scales, increases, scaled))
    models = ("measured", "exact Hessian", *map(in_words, names))
    return Grid(
        f"Curvature along {found.direction}",
        ("model", "δᵀCδ", "÷ Hessian", "scale", "increase at full step", "scaled"),
        tuple(zip(models, *columns, strict=True)),
        note="The scale brings an estimate nearest to the Hessian over all directions; the exact "
        "second order has the slope too, which pruning takes as 0.",
    )


def _at_full(found: LossAlong) -> float | None:
    return dict(zip(found.fractions, found.measured, strict=True)).get(1.0)


def _taylor_at_full(found: LossAlong) -> float | None:
    taylor = found.taylor
    return None if taylor is None else dict(zip(found.fractions, taylor, strict=True)).get(1.0)


def matches(found: HessianComparison) -> Grid:
    """Each whole estimate beside the exact Hessian.

    Args:
        found: What was compared.
    """
    names = list(found.matches)
    known = [found.matches[name] for name in names]
    spectra = [found.spectra[name] for name in names]
    own = found.hessian
    cosines = [with_minus(f"{match.cosine:.3f} ± {match.cosine_error:.3f}") for match in known]
    columns = [
        ["1", *cosines],
        [MISSING, *aligned([match.scale for match in known])],
        [MISSING, *(percent(match.error, 0) for match in known)],
        [MISSING, *(percent(match.error_scaled, 0) for match in known)],
        aligned([own.trace, *(each.trace for each in spectra)]),
        aligned([own.top[0], *(each.top[0] for each in spectra)]),
        ["1", *(MISSING if e.overlap is None else f"{e.overlap:.2f}" for e in spectra)],
    ]
    rows = zip(["exact Hessian", *map(in_words, names)], *columns, strict=True)
    return Grid(
        "Fisher, Gauss–Newton, Hessian",
        (
            "estimate",
            "cosine",
            "scale",
            "off by",
            "off by, scaled",
            "trace",
            "top eigenvalue",
            "overlap",
        ),
        tuple(rows),
        note=f"The Hessian is that of {found.samples} samples. Cosine, scale and distance are in "
        f"Frobenius norms, by {found.probes} random vectors; the overlap is the share of the "
        f"{len(own.top)} leading eigenvectors that lies among the Hessian's. Its least eigenvalue "
        f"is at most {with_minus(f'{own.least:.3g}')}. Swapped: its factors in the wrong order.",
    )


def blocks(found: Sequence[BlockMatch]) -> Grid:
    """The cosines of each estimate to parts of the Hessian that are exact.

    Args:
        found: The parts.
    """
    names = list(found[0].matches)
    rows = []
    for block in found:
        cosines = [with_minus(f"{block.matches[name].cosine:.3f}") for name in names]
        rows.append((block.tensor, f"{block.weights}", *cosines))
    return Grid(
        "Some weights of some tensors, exactly",
        ("tensor", "weights", *map(in_words, names)),
        tuple(rows),
        note="The cosine of each estimate to the exact Hessian by these weights.",
    )


def block_errors(found: Sequence[BlockMatch]) -> Grid:
    """How far each estimate is from parts of the Hessian that are exact.

    Args:
        found: The parts.
    """
    names = list(found[0].matches)
    rows = [
        (block.tensor, *(percent(block.matches[name].error, 0) for name in names))
        for block in found
    ]
    return Grid(
        "How far off they are",
        ("tensor", *map(in_words, names)),
        tuple(rows),
        note="What each estimate is off by, as a share of the Hessian by these weights, without a "
        "factor: 100 % is as far as no estimate.",
    )


def setting(axis: Axis) -> Grid:
    """The trials of one setting, with bars for what they choose in common.

    Args:
        axis: The setting.
    """
    trials = _in_order(axis)
    increases = aligned([trial.increase for trial in trials], digits=4)
    rows = []
    marks: list[Mark | None] = []
    for trial, increase in zip(trials, increases, strict=True):
        rows.append((trial.value, _share(trial), _correlation(trial), increase))
        shown = None
        if trial.shared is not None:
            shown = Mark(0.0, trial.shared, f"{trial.value}: {_share(trial)}")
        marks.append(shown)
    best = axis.best
    bold = {(row, 3) for row, trial in enumerate(trials) if trial is best}
    notes = [f"{trial.value}: {trial.refused}" for trial in trials if trial.refused]
    return Grid(
        f"Setting: {axis.name}",
        (axis.name, "removed in common", "rank correlation", "increase of the loss"),
        tuple(rows),
        best=frozenset(bold),
        note=" ".join([f"Removed in common with {axis.reference}, the reference.", *notes]),
        marks={1: marks},
    )


def _in_order(axis: Axis) -> list[Trial]:
    """The trials by their values where all are numbers, else the reference first."""
    try:
        return sorted(axis.trials, key=lambda trial: float(trial.value))
    except ValueError:
        return list(axis.trials)


def _share(trial: Trial) -> str:
    return MISSING if trial.shared is None else percent(trial.shared, 1)


def _correlation(trial: Trial) -> str:
    known = trial.rank_correlation
    return MISSING if known is None else with_minus(f"{known:.4f}")


def forecasts(name: str, points: Sequence[ForecastPoint], samples: int) -> Grid:
    """Forecasts by one curvature beside measured increases.

    Args:
        name: Of the curvature.
        points: Of rising sparsity.
        samples: That the loss is measured on.
    """
    columns = (
        each_rounded([point.predicted for point in points]),
        each_rounded([point.held_back for point in points]),
        each_rounded([point.measured for point in points]),
    )
    places = [percent(point.sparsity, 1) for point in points]
    return Grid(
        f"Forecasts by {in_words(name)}",
        ("sparsity", "by its own rows", "by rows held back", "measured"),
        tuple(zip(places, *columns, strict=True)),
        note=f"By {in_words(name)}, on {samples} samples held back.",
    )


def without_forecast(found: ForecastCalibration) -> Grid | None:
    """Magnitude pruning beside the best estimate.

    Args:
        found: All forecasts.

    Returns:
        None where it was not measured.
    """
    if not found.magnitude:
        return None
    names = [found.best_at(point.sparsity) for point in found.magnitude]
    least = [
        None if name is None else _measured(found.points[name], point.sparsity)
        for name, point in zip(names, found.magnitude, strict=True)
    ]
    columns = (
        each_rounded([point.measured for point in found.magnitude]),
        each_rounded(least),
        [MISSING if name is None else in_words(name) for name in names],
    )
    places = [percent(point.sparsity, 1) for point in found.magnitude]
    return Grid(
        "Magnitude pruning",
        ("sparsity", "magnitude", "best estimate", "which"),
        tuple(zip(places, *columns, strict=True)),
        note="Measured increases of the loss, by magnitude pruning and by the best estimate of the "
        "curvature.",
    )


def _measured(points: Sequence[ForecastPoint], sparsity: float) -> float:
    """The measured increase at a sparsity."""
    return next(point.measured for point in points if point.sparsity == sparsity)


def refused(found: ForecastCalibration) -> Grid | None:
    """The estimates without a forecast, or without all of them.

    Args:
        found: All forecasts.

    Returns:
        None where there are none.
    """
    rows = tuple((in_words(name), why) for name, why in found.refused.items())
    return Grid("Without a forecast", ("curvature", "why"), rows) if rows else None
