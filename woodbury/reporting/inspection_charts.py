"""The charts of an inspection: along a step, spectra, dampings, forecasts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from woodbury.inspection.curvatures import WORDS
from woodbury.inspection.direction import LossAlong
from woodbury.inspection.forecast_report import ForecastPoint
from woodbury.inspection.matches import BlockMatch
from woodbury.inspection.sensitivity_report import Axis as Setting
from woodbury.reporting.axes import Axis, decades, linear, sparsities, up_to_the_last
from woodbury.reporting.charts import Chart, Line, styles
from woodbury.reporting.grid import percent, with_minus
from woodbury.reporting.plots import Value, points_of

ROOM_ABOVE = 1.5
"""Of the largest measured increase: predictions that are larger are drawn at the top."""
DECADES_BELOW = 6
"""Of a spectrum, below its largest eigenvalue."""
DECADES_OF_FORECASTS = 5
"""Below the largest increase; smaller ones are drawn at the bottom."""


def in_words(name: str) -> str:
    """What a curvature is called in a table."""
    return WORDS.get(name, name)


def along_step(found: LossAlong, *, scaled: bool) -> Chart:
    """The measured increase of the loss along a step, and the quadratic models of it.

    Args:
        found: What was measured.
        scaled: Whether each curvature is multiplied by its scale to the Hessian.
    """
    curves: dict[str, Sequence[float]] = {"measured": found.measured}
    if found.taylor is not None:
        curves["exact 2nd order"] = found.taylor
    for name in found.scales if scaled else found.curvatures:
        curves[in_words(name)] = found.predicted(name, scaled=scaled)
    finite = [value for value in found.measured if math.isfinite(value)]
    top = ROOM_ABOVE * max(map(abs, finite), default=1.0)
    shown = [value for curve in curves.values() for value in curve if abs(value) <= top]
    x = up_to_the_last("share of the step", found.fractions)
    y = linear("increase of the loss", shown)
    with_scale = ", each curvature times its scale to the Hessian" if scaled else ""
    words = (
        f"Increase of the loss along {found.direction} on samples that are held back, measured and "
        f"by local quadratic models{with_scale}. What is above the chart is drawn at its top."
    )
    title = f"Along {found.direction}{', scaled' if scaled else ''}"
    return Chart(title, words, x, y, _lines(found.fractions, curves, x, y, "at {x:g}: {y}"))


def spectra(block: BlockMatch) -> Chart | None:
    """The eigenvalues of a part of the Hessian and of the estimates, logarithmic.

    Args:
        block: The part.

    Returns:
        None where the Hessian has no positive eigenvalue.
    """
    curves: dict[str, Sequence[float]] = {"Hessian": block.hessian}
    curves |= {in_words(name): each.eigenvalues for name, each in block.matches.items()}
    largest = max(max(curve, default=0.0) for curve in curves.values())
    if block.hessian[0] <= 0 or not math.isfinite(largest):
        return None
    floor = largest * 10.0**-DECADES_BELOW
    positive = {
        name: [value if value > floor else math.nan for value in curve]
        for name, curve in curves.items()
    }
    x = up_to_the_last("eigenvalue number", [0.0, float(block.weights)])
    y = decades("eigenvalue", [v for c in positive.values() for v in c if math.isfinite(v)])
    numbers = [float(number) for number in range(1, block.weights + 1)]
    words = (
        f"Eigenvalues by {block.weights} weights of {block.tensor}, the largest first. Those "
        "that are not positive, or a millionth of the largest, are left out."
    )
    lines = _lines(numbers, positive, x, y, "number {x:g}: {y}")
    return Chart(f"Spectra by {block.tensor}", words, x, y, lines)


def losses_over(setting: Setting) -> Chart | None:
    """The increase of the loss over the values of a setting that are numbers.

    Args:
        setting: Such as the damping.

    Returns:
        None where fewer than two of them are numbers with a loss.
    """
    found = []
    for trial in setting.trials:
        try:
            value = float(trial.value)
        except ValueError:
            continue
        if trial.increase is not None and math.isfinite(trial.increase):
            found.append((value, trial.increase))
    if len(found) < 2:
        return None
    found.sort()
    places = [place for place, _ in found]
    x = decades(setting.name, places)
    y = linear("increase of the loss", [0.0, *(increase for _, increase in found)])
    curves = {"held back": [increase for _, increase in found]}
    words = (
        f"Increase of the loss on samples held back after pruning in one step, by the "
        f"{setting.name}."
    )
    title = f"Loss by the {setting.name}"
    return Chart(title, words, x, y, _lines(places, curves, x, y, "{x:g}: {y}"))


def forecasts(name: str, points: Sequence[ForecastPoint]) -> Chart | None:
    """Forecast and measured increases of the loss over the sparsity, logarithmic.

    Args:
        name: Of the curvature.
        points: Of rising sparsity.

    Returns:
        None where no increase was measured.
    """
    curves = {
        "measured": [point.measured for point in points],
        "by its own rows": [point.predicted for point in points],
        "by rows held back": [point.held_back for point in points],
    }
    known = [v for curve in curves.values() for v in curve if 0 < v < math.inf]
    if not known or not any(0 < point.measured < math.inf for point in points):
        return None
    floor = max(known) * 10.0**-DECADES_OF_FORECASTS
    positive = {
        key: [max(value, floor) if value > 0 else math.nan for value in curve]
        for key, curve in curves.items()
    }
    places = [point.sparsity for point in points]
    x = sparsities(places)
    y = decades("increase of the loss", [max(value, floor) for value in known])
    lines = []
    for line_name, style in styles(list(positive)).items():
        values = (
            Value(place, value, f"{line_name} at {percent(place, 1)}: {value:.3g}")
            for place, value in zip(places, positive[line_name], strict=True)
        )
        lines.append(Line(line_name, style, points_of(values, x, y)))
    words = (
        "Increase of the loss on samples held back, after pruning in one step. Both forecasts are "
        f"{in_words(name)} quadratics: of the rows that chose the weights, and of others."
    )
    return Chart(f"Forecast by {in_words(name)}", words, x, y, tuple(lines))


def _lines(
    places: Iterable[float], curves: Mapping[str, Sequence[float]], x: Axis, y: Axis, words: str
) -> tuple[Line, ...]:
    """One line for each curve over the same places."""
    at = list(places)
    lines = []
    for name, style in styles(list(curves)).items():
        values = (
            Value(place, value, f"{name}, " + words.format(x=place, y=with_minus(f"{value:.3g}")))
            for place, value in zip(at, curves[name], strict=False)
        )
        lines.append(Line(name, style, points_of(values, x, y)))
    return tuple(lines)
