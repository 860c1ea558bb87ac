"""What the page of each command shows, of the facts that its report.json holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from woodbury.io.settings import flattened
from woodbury.reporting import plots, run_tables, tables
from woodbury.reporting.files import versions
from woodbury.reporting.grid import Grid, duration, megabytes, percent, with_minus
from woodbury.reporting.page import Code, Figure, Page, Section, section
from woodbury.reporting.per_layer import TensorSummary
from woodbury.reporting.records import GradualNumbers, PruneNumbers, TrainNumbers, score_label
from woodbury.reporting.run_tables import score_text


def prune_page(
    title: str,
    lead: str,
    numbers: PruneNumbers | GradualNumbers,
    tensors: Sequence[TensorSummary],
    settings: Mapping[str, Any],
    recipe: Mapping[str, Any],
    plan: Mapping[str, Any] | None,
    codes: Sequence[Code],
) -> Page:
    """The page of a pruned network.

    Args:
        title: Its heading.
        lead: What was pruned by what.
        numbers: What was measured.
        tensors: What is kept of each parameter.
        settings: What was asked for and what was decided.
        recipe: The pruner, as facts.
        plan: What was predicted, as facts; None without a plan.
        codes: What repeats the run and loads its weights.
    """
    parts = [run_tables.results(numbers, str(settings["method"]))]
    if isinstance(numbers, PruneNumbers) and numbers.predicted_warning:
        lead = f"{lead} {numbers.predicted_warning}"
    sections = [Section("Result", tuple(parts))]
    if isinstance(numbers, PruneNumbers):
        figures = _figures(numbers, tensors, plan)
        if len(numbers.stages) > 1:
            of_stages = (plots.stages(numbers.stages), run_tables.stages(numbers.stages))
            sections.append(Section("Loss after each stage", of_stages))
        if numbers.dampings_tried:
            grid = run_tables.dampings(numbers.dampings_tried, numbers.damping)
            sections.append(section(grid))
    else:
        figures = _gradual_figures(numbers, tensors)
        chart = plots.gradual(numbers, score_label(numbers.measure))
        steps = run_tables.pruning_steps(numbers)
        sections.append(Section("Pruning steps", (chart, steps) if chart else (steps,)))
        if numbers.steps and numbers.steps[0].dampings_tried:
            sections.append(section(run_tables.dampings_of_steps(numbers.steps)))
    sections.append(section(tables.per_tensor(tensors)))
    sections.append(Section("Use it again", tuple(codes)))
    planned = [tables.facts("Plan", flattened(plan))] if plan else []
    details = [*planned, tables.facts("Recipe", flattened(recipe)), *folded(settings)]
    return Page(title, lead, figures, sections, details)


def train_page(
    title: str,
    lead: str,
    numbers: TrainNumbers,
    settings: Mapping[str, Any],
    codes: Sequence[Code],
) -> Page:
    """The page of a trained network.

    Args:
        title: Its heading.
        lead: The result in one line.
        numbers: What was measured.
        settings: What was asked for and what was decided.
        codes: What repeats the run and loads its weights.
    """
    samples = f"{numbers.test_samples:,} test samples"
    score, remark = score_text(numbers.score, None), samples
    if numbers.standard_error is not None:
        remark = f"± {100 * numbers.standard_error:.1f}, {samples}"
    figures = [
        Figure(score, score_label(numbers.measure), remark),
        Figure(duration(numbers.seconds), "time", f"{len(numbers.epochs)} epochs"),
    ]
    if numbers.perplexity is not None:
        figures.insert(1, Figure(f"{numbers.perplexity:.4g}", "perplexity", samples))
    parts = (
        plots.training(numbers.epochs),
        run_tables.epochs(numbers.epochs, numbers.measure),
    )
    sections = [Section("Held-out training data", parts), Section("Use it again", tuple(codes))]
    return Page(title, lead, figures, sections, folded(settings))


def folded(settings: Mapping[str, Any]) -> list[Grid]:
    """The tables at the end of every page: the settings and the versions."""
    return [tables.facts("Settings", settings), tables.facts("Versions", versions())]


def _figures(
    numbers: PruneNumbers, tensors: Iterable[TensorSummary], plan: Mapping[str, Any] | None
) -> list[Figure]:
    figures = [
        _sparsity(numbers, tensors),
        _score(numbers),
        Figure(
            _signed(numbers.measured_increase),
            "increase of the loss",
            _expected_increase(numbers),
        ),
        Figure(
            duration(numbers.seconds),
            "time to prune",
            f"planned {duration(plan['seconds'])}" if plan else "",
        ),
        Figure(megabytes(numbers.peak_megabytes), "peak memory", "of the whole process"),
    ]
    if numbers.peak_device_megabytes is not None:
        figures.append(Figure(megabytes(numbers.peak_device_megabytes), "peak on the device"))
    return figures


def _expected_increase(numbers: PruneNumbers) -> str:
    """The increase as predicted, and as it is on other samples."""
    predicted, interval = numbers.predicted_increase, numbers.predicted_interval
    parts = [] if predicted is None else [f"predicted {_signed(predicted)}"]
    if interval is not None and math.isfinite(interval.mean):
        parts.append(f"held back {_signed(interval.low)} to {_signed(interval.high)}")
    return ", ".join(parts)


def _signed(number: float) -> str:
    return with_minus(f"{number:+.3g}")


def _gradual_figures(numbers: GradualNumbers, tensors: Iterable[TensorSummary]) -> list[Figure]:
    steps = len(numbers.steps)
    remark = f"{steps} pruning step{'s' if steps > 1 else ''}"
    time = Figure(duration(numbers.seconds), "time to prune and train", remark)
    return [_sparsity(numbers, tensors), _score(numbers), time]


def _sparsity(numbers: PruneNumbers | GradualNumbers, tensors: Iterable[TensorSummary]) -> Figure:
    kept, weights = map(sum, zip(*((each.kept, each.weights) for each in tensors), strict=True))
    remark = f"{kept:,} of {weights:,} kept"
    return Figure(percent(numbers.sparsity, 2), "sparsity", remark)


def _score(numbers: PruneNumbers | GradualNumbers) -> Figure:
    remark = f"dense {score_text(numbers.score_before, None)}"
    if numbers.standard_error_after is not None:
        remark = f"± {100 * numbers.standard_error_after:.1f}, {remark}"
    after = score_text(numbers.score_after, None)
    return Figure(after, score_label(numbers.measure), remark)
