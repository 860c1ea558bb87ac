"""`woodbury compare`: one network, several methods, sparsities and calibration sets."""

# ruff: noqa: B008 (the options are frozen, so that one default serves all calls)

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from woodbury.cli.asked_method import AskedMethod
from woodbury.cli.console import memory_for, notes_after_checks, print_place, progress_bars
from woodbury.cli.invocation import repeating
from woodbury.cli.methods import MethodPlan, plan_pruning
from woodbury.cli.names import parse_sparsities, pattern_sparsity
from woodbury.cli.option_values import as_asked
from woodbury.cli.options import (
    ConfigFile,
    Data,
    MethodsOptions,
    Model,
    PruningOptions,
    out_option,
)
from woodbury.cli.output import ComparisonReport, default_folder, folder_for, needed
from woodbury.cli.problem import Problem, load_problem
from woodbury.cli.run_file import RUN_FILE, print_how_to_repeat, write_run_file
from woodbury.errors import WoodburyError
from woodbury.evaluation import comparison
from woodbury.evaluation.metrics import Score
from woodbury.evaluation.results import Result
from woodbury.reporting.records import perplexity

SPARSITIES = "0.5,0.7,0.8,0.9,0.95"


def compare(
    model: Model,
    data: Data,
    /,
    *,
    choice: MethodsOptions = MethodsOptions(),
    options: PruningOptions = PruningOptions(),
    out: Annotated[Path | None, out_option("MODEL-compared")] = None,
    config: ConfigFile = None,
) -> None:
    """Compare pruning methods on a network; write a table, a picture and a page.

    Example:  `woodbury compare net.py:trained data.npz --methods magnitude,mfac --out compared`
    """
    sparsities = _sparsities(choice.sparsities, options.selection.pattern)
    plans = _plans(choice.methods, options)
    in_folder = folder_for(out, default_folder(model, "compared"))
    in_memory = memory_for(options.resources.memory, options.disk.scratch)
    with in_memory, in_folder as (folder, place):
        with progress_bars():
            with notes_after_checks():
                problem = load_problem(model, data, options, choosing=False)
                methods = _on(problem, plans)
                for method in methods.values():
                    for sparsity in sparsities:
                        method.check(problem.dense(), sparsity, _validate(methods))
                if out is None:
                    print_place(place)
            dense_score = problem.dense_score()
            first = options.inputs.seed
            seeds = range(first, first + choice.seeds)
            results = comparison.compare(
                methods,
                sparsities,
                seeds,
                {text: method.problem.objective for text, method in methods.items()},
                problem.score,
                validate=_validate(methods),
                held_back={
                    text: method.problem.beside_calibration for text, method in methods.items()
                },
                memory=options.resources.memory,
            )
            results = _with_perplexities(results, methods)
        lead = (
            f"{problem.space.n:,} weights of {Path(model).name}, calibrated on {choice.seeds} "
            f"set{'s' if choice.seeds > 1 else ''} of {problem.count:,} gradients."
        )
        report = ComparisonReport(
            title="Pruning methods compared",
            lead=lead,
            settings={"model": model, "data": data, "seeds": list(seeds), **problem.settings()},
            recipes={text: method.recipe() for text, method in methods.items()},
            results=results,
            dense_score=dense_score,
            test_samples=problem.test_samples,
            dense_error=problem.score_error(dense_score),
            measure=problem.measure,
        )
        report.write(folder, repeating(place / RUN_FILE))
        asked = {"model": model, "data": data, **as_asked(choice, options)}
        with needed(folder):
            write_run_file(folder, "compare", asked)
    report.show(place)
    print_how_to_repeat(place)


def _sparsities(asked: str | None, pattern: str | None) -> list[float]:
    if pattern and asked:
        raise WoodburyError(f"--pattern {pattern} fixes the sparsity: leave --sparsities out.")
    return [pattern_sparsity(pattern)] if pattern else parse_sparsities(asked or SPARSITIES)


def _plans(texts: str, options: PruningOptions) -> dict[str, MethodPlan]:
    """The methods that are compared, by their texts; every one once."""
    names = dict.fromkeys(text.strip() for text in texts.split(","))
    return {name: plan_pruning(name, options) for name in names}


def _on(problem: Problem, plans: Mapping[str, MethodPlan]) -> dict[str, AskedMethod]:
    """The methods on the problem; data is held out from those alone that choose a damping.

    So each does here what it does in `prune`.
    """
    methods = {text: AskedMethod(plan, problem) for text, plan in plans.items()}
    choosing = [text for text, plan in plans.items() if plan.chooses]
    if choosing:
        held_out = problem.holding_out()
        held_out.tell_count()
        methods |= {text: AskedMethod(plans[text], held_out) for text in choosing}
    return {text: methods[text] for text in plans}


def _with_perplexities(
    results: Iterable[Result], methods: Mapping[str, AskedMethod]
) -> list[Result]:
    """The results, with the perplexities of a causal language model."""
    tokens: dict[tuple[int, int], float | None] = {}
    found = []
    for result in results:
        problem, seed = methods[result.method].problem, result.seed
        if (id(problem), seed) not in tokens:
            tokens[id(problem), seed] = problem.tokens_per_sample(seed)
        of_sample = tokens[id(problem), seed]
        before, after = (perplexity(x, of_sample) for x in (result.loss_before, result.loss_after))
        found.append(replace(result, perplexity_before=before, perplexity_after=after))
    return found


def _validate(methods: Mapping[str, AskedMethod]) -> Score | None:
    """What chooses dampings, where there is something to choose."""
    held_out = [each.problem for each in methods.values() if each.plan.chooses]
    return held_out[0].validate if held_out else None
