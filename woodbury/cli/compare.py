"""woodbury compare: one network, several methods, sparsities and calibration samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from woodbury.cli.choices import METHODS, plan
from woodbury.cli.common import (
    Data,
    Model,
    Options,
    free,
    one_sentence,
    progress_bars,
    say,
    with_options,
)
from woodbury.cli.problem import pose
from woodbury.cli.rules import pattern_sparsity
from woodbury.errors import WoodburyError
from woodbury.evaluation.comparison import Result, compare, summary
from woodbury.io.folders import output_folder
from woodbury.pruning.schedule import check_sparsity
from woodbury.reporting import plots, tables
from woodbury.reporting.files import versions, write_csv, write_json

SPARSITIES = "0.5,0.7,0.8,0.9,0.95"


@one_sentence
@with_options
def compare_(
    model: Model,
    data: Data,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The folder to write: new or empty.  [default: woodbury-compare, or -2, -3, …]",
        ),
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help=f"With commas between: {', '.join(METHODS)}; each also as NAME/UPDATE.",
        ),
    ] = "magnitude,diagonal,woodfisher/independent,mfac/independent,mfac/joint",
    sparsities: Annotated[
        str | None,
        typer.Option(
            metavar="FRACTIONS",
            help="With commas between, each in [0, 1).  [default: 0.5,0.7,0.8,0.9,0.95]",
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="How many calibration samples, drawn by seed, seed + 1, …"
        ),
    ] = 3,
    *,
    options: Options,
) -> None:
    """Compare pruning methods on a network; write table, picture and page.

    Example:  woodbury compare net.py:trained data.npz --methods magnitude,mfac --sparsities 0.8,0.9 --out compared
    """
    out = out or free(Path("woodbury-compare"))
    levels = (
        levels_of(sparsities or SPARSITIES)
        if options.pattern is None
        else [pattern_sparsity(options.pattern)]
    )
    if options.pattern and sparsities:
        raise WoodburyError("--pattern settles the sparsity: leave --sparsities out.")
    plans = {
        name: plan(name, None, **options.planned())
        for name in dict.fromkeys(map(str.strip, methods.split(",")))
    }
    plots.require_matplotlib()
    with output_folder(out) as folder:
        with progress_bars():
            problem = pose(
                model, data, options, choosing=any(len(p.dampings) > 1 for p in plans.values())
            )
            dense = problem.dense()
            refit = problem.refit(options.refit or 0, max(levels))
            chosen = {
                name: p.method(problem.sampling(), problem.flops(), refit)
                for name, p in plans.items()
            }
            samples = range(options.seed, options.seed + seeds)
            results = compare(
                chosen,
                levels,
                samples,
                problem.objective,
                problem.score,
                validate=problem.validate,
            )
        settings = {"model": model, "data": data, "seeds": list(samples), **problem.settings()}
        lead = f"{problem.space.n:,} weights of {Path(model).name}, calibrated on {seeds} sample(s) of {problem.count} gradients."
        write_comparison(
            folder, "Pruning methods compared", lead, results, dense, settings, problem.measure
        )
    show_comparison(out, results, dense, problem.measure)


def levels_of(text: str) -> list[float]:
    """“0.5,0.9” as sparsities, rising, each once."""
    try:
        return sorted({check_sparsity(float(part)) for part in text.split(",")})
    except WoodburyError:
        raise
    except ValueError as error:
        raise WoodburyError(
            f"--sparsities is {text!r}: give numbers with commas between, such as 0.5,0.9."
        ) from error


def write_comparison(
    folder: Path,
    title: str,
    lead: str,
    results: Sequence[Result],
    dense: float,
    settings: Mapping[str, Any],
    measure: str = "accuracy",
) -> None:
    """results.csv, results.json, accuracy.png, report.html, and prediction.png where a method predicts."""
    write_csv(folder / "results.csv", results)
    record = {
        "settings": settings,
        "versions": versions(),
        measure: {"dense": dense},
        "spread": "population std",
    }
    write_json(
        folder / "results.json", record | {"summary": summary(results), "results": list(results)}
    )
    light, dark = (
        plots.accuracies(results, dense=dense, measure=measure, dark=dark) for dark in (False, True)
    )
    (folder / "accuracy.png").write_bytes(light)
    foretold, at_night = (plots.predictions(results, dark=dark) for dark in (False, True))
    words = f"{measure.capitalize()} on the test data; bars are the spread over the calibration samples."
    parts = [
        tables.embedded(light, dark, words),
        tables.accuracies(results, dense=dense, measure=measure).html(),
        tables.removed(results, measure=measure).html(folded=True),
        tables.costs(results).html(folded=True),
        tables.facts("Settings", settings).html(folded=True),
        tables.facts("Versions", versions()).html(folded=True),
    ]
    if foretold and at_night:
        (folder / "prediction.png").write_bytes(foretold)
        words = "Predicted and measured increase of the loss on the calibration sample; each point is a method at a sparsity."
        parts.insert(2, tables.embedded(foretold, at_night, words))
    tables.write_page(folder / "report.html", title, lead, parts)


def show_comparison(
    out: Path, results: Sequence[Result], dense: float, measure: str = "accuracy"
) -> None:
    """The table, and where the rest is."""
    say(tables.accuracies(results, dense=dense, measure=measure).rich())
    say(f"Written: {out}/report.html, accuracy.png, results.csv and results.json.", plain=True)
