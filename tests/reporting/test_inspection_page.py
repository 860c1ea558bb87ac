"""The page of an inspection has every number that it is given, and leaves out what is not known."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import woodbury
from woodbury.inspection.findings import Inspection
from woodbury.inspection.forecast_report import ForecastPoint
from woodbury.inspection.sensitivity_report import Axis, Trial
from woodbury.reporting import inspection_charts as charts
from woodbury.reporting import inspection_tables as tables
from woodbury.reporting.files import write_json
from woodbury.reporting.inspection_page import inspection_facts, inspection_page
from woodbury.reporting.page import Code


@pytest.fixture(scope="module")
def found() -> Inspection:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    batches = [(torch.randn(64, 5), torch.arange(64) % 3)]
    return woodbury.inspect(model, batches, count=32, sparsities=(0.3, 0.6))


def page_of(found: Inspection) -> str:
    return inspection_page(
        "Title", "lead", found, {"model": "net.py:build"}, [Code("Again:", "woodbury inspect")]
    ).html()


def test_the_page_has_every_section(found: Inspection) -> None:
    page = page_of(found)
    for title in (
        *("In words", "Fisher, Gauss–Newton, Hessian", "Some weights of some tensors, exactly"),
        *("times its scale to the Hessian", "weights of 0.weight, the largest first"),
        *("Setting: damping", "by the damping.", "Setting: samples per row", "Use it again"),
        "Forecasts of the loss after one step",
    ):
        assert title in page.replace("<wbr>", ""), title
    assert found.hessian is not None
    assert f"{found.hessian.matches['kfac_swapped'].cosine:.3f}" in page
    assert "Left out" not in page


def test_negative_numbers_have_a_minus_and_names_have_room(found: Inspection) -> None:
    """Also in sentences and in what a point says; a name that is cut tells nothing."""
    assert found.hessian is not None
    known = {
        name: replace(match, cosine=-0.125, scale=-0.25)
        for name, match in found.hessian.matches.items()
    }
    blocks = tuple(
        replace(block, matches={name: replace(m, cosine=-0.5) for name, m in block.matches.items()})
        for block in found.hessian.blocks
    )
    spectrum = replace(found.hessian.hessian, least=-4.5)
    hessian = replace(found.hessian, hessian=spectrum, matches=known, blocks=blocks)
    steps = tuple(
        replace(step, measured=tuple(-value - 0.01 for value in step.measured))
        for step in found.along
    )
    page = page_of(replace(found, hessian=hessian, along=steps))
    shown = re.sub(r"<(style|script).*?</\1>", "", page, flags=re.DOTALL)
    texts = re.findall(r">([^<]+)<", shown)
    assert [text for text in texts if re.search(r"(?<![\w.])-\.?\d", text)] == []
    for number in ("−0.125 ±", "−0.500", "−0.12", "−4.5", "× −0.25", "at 0.125: −"):
        assert any(number in text for text in texts), number
    labels = re.findall(r'<text x="100%"[^>]*>([^<]*)<', shown)
    assert "K-FAC, swapped" in labels and not any("…" in label for label in labels)


def test_an_interrupted_inspection_has_what_is_known(found: Inspection) -> None:
    early = replace(found, along=(), sensitivity=None, forecast=None)
    page = page_of(early)
    assert "Fisher, Gauss–Newton, Hessian" in page and "Forecasts of the loss" not in page
    nothing = replace(early, hessian=None, left_out={"hessian": "It has no second derivative."})
    assert "It has no second derivative." in page_of(nothing)


def test_the_facts_are_strict_json(found: Inspection, tmp_path: Path) -> None:
    write_json(tmp_path / "report.json", inspection_facts(found))
    facts = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert facts["verdicts"] == found.verdicts and facts["is_complete"]
    assert facts["hessian"]["matches"]["kfac"]["cosine"] == pytest.approx(
        found.hessian.matches["kfac"].cosine  # type: ignore[union-attr]
    )
    assert "vectors" not in facts["hessian"]["hessian"]
    assert facts["sensitivity"]["axes"][0]["name"] == "damping"


def test_every_number_of_the_tables_is_in_its_row(found: Inspection) -> None:
    assert found.hessian is not None and found.forecast is not None
    grid = tables.matches(found.hessian)
    assert [row[0] for row in grid.cells] == [
        *("exact Hessian", "Gauss–Newton", "empirical Fisher", "K-FAC", "diagonal"),
        "K-FAC, swapped",
    ]
    cosines, errors = tables.blocks(found.hessian.blocks), tables.block_errors(found.hessian.blocks)
    for block, cosine, error in zip(found.hessian.blocks, cosines.cells, errors.cells, strict=True):
        assert cosine[0] == error[0] == block.tensor
        matches = list(block.matches.values())
        assert cosine[2:] == tuple(f"{m.cosine:.3f}".replace("-", "−") for m in matches)
        assert error[1:] == tuple(f"{100 * m.error:.0f} %" for m in matches)
    for name, points in found.forecast.points.items():
        rows = tables.forecasts(name, points, found.forecast.samples).cells
        assert [row[0] for row in rows] == ["29.2 %", "60.4 %"]
        for row, point in zip(rows, points, strict=True):
            shown = [float(text.replace("−", "-")) for text in row[1:]]
            known = [point.predicted, point.held_back, point.measured]
            assert shown == pytest.approx(known, rel=0.006, abs=6e-7)
    by_magnitude = tables.without_forecast(found.forecast)
    assert by_magnitude is not None
    for row, own in zip(by_magnitude.cells, found.forecast.magnitude, strict=True):
        best = found.forecast.best_at(own.sparsity)
        assert best is not None and row[3] == charts.in_words(best)
        least = next(p.measured for p in found.forecast.points[best] if p.sparsity == own.sparsity)
        assert [float(text.replace("−", "-")) for text in row[1:3]] == pytest.approx(
            [own.measured, least], rel=0.006, abs=6e-7
        )
    step = tables.along_step(found.along[1])
    assert step.cells[0][0] == "measured" and step.cells[0][1] == "–"


def test_a_curvature_without_a_forecast_says_why(found: Inspection) -> None:
    assert found.forecast is not None
    assert tables.refused(found.forecast) is None
    grid = tables.refused(replace(found.forecast, refused={"kfac": "It has no room."}))
    assert grid is not None and grid.cells == (("K-FAC", "It has no room."),)
    assert tables.without_forecast(replace(found.forecast, magnitude=())) is None
    never = replace(found.forecast, points={})
    grid = tables.without_forecast(never)
    assert grid is not None and {row[2:] for row in grid.cells} == {("–", "–")}


def test_every_number_has_its_key_and_its_function(found: Inspection) -> None:
    facts = inspection_facts(found)
    sources = tables.sources(found)
    assert len(sources.cells) == 8
    for _, key, function in sources.cells:
        value = facts
        for part in key.split("."):
            value = value[part]
        assert value, key
        where = woodbury if function == "inspect" else woodbury.inspection
        assert callable(getattr(where, function)), function
    early = replace(found, along=(), sensitivity=None, forecast=None)
    assert {row[2] for row in tables.sources(early).cells} == {"inspect", "compare_with_hessian"}


def test_what_is_refused_has_no_number_and_says_why() -> None:
    axis = Axis("damping", "1", (Trial("1", 1.0, 1.0, 0.2), Trial("1e-30", refused="Too small.")))
    grid = tables.setting(axis)
    assert grid.cells[0] == ("1e-30", "–", "–", "–") and "1e-30: Too small." in grid.note
    assert grid.marks[1][0] is None and grid.best == {(1, 3)}, "in the order of the values"
    assert charts.losses_over(axis) is None


def test_losses_that_are_not_finite_have_no_point() -> None:
    trials = tuple(Trial(f"{value}", 1.0, 1.0, loss) for value, loss in ((1, 0.2), (10, math.inf)))
    assert charts.losses_over(Axis("damping", "1", trials)) is None
    points = [ForecastPoint(0.5, 0.1, math.inf, 0.2), ForecastPoint(0.9, 1e-9, 0.1, math.inf)]
    chart = charts.forecasts("kfac", points)
    assert chart is not None
    assert [len(line.points) for line in chart.lines] == [1, 2, 1]
    never = [ForecastPoint(0.5, 0.1, 0.1, -0.2)]
    assert charts.forecasts("kfac", never) is None


def test_lines_end_where_their_numbers_are(found: Inspection) -> None:
    step = found.along[0]
    chart = charts.along_step(step, scaled=False)
    measured = chart.lines[0]
    assert measured.name == "measured" and len(measured.points) == 11
    x = [point.x for point in measured.points]
    assert x == pytest.approx([t / chart.x.high for t in step.fractions]) and chart.x.low == 0
    assert [line.name for line in chart.lines][:2] == ["measured", "exact 2nd order"]
