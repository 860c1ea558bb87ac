"""woodbury prune: one network, one sparsity, in one step or in several with fine-tuning between them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from woodbury.cli.choices import METHODS, plan
from woodbury.cli.common import (
    Data,
    Model,
    Options,
    note,
    one_sentence,
    progress_bars,
    with_options,
)
from woodbury.cli.gradual import gradually
from woodbury.cli.problem import Problem, pose
from woodbury.cli.results import show_results, write_results
from woodbury.cli.rules import sparsity_of
from woodbury.cli.training import Training
from woodbury.evaluation.comparison import Run, run
from woodbury.io.folders import output_folder
from woodbury.model.batchnorm import recalibrate
from woodbury.model.objective import Objective
from woodbury.pruning.autoconfig import describe_refit, stages_to
from woodbury.pruning.presets import standard
from woodbury.reporting.per_layer import summarize_tensors
from woodbury.reporting.tables import percent

FAR = 5
"""How many times the predicted increase the measured one may be before it is remarked upon."""

FAR_OFF = "The loss rose far more than predicted: ask for less at once, or more --stages, --count or --damping."


@one_sentence
@with_options
def prune(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write: new or empty.")],
    sparsity: Annotated[
        str | None,
        typer.Option(
            metavar="FRACTION",
            help="Removed ÷ all weights, in [0, 1); or by layers, such as conv1*=0,fc*=0.8,*=0.9.",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(metavar="NAME", help=", ".join(METHODS) + ".")
    ] = "gauss-newton",
    update: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="zero, independent (as published) or joint (exact).  [default: joint, magnitude and diagonal zero]",
        ),
    ] = None,
    *,
    training: Training,
    options: Options,
) -> None:
    """Prune a network; write its sparse weights and a report.

    Example:  woodbury prune net.py:trained data.npz --sparsity 0.9 --out pruned

    Example:  woodbury prune net.py:trained data.npz --sparsity 0.95 --epochs 10 --out pruned --resume
    """
    target = sparsity_of(sparsity, options.pattern)
    training.check()
    chosen = plan(method, update, **options.planned())
    usually = chosen.name == "gauss-newton" and chosen.update == "joint" and not training.epochs
    if options.stages is None and usually:
        chosen = replace(chosen, stages=stages_to(target, 0.0, standard.keep_per_stage))
        note(
            f"{chosen.stages} stages, each with gradients taken anew: --stages sets another number."
        )
    if training.epochs:
        gradually(model, data, target, out, chosen, training, options)
        return
    with output_folder(out) as folder:
        with progress_bars():
            problem = pose(model, data, options, choosing=len(chosen.dampings) > 1)
            before = problem.dense()
            objective = problem.objective(options.seed)
            flops = problem.flops()
            refit = problem.refit(chosen.refits, target)
            if (
                options.refit is None and usually and not options.first_order
            ):  # labels lead elsewhere
                refit = problem.refit(standard.refits, target, patient=False)
                note(
                    f"Refits to the dense network's outputs after each: {describe_refit(refit)}; --refit sets another number."
                )
            recipe = chosen.method(problem.sampling(), flops, refit)
            result = run(recipe, objective, target, problem.validate)
            after = problem.score(result.pruned.objective)
        numbers = _numbers(problem, objective, result, before, after)
        space = result.pruned.objective.space
        result.pruned.write()
        if options.recalibrate:
            recalibrate(problem.model, objective.batches)
        settings = {
            "model": model,
            "data": data,
            "sparsity": target,
            "method": chosen.name,
            "update": chosen.update,
        }
        settings |= problem.settings() | {
            "stages": chosen.stages,
            "refit": refit.steps if refit else 0,
            "refits": describe_refit(refit),
        }
        stays = summarize_tensors(space, flops, result.pruned.steps[0].saliencies)
        line = _line(problem, result, before, after)
        title = f"{Path(model).name} at {percent(space.sparsity, 2)}"
        write_results(
            folder, problem.model, stays, title=title, line=line, settings=settings, numbers=numbers
        )
    far = after < 0.9 * before and numbers["measured increase"] > FAR * (
        result.pruned.predicted or float("inf")
    )
    show_results(stays, line, out, remark=FAR_OFF if far else "")


def _numbers(
    problem: Problem, objective: Objective, result: Run, before: float, after: float
) -> dict[str, Any]:
    loss_before, loss_after = objective.loss(), result.pruned.objective.loss()
    return {
        "sparsity reached": result.pruned.sparsity,
        f"{problem.measure} before": before,
        f"{problem.measure} after": after,
        "loss before": loss_before,
        "loss after": loss_after,
        "predicted increase": result.pruned.predicted,
        "measured increase": loss_after - loss_before,
        "damping": result.damping,
        "seconds": result.cost.seconds,
        "peak MB": result.cost.memory,
    }


def _line(problem: Problem, result: Run, before: float, after: float) -> str:
    """The result in one line."""
    space = result.pruned.objective.space
    damping = f", damping {result.damping:g}" if result.damping is not None else ""
    scores = f"{problem.measure} {100 * before:.2f} % → {100 * after:.2f} %"
    return f"{percent(space.sparsity, 2)} of {space.n:,} weights removed: {scores} ({result.cost.seconds:.1f} s{damping})."
