"""`woodbury prune`: one network, one sparsity, in one step or with fine-tuning meanwhile."""

# ruff: noqa: B008 (the options are frozen, so that one default serves all calls)

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from woodbury.cli.console import print_note, progress_bars
from woodbury.cli.gradual_pruning import FineTuning, prune_gradually
from woodbury.cli.methods import MethodPlan, plan_method
from woodbury.cli.names import parse_targets, pattern_sparsity
from woodbury.cli.options import (
    Data,
    FineTuningOptions,
    MethodOptions,
    Model,
    OptimizerOptions,
    Out,
    PruningOptions,
)
from woodbury.cli.output import PruneReport, score_label
from woodbury.cli.problem import Problem, load_problem
from woodbury.errors import WoodburyError
from woodbury.evaluation.methods import Run, run
from woodbury.io.folders import output_folder
from woodbury.io.settings import described
from woodbury.model.batchnorm import recalibrate
from woodbury.model.objective import Objective
from woodbury.pruning.presets import standard
from woodbury.pruning.refit.output_fit import Refit
from woodbury.pruning.refit.solver_choice import describe_refit
from woodbury.pruning.schedule import Targets, stage_count
from woodbury.reporting.per_layer import summarize_tensors
from woodbury.reporting.records import PruneNumbers
from woodbury.reporting.tables import percent

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
    training = FineTuning.of(tuning, optimizer)
    plan = plan_method(asked.method, options, asked.update)
    is_usual = plan.name == "gauss-newton" and plan.update == "joint" and training is None
    if options.stage.stages is None and is_usual:
        plan = replace(plan, stages=stage_count(target, 0.0, standard.keep_per_stage))
        print_note(
            f"{plan.stages} stages, each with fresh gradients: --stages sets another number."
        )
    if training:
        prune_gradually(model, data, target, out, plan, training, options)
        return
    with output_folder(out) as folder:
        with progress_bars():
            problem = load_problem(model, data, options, choosing=len(plan.dampings) > 1)
            before = problem.dense_score()
            objective = problem.objective(options.inputs.seed)
            flops = problem.flops()
            refit = _refit(problem, plan, target, is_usual)
            method = plan.method(problem.sampling(), flops, refit)
            result = run(method, objective, target, problem.validate)
            after = problem.score(result.pruned.objective)
        numbers = _numbers(problem, objective, result, before, after)
        space = result.pruned.objective.space
        result.pruned.write()
        if options.stage.recalibrate:
            recalibrate(problem.model, objective.batches)
        report = PruneReport(
            title=f"{Path(model).name} at {percent(space.sparsity, 2)}",
            line=_line(numbers, space.n),
            settings={
                "model": model,
                "data": data,
                "sparsity": target,
                "method": plan.name,
                "update": plan.update,
                **problem.settings(),
                "stages": plan.stages,
                "refit": refit.steps if refit else 0,
                "refits": describe_refit(refit),
            },
            recipe=described(method.pruner),
            numbers=numbers,
            tensors=summarize_tensors(space, flops, result.pruned.steps[0].saliencies),
        )
        report.write(folder, problem.model)
    report.show(out, remark=_remark(numbers))


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


def _refit(problem: Problem, plan: MethodPlan, target: Targets, is_usual: bool) -> Refit | None:
    """The refit asked for, or the usual one; with --first-order none, as labels lead elsewhere."""
    stage = problem.options.stage
    if stage.refit is not None or not is_usual or stage.first_order:
        return problem.refit(plan.refit_steps, target)
    refit = problem.refit(standard.refits, target, required=False)
    print_note(
        "Refits to the dense network's outputs after each: "
        f"{describe_refit(refit)}; --refit sets another number."
    )
    return refit


def _numbers(
    problem: Problem, objective: Objective, result: Run, before: float, after: float
) -> PruneNumbers:
    loss_before = objective.loss()
    loss_after = result.pruned.objective.loss()
    return PruneNumbers(
        measure=problem.measure,
        sparsity=result.pruned.sparsity,
        score_before=before,
        score_after=after,
        loss_before=loss_before,
        loss_after=loss_after,
        predicted_increase=result.pruned.predicted,
        measured_increase=loss_after - loss_before,
        damping=result.damping,
        seconds=result.cost.seconds,
        peak_megabytes=result.cost.memory,
        peak_device_megabytes=result.cost.device_memory,
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
