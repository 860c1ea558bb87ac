"""`woodbury compare`: one network, several methods, sparsities and calibration sets."""

# ruff: noqa: B008 (the options are frozen, so that one default serves all calls)

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from woodbury.cli.console import memory_for, progress_bars
from woodbury.cli.methods import MethodPlan, check_scratch, plan_method
from woodbury.cli.names import parse_sparsities, pattern_sparsity
from woodbury.cli.options import Data, MethodsOptions, Model, PruningOptions
from woodbury.cli.output import ComparisonReport, folder_for
from woodbury.cli.problem import load_problem
from woodbury.errors import WoodburyError
from woodbury.evaluation import comparison
from woodbury.io.settings import described

SPARSITIES = "0.5,0.7,0.8,0.9,0.95"


def compare(
    model: Model,
    data: Data,
    /,
    *,
    out: Annotated[
        Path | None,
        Parameter(
            help="The folder to write: new or empty.  [default: woodbury-compare, or -2, -3, …]"
        ),
    ] = None,
    choice: MethodsOptions = MethodsOptions(),
    options: PruningOptions = PruningOptions(),
) -> None:
    """Compare pruning methods on a network; write a table, a picture and a page.

    Example:  `woodbury compare net.py:trained data.npz --methods magnitude,mfac --out compared`
    """
    sparsities = _sparsities(choice.sparsities, options.selection.pattern)
    plans = _plans(choice.methods, options)
    check_scratch(plans.values(), options)
    place = folder_for(out, "woodbury-compare")
    with memory_for(options.resources.memory), place as (folder, out):
        with progress_bars():
            choosing = any(len(plan.dampings) > 1 for plan in plans.values())
            problem = load_problem(model, data, options, choosing=choosing)
            dense_score = problem.dense_score()
            refit = problem.refit(options.stage.refit or 0, max(sparsities))
            methods = {
                text: plan.method(problem.sampling(), problem.cost(), refit)
                for text, plan in plans.items()
            }
            first = options.inputs.seed
            seeds = range(first, first + choice.seeds)
            results = comparison.compare(
                methods,
                sparsities,
                seeds,
                problem.objective,
                problem.score,
                validate=problem.validate,
                memory=options.resources.memory,
            )
        lead = (
            f"{problem.space.n:,} weights of {Path(model).name}, calibrated on {choice.seeds} "
            f"set{'s' if choice.seeds > 1 else ''} of {problem.count:,} gradients."
        )
        report = ComparisonReport(
            title="Pruning methods compared",
            lead=lead,
            settings={"model": model, "data": data, "seeds": list(seeds), **problem.settings()},
            recipes={text: described(method.pruner) for text, method in methods.items()},
            results=results,
            dense_score=dense_score,
            test_samples=problem.test_samples,
            dense_error=problem.score_error(dense_score),
            measure=problem.measure,
        )
        report.write(folder)
    report.show(out)


def _sparsities(asked: str | None, pattern: str | None) -> list[float]:
    if pattern and asked:
        raise WoodburyError(f"--pattern {pattern} fixes the sparsity: leave --sparsities out.")
    return [pattern_sparsity(pattern)] if pattern else parse_sparsities(asked or SPARSITIES)


def _plans(texts: str, options: PruningOptions) -> dict[str, MethodPlan]:
    """The methods that are compared, by their texts; every one once."""
    names = dict.fromkeys(text.strip() for text in texts.split(","))
    return {name: plan_method(name, options) for name in names}
