"""`woodbury prune`: one network, one sparsity, in one step or with fine-tuning meanwhile."""

# ruff: noqa: B008 (the options are frozen, so that one default serves all calls)

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from woodbury.cli.console import memory_for, print_note, print_result, progress_bars
from woodbury.cli.gradual_pruning import FineTuning, prune_gradually
from woodbury.cli.measurements import Outcome, StageHistory, dampings_tried, measured_numbers
from woodbury.cli.methods import MethodPlan, check_scratch, plan_method
from woodbury.cli.names import parse_targets, pattern_sparsity
from woodbury.cli.options import (
    Data,
    FineTuningOptions,
    MethodOptions,
    Model,
    OptimizerOptions,
    Out,
    PlanOnly,
    PruningOptions,
    given,
)
from woodbury.cli.output import PruneReport, needed
from woodbury.cli.problem import Problem, load_problem
from woodbury.errors import WoodburyError
from woodbury.evaluation.methods import run
from woodbury.evaluation.resources import measured
from woodbury.io.folders import output_folder
from woodbury.io.settings import described
from woodbury.memory import limits_within
from woodbury.model.batchnorm import recalibrate
from woodbury.pruning import api
from woodbury.pruning.planning import Planned, planned, pruning_objective
from woodbury.pruning.presets import standard
from woodbury.pruning.refit.output_fit import Refit
from woodbury.pruning.refit.solver_choice import describe_refit
from woodbury.pruning.schedule import Targets, stage_count
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
    out: Out,
    plan_only: PlanOnly = False,
    asked: MethodOptions = MethodOptions(),
    tuning: FineTuningOptions = FineTuningOptions(),
    optimizer: OptimizerOptions = OptimizerOptions(),
    options: PruningOptions = PruningOptions(),
) -> None:
    """Prune a network; write its sparse weights and a report.

    Example:  `woodbury prune net.py:trained data.npz --sparsity 0.9 --out pruned`

    Example:  `woodbury prune net.py:trained data.npz --sparsity 0.95 --epochs 10 --out pruned`
    """
    target = _target(asked.sparsity, options.selection.pattern)
    memory = options.resources.memory
    training = FineTuning.of(tuning, optimizer, memory)
    plan = plan_method(asked.method, options, asked.update)
    check_scratch([plan], options)
    chosen = _chosen(plan, options, target)
    if plan_only and (training or chosen is not None):
        raise WoodburyError(
            "--plan tells what is chosen where no option about the method or its stages is given: "
            "leave these options out."
        )
    with memory_for(memory):
        if plan_only:
            problem = load_problem(model, data, options, choosing=False)
            print_result(str(_planned(problem, target).plan))
        elif training:
            prune_gradually(model, data, target, out, plan, training, options)
        else:
            _prune_at_once(model, data, target, out, chosen, options)


def _chosen(plan: MethodPlan, options: PruningOptions, target: Targets) -> MethodPlan | None:
    """The plan with what the options leave open; None where they leave all to `woodbury.prune`."""
    groups = (options.selection, options.stage, options.curvature)
    # Gauss–Newton rows need no labels, whichever are drawn for data without any.
    idle = [option for option in given(*groups) if option not in ("--labels", "--recalibrate")]
    is_usual = plan.name == "gauss-newton" and plan.update == "joint"
    if not is_usual:
        return plan
    if not idle:
        return None
    if options.stage.stages is None:
        plan = replace(plan, stages=stage_count(target, 0.0, standard.keep_per_stage))
        print_note(
            f"{plan.stages} stages, each with fresh gradients: --stages sets another number."
        )
    if options.curvature.damping is None:
        plan = replace(plan, dampings=standard.dampings)
    return plan


def _prune_at_once(
    model: str,
    data: str,
    target: Targets,
    out: Path,
    plan: MethodPlan | None,
    options: PruningOptions,
) -> None:
    """Prune without fine-tuning, and write the results."""
    with output_folder(out) as folder:
        with progress_bars():
            choosing = plan is not None and len(plan.dampings) > 1
            problem = load_problem(model, data, options, choosing=choosing)
            before = problem.dense_score()
            dense = problem.objective(options.inputs.seed)
            history = StageHistory(dense.loss())
            flops = problem.flops()
            began = time.perf_counter()
            outcome = (
                _as_prune_does(problem, target, history)
                if plan is None
                else _by(plan, problem, target, history)
            )
            # The plan and the choice of a damping are included.
            seconds = time.perf_counter() - began - history.seconds
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
        report.write(folder, problem.model, out)
        with needed(folder):
            problem.source.write(problem.model, folder)
    report.show(out, remark=_remark(numbers), how_to_load=problem.source.how_to_load(out))


def _as_prune_does(problem: Problem, target: Targets, history: StageHistory) -> Outcome:
    """What `woodbury.prune(model, batches, sparsity)` does, to the last bit."""
    with limits_within(problem.options.resources.memory):
        chosen = _planned(problem, target)
        print_note(chosen.plan.in_one_line())
        pruned, cost = measured(lambda: api.run_planned(chosen, history))
    decided = dict(pruned.settings)
    settings = {"method": "gauss-newton", "update": "joint", **decided}
    rules = chosen.choice.recipe.rules
    return Outcome(pruned, pruned.steps[-1].damping, cost, settings, decided, rules)


def _planned(problem: Problem, target: Targets) -> Planned:
    """What `woodbury.prune` chooses."""
    parameters = problem.options.parameters
    objective = pruning_objective(
        problem.model,
        problem.calibration_set(problem.options.inputs.seed),
        problem.loss.likelihood,
        parameters.include or None,
        parameters.exclude,
        parameters.keep_zeros,
    )
    return planned(objective, target, standard, problem.options.resources.memory)


def _by(plan: MethodPlan, problem: Problem, target: Targets, history: StageHistory) -> Outcome:
    """What the options ask for."""
    objective = problem.objective(problem.options.inputs.seed)
    refit = _refit(problem, plan, target)
    method = plan.method(problem.sampling(), problem.cost(), refit)
    result = run(method, objective, target, problem.validate, history)
    settings = {
        "method": plan.name,
        "update": plan.update,
        "stages": plan.stages,
        "refit": refit.steps if refit else 0,
        "refits": describe_refit(refit),
    }
    recipe = described(method.pruner)
    tried = dampings_tried(result.trials)
    return Outcome(
        result.pruned, result.damping, result.cost, settings, recipe, method.pruner, tried
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


def _refit(problem: Problem, plan: MethodPlan, target: Targets) -> Refit | None:
    """The refit asked for, or the usual one; with --first-order none, as labels lead elsewhere."""
    stage = problem.options.stage
    is_usual = plan.name == "gauss-newton" and plan.update == "joint"
    if stage.refit is not None or not is_usual or stage.first_order:
        return problem.refit(plan.refit_steps, target)
    refit = problem.refit(standard.refits, target, required=False)
    print_note(
        "Refits to the dense network's outputs after each: "
        f"{describe_refit(refit)}; --refit sets another number."
    )
    return refit


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
    """What to do if the network is worse and the prediction was wrong."""
    is_worse = numbers.score_after < MIN_SCORE_RATIO * numbers.score_before
    predicted = numbers.predicted_increase or float("inf")
    if is_worse and numbers.measured_increase > MAX_INCREASE_RATIO * predicted:
        return (
            "The loss rose far more than predicted: ask for less at once, or more --stages, "
            "--count or --damping."
        )
    return ""
