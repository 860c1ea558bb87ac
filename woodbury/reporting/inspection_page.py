"""The page of an inspection, and its facts for report.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from woodbury.inspection.findings import Inspection
from woodbury.inspection.forecast_report import ForecastCalibration
from woodbury.reporting import inspection_charts as charts
from woodbury.reporting import inspection_tables as tables
from woodbury.reporting.charts import Chart
from woodbury.reporting.grid import Grid, percent, with_minus
from woodbury.reporting.page import Code, Figure, Page, Section, section
from woodbury.reporting.pages import folded

CHARTED = ("damping", "rows")
"""Settings whose losses have a chart beside their table."""
NEARLY_NONE = 0.1
"""A share of the weights below which a decimal is shown."""


def inspection_facts(found: Inspection) -> dict[str, Any]:
    """All numbers of an inspection, with its verdicts.

    Args:
        found: What is known.
    """
    facts = asdict(found)
    if facts["hessian"] is not None:
        for spectrum in (facts["hessian"]["hessian"], *facts["hessian"]["spectra"].values()):
            del spectrum["vectors"]
    return {"verdicts": found.verdicts, "is_complete": found.is_complete, **facts}


def inspection_page(
    title: str,
    lead: str,
    found: Inspection,
    settings: Mapping[str, Any],
    codes: Sequence[Code],
) -> Page:
    """The page of an inspection.

    Args:
        title: Its heading.
        lead: The sentence below it.
        found: What is known, also of an inspection that was interrupted.
        settings: What was asked for.
        codes: What repeats the run.
    """
    sections = [section(tables.verdicts(found))]
    if found.hessian is not None:
        sections.append(section(tables.matches(found.hessian)))
        if blocks := found.hessian.blocks:
            grid, errors = tables.blocks(blocks), tables.block_errors(blocks)
            sections.append(_section(grid.title, [grid, errors, *map(charts.spectra, blocks)]))
    for step in found.along:
        parts: list[Grid | Chart | None] = [charts.along_step(step, scaled=False)]
        if step.scales:
            parts.append(charts.along_step(step, scaled=True))
        sections.append(_section(f"Along {step.direction}", [*parts, tables.along_step(step)]))
    if found.sensitivity is not None:
        for axis in found.sensitivity.axes:
            chart = charts.losses_over(axis) if axis.name in CHARTED else None
            grid = tables.setting(axis)
            sections.append(_section(grid.title, [chart, grid]))
    if found.forecast is not None and found.forecast.points:
        sections.append(
            _section("Forecasts of the loss after one step", _forecasts(found.forecast))
        )
    if found.left_out:
        sections.append(section(tables.left_out(found.left_out)))
    sections.append(Section("Use it again", (*codes, tables.sources(found))))
    return Page(title, lead, list(_figures(found)), sections, folded(settings))


def _section(title: str, parts: Sequence[Grid | Chart | None]) -> Section:
    return Section(title, tuple(part for part in parts if part is not None))


def _forecasts(found: ForecastCalibration) -> list[Grid | Chart | None]:
    """Of each curvature a chart and a table, and then magnitude pruning."""
    parts: list[Grid | Chart | None] = []
    for name, points in found.points.items():
        parts += [charts.forecasts(name, points), tables.forecasts(name, points, found.samples)]
    return [*parts, tables.without_forecast(found), tables.refused(found)]


def _figures(found: Inspection) -> Iterator[Figure]:
    """The numbers that come first."""
    if found.hessian is not None:
        best = found.hessian.nearest
        cosine = with_minus(f"{found.hessian.matches[best].cosine:.2f}")
        yield Figure(cosine, "cosine to the Hessian", charts.in_words(best))
        if "empirical" in found.hessian.matches:
            scale = with_minus(f"{found.hessian.matches['empirical'].scale:.2g}")
            yield Figure(f"× {scale}", "from the empirical Fisher to the Hessian")
    if found.forecast is not None and found.forecast.points:
        name = next(iter(found.forecast.points))
        own = found.forecast.held_up_to(name)
        other = found.forecast.held_up_to(name, held_back=True)
        remark = f"{charts.in_words(name)}; by rows held back up to {_or_nowhere(other)}"
        yield Figure(_or_nowhere(own), "the forecast holds up to", remark)
    if found.sensitivity is not None:
        halves = [axis for axis in found.sensitivity.axes if axis.name == "samples" and axis.others]
        if halves:
            moved = 1 - (halves[0].others[0].shared or 0.0)
            share = percent(moved, 1 if moved < NEARLY_NONE else 0)
            yield Figure(share, "of the choice is noise", "two halves of the samples")


def _or_nowhere(sparsity: float | None) -> str:
    return "nowhere" if sparsity is None else percent(sparsity, 0)
