"""`woodbury prune`: one network, one sparsity, in one step or with fine-tuning meanwhile."""

# ruff: noqa: B008 (the options are frozen, so that one default serves all calls)

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from woodbury.cli.asked_method import AskedMethod
from woodbury.cli.console import (
    memory_for,
    notes_after_checks,
    print_note,
    print_place,
    print_result,
    progress_bars,
)
from woodbury.cli.gradual_pruning import FineTuning, prune_gradually
from woodbury.cli.measurements import Outcome, StageHistory, dampings_tried, measured_numbers
from woodbury.cli.methods import MethodPlan, plan_method, plan_pruning
from woodbury.cli.names import parse_targets, pattern_sparsity
from woodbury.cli.option_values import as_asked
from woodbury.cli.options import (
    ConfigFile,
    Data,
    FineTuningOptions,
    MethodOptions,
    Model,
    OptimizerOptions,
    PlanOnly,
    PruningOptions,
    out_option,
)
from woodbury.cli.output import (
    PruneReport,
    default_folder,
    folder_for,
    needed,
    target_in_words,
)
from woodbury.cli.problem import Problem, load_problem
from woodbury.cli.run_file import print_how_to_repeat, write_run_file
from woodbury.errors import WoodburyError
from woodbury.evaluation.methods import Method, run
from woodbury.io.settings import described
from woodbury.model.batchnorm import recalibrate
from woodbury.model.objective import Objective
from woodbury.pruning.prediction import check_held_back
from woodbury.pruning.refit.solver_choice import describe_refit
from woodbury.pruning.schedule import Targets
from woodbury.reporting.grid import percent
from woodbury.reporting.per_layer import summarize_tensors
from woodbury.reporting.records import PruneNumbers, score_label

MAX_INCREASE_RATIO = 5
"""Measured ÷ predicted increase of the loss above which the prediction is called wrong."""
MIN_SCORE_RATIO = 0.9
"""Score after ÷ score before below which it matters."""


def prune(
    model: Model,
    data: Data,
    /,
    *,
    asked: MethodOptions = MethodOptions(),
    options: PruningOptions = PruningOptions(),
    tuning: FineTuningOptions = FineTuningOptions(),
    optimizer: OptimizerOptions = OptimizerOptions(),
    plan_only: PlanOnly = False,
    out: Annotated[Path | None, out_option("MODEL-SPARSITY")] = None,
    config: ConfigFile = None,
) -> None:
    """Prune a network; write its sparse weights and a report.

    Example:  `woodbury prune net.py:trained data.npz --sparsity 0.9 --out pruned`

    Example:  `woodbury prune net.py:trained data.npz --sparsity 0.95 --epochs 10 --out pruned`
    """
    target = _target(asked.sparsity, options.selection.pattern)
    memory = options.resources.memory
    training = FineTuning.of(tuning, optimizer, memory)
    plan = (plan_method if training else plan_pruning)(asked.method, options, asked.update)
    if plan_only and not plan.by_effort:
        raise WoodburyError(
            "--plan tells what is chosen where no option about the method or its stages is given: "
            "leave these options out."
        )
    groups = (asked, options, tuning, optimizer)
    arguments = {"model": model, "data": data, **as_asked(*groups)}
    with memory_for(memory, options.disk.scratch):
        if plan_only:
            asked_for = AskedMethod(plan, load_problem(model, data, options, choosing=False))
            chosen = asked_for.by_effort.planned(asked_for.problem.dense(), target)
            print_result(str(chosen.plan))
        elif training:
            prune_gradually(model, data, target, out, plan, training, options, arguments)
        else:
            _prune_at_once(model, data, target, out, plan, options, arguments)


def _prune_at_once(
    model: str,
    data: str,
    target: Targets,
    out: Path | None,
    plan: MethodPlan,
    options: PruningOptions,
    arguments: Mapping[str, Any],
) -> None:
    """Prune without fine-tuning, and write the results."""
    default = default_folder(model, target_in_words(options.selection.pattern, target))
    with folder_for(out, default) as (folder, place):
        with progress_bars():
            with notes_after_checks():
                problem = load_problem(model, data, options, choosing=plan.chooses)
                dense = problem.dense()
                asked = AskedMethod(plan, problem)
                asked.check(dense, target, problem.validate)
                if out is None:
                    print_place(place)
            before = problem.dense_score()
            held_back = problem.beside_calibration(options.inputs.seed)
            if held_back is not None:
                check_held_back(dense, held_back)
            history = StageHistory(dense.loss())
            flops = problem.flops()
            began = time.perf_counter()
            outcome = _outcome(asked, dense, target, history)
            # The plan and the choice of a damping are included.
            seconds = time.perf_counter() - began - history.seconds
            if held_back is not None:
                checked = outcome.pruned.checked_on(dense, held_back)
                outcome = outcome._replace(pruned=checked)
            pruned = outcome.pruned
            numbers = measured_numbers(problem, dense, target, before, outcome, history, seconds)
        space = pruned.objective.space
        pruned.write()
        if options.stage.recalibrate:
            recalibrate(problem.model, dense.batches)
        report = PruneReport(
            title=f"{Path(model).name} at {percent(space.sparsity, 2)}",
            line=_line(numbers, space.n),
            lead=_lead(data, problem, outcome),
            settings={
                "model": model,
                "data": data,
                "sparsity": target,
                **problem.settings(),
                **outcome.settings,
            },
            recipe=outcome.recipe,
            plan=None if pruned.plan is None else pruned.plan.facts(),
            numbers=numbers,
            tensors=summarize_tensors(space, flops, pruned.steps[0].saliencies),
        )
        how_to_load = problem.source.how_to_load(place)
        report.write(folder, problem.model, place, how_to_load)
        with needed(folder):
            problem.source.write(problem.model, folder)
            write_run_file(folder, "prune", arguments)
    report.show(place, remark=_remark(numbers), how_to_load=how_to_load)
    print_how_to_repeat(place)


def _outcome(
    asked: AskedMethod, dense: Objective, target: Targets, history: StageHistory
) -> Outcome:
    """Prune; what is decided for the user is said first."""
    plan, problem = asked.plan, asked.problem
    settings: dict[str, Any] = {"method": plan.name, "update": plan.update}
    if plan.by_effort:
        chosen = asked.by_effort.planned(dense, target)
        print_note(chosen.plan.in_one_line())
        result = asked.by_effort.run(chosen, history)
        decided = dict(result.pruned.settings)
        rules = chosen.choice.recipe.rules
        settings |= decided
        return Outcome(result.pruned, result.damping, result.cost, settings, decided, rules)
    method = asked.at(target)
    assert isinstance(method, Method)  # all that is not by effort
    if plan.stages is None:
        print_note(
            f"{method.stages} stages, each with fresh gradients: --stages sets another number."
        )
    if plan.refit_steps is None:
        print_note(
            "Refits to the dense network's outputs after each: "
            f"{describe_refit(method.refit)}; --refit sets another number."
        )
    result = run(method, dense, target, problem.validate, history)
    settings |= {
        "stages": method.stages,
        "refit": method.refit.steps if method.refit else 0,
        "refits": describe_refit(method.refit),
    }
    return Outcome(
        result.pruned,
        result.damping,
        result.cost,
        settings,
        described(method.pruner),
        method.pruner,
        dampings_tried(result.trials),
    )


def _target(sparsity: str | None, pattern: str | None) -> Targets:
    """The sparsity asked for, or the one that the n:m pattern fixes."""
    if pattern and sparsity:
        raise WoodburyError(f"--pattern {pattern} fixes the sparsity: leave --sparsity out.")
    if pattern:
        return pattern_sparsity(pattern)
    if sparsity is None:
        raise WoodburyError(
            "There is no target: give --sparsity, such as --sparsity 0.9, or --pattern."
        )
    return parse_targets(sparsity)


def _lead(data: str, problem: Problem, outcome: Outcome) -> str:
    """What was pruned by what, in one sentence."""
    stages = len(outcome.pruned.steps)
    return (
        f"Pruned by {outcome.settings['method']} in {stages} stage{'s' if stages > 1 else ''}, on "
        f"{problem.samples:,} samples of {data}."
    )


def _line(numbers: PruneNumbers, weights: int) -> str:
    """The result in one line."""
    damping = f", damping {numbers.damping:g}" if numbers.damping is not None else ""
    return (
        f"{percent(numbers.sparsity, 2)} of {weights:,} weights removed: "
        f"{score_label(numbers.measure)} {percent(numbers.score_before, 2)} → "
        f"{percent(numbers.score_after, 2)} ({numbers.seconds:.1f} s{damping})."
    )


def _remark(numbers: PruneNumbers) -> str:
    """Why the prediction is no forecast, and what to do if the network is worse for it."""
    is_worse = numbers.score_after < MIN_SCORE_RATIO * numbers.score_before
    predicted = numbers.predicted_increase or float("inf")
    warning = numbers.predicted_warning
    if is_worse and numbers.measured_increase > MAX_INCREASE_RATIO * predicted:
        advice = (
            "The loss rose far more than predicted: ask for less at once, or more --stages, "
            "--count or --damping."
        )
        return f"{warning} {advice}".strip()
    return warning
