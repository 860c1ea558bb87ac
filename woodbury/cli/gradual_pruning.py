"""`woodbury prune --epochs`: pruning in steps with fine-tuning between them, resumable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from woodbury.cli.console import notes_after_checks, print_place, progress_bars
from woodbury.cli.inputs.splits import stream
from woodbury.cli.measurements import dampings_tried
from woodbury.cli.methods import MethodPlan
from woodbury.cli.names import ENGINES, EngineName
from woodbury.cli.optimizers import OptimizerSettings, make_optimizer, optimizer_settings
from woodbury.cli.option_values import given, settings_of
from woodbury.cli.options import FineTuningOptions, OptimizerOptions, PruningOptions
from woodbury.cli.output import PruneReport, default_folder, needed, target_in_words
from woodbury.cli.problem import Problem, load_problem
from woodbury.cli.run_file import print_how_to_repeat, write_run_file
from woodbury.cli.session import Parts, Session, already_finished, resumable
from woodbury.errors import WoodburyError
from woodbury.estimation.engines import fastest
from woodbury.evaluation.methods import Method, run
from woodbury.io.settings import described
from woodbury.linalg.ranks import Ranks
from woodbury.model.batches import Batch, Samples
from woodbury.model.batchnorm import recalibrate
from woodbury.model.objective import Objective
from woodbury.pruning.prediction import LEAST_HELD_BACK
from woodbury.pruning.pruned import Pruned
from woodbury.pruning.schedule import Targets
from woodbury.reporting.grid import percent
from woodbury.reporting.per_layer import summarize_tensors
from woodbury.reporting.records import (
    DampingTrial,
    GradualNumbers,
    PruningStepNumbers,
    perplexity,
    score_label,
)
from woodbury.training.finetuning import batches_in, shuffled
from woodbury.training.gradual import Gradual
from woodbury.training.learning_rate import cosine_restarts

WEIGHT_DECAY = 1e-4
"""The usual one while a network is pruned."""
SCORES = ("before", "pruned", "after")
"""What is measured of the dense network, after the last pruning step, and at the end."""
PROBED_SAMPLES = 64
"""Samples on which the engines of per-sample gradients are timed."""


@dataclass(frozen=True)
class FineTuning:
    """How a network is trained while it is pruned.

    Attributes:
        epochs: Times through the training data.
        options: The options that count with --epochs alone.
        optimizer: The options of the optimizer.
        settings: What the optimizer is made with.
    """

    epochs: int
    options: FineTuningOptions
    optimizer: OptimizerOptions
    settings: OptimizerSettings

    @classmethod
    def of(
        cls, options: FineTuningOptions, optimizer: OptimizerOptions, memory: str | None = None
    ) -> FineTuning | None:
        """What the options ask for; None without --epochs.

        Raises:
            WoodburyError: For numbers out of their range, and for options that need --epochs.
        """
        if options.epochs is None:
            if idle := given(options, optimizer):
                raise WoodburyError(f"{idle[0]} is for fine-tuning: give --epochs too.")
            return None
        if not 0 < options.prune_until <= 1:
            raise WoodburyError(
                f"--prune-until is {options.prune_until}: it is a fraction of the training, over "
                "0, up to 1."
            )
        settings = optimizer_settings(
            options.optimizer,
            lr=optimizer.lr,
            momentum=optimizer.momentum,
            weight_decay=WEIGHT_DECAY if optimizer.weight_decay is None else optimizer.weight_decay,
            memory=memory,
        )
        return cls(options.epochs, options, optimizer, settings)


def prune_gradually(
    model: str,
    data: str,
    sparsity: Targets,
    out: Path | None,
    plan: MethodPlan,
    training: FineTuning,
    options: PruningOptions,
    asked: Mapping[str, Any],
) -> None:
    """Prune and fine-tune, and write the results.

    Args:
        model: MODEL as the user wrote it.
        data: DATA as the user wrote it.
        sparsity: To prune to.
        out: The folder of the run; None for a new one in runs.
        plan: The method.
        training: How the network is trained meanwhile.
        options: All other options.
        asked: The arguments of the command, for run.toml.

    Raises:
        WoodburyError: For whatever is wrong. Stopped in any other way, `--resume` goes on.
    """
    settings = {
        "model": model,
        "data": data,
        "sparsity": sparsity,
        "method": plan.name,
        "update": plan.update,
        **settings_of(options, training.options, training.optimizer),
        "lr": training.settings.lr,
        "weight_decay": training.settings.weight_decay,
    }
    if already_finished(out, training.optimizer.resume, settings):
        return
    default = default_folder(model, target_in_words(options.selection.pattern, sparsity))
    with resumable(out, default, training.optimizer.resume, settings) as (folder, place):
        with progress_bars():
            with notes_after_checks():
                problem = load_problem(model, data, options, choosing=True)
                samples = len(problem.calibration)  # type: ignore[arg-type]
                session = Session(folder, settings, problem.model, samples)
                pruning = GradualRun(problem, sparsity, plan, training, session)
                if out is None:
                    print_place(place)
            pruning.train()
        space = pruning.gradual.space
        numbers = pruning.numbers()
        decided = {"count": problem.count, "engine": pruning.engine}
        report = PruneReport(
            title=f"{Path(model).name} at {percent(space.sparsity, 2)}",
            line=_line(numbers, space.n),
            lead=(
                f"Pruned by {plan.name} while it is trained for {training.epochs} epoch"
                f"{'s' if training.epochs > 1 else ''} on {data}."
            ),
            settings=problem.settings() | settings | decided,
            recipe=described(pruning.method.pruner),
            numbers=numbers,
            tensors=summarize_tensors(space, problem.flops()),
            asked=settings,
        )
        how_to_load = problem.source.how_to_load(place)
        with folder.finishing() as results:
            report.write(results, problem.model, place, how_to_load)
            with needed(results):
                problem.source.write(problem.model, results)
                write_run_file(results, "prune", asked)
    report.show(place, how_to_load=how_to_load)
    print_how_to_repeat(place)


class GradualRun:
    """Gradual pruning of a problem, in a session that can be stopped.

    Attributes:
        gradual: What prunes while the model trains.
        engine: The name of the engine of per-sample gradients.
        method: The method of every pruning step.
    """

    def __init__(
        self,
        problem: Problem,
        sparsity: Targets,
        plan: MethodPlan,
        training: FineTuning,
        session: Session,
    ) -> None:
        """Begin the run, or restore it from its session.

        Args:
            problem: The dense model and its data.
            sparsity: To prune to.
            plan: The method.
            training: How the network is trained meanwhile.
            session: What is saved.

        Raises:
            WoodburyError: For what cannot be done.
        """
        self._problem = problem
        self._session = session
        self._batch_size = training.optimizer.batch_size
        self._samples = len(problem.calibration)  # type: ignore[arg-type]
        self._epoch = batches_in(self._samples, self._batch_size)
        self._total = training.epochs * self._epoch
        if session.is_new:
            session.record |= Ranks.current().broadcast_object(_first_record(problem))
        self.engine: EngineName = session.record["engine"]
        self._tokens = problem.tokens_per_sample(problem.options.inputs.seed)
        self.method = self._method(plan, sparsity)
        options = training.options
        optimizer = make_optimizer(options.optimizer, _trainable(problem), training.settings)
        seed = problem.options.inputs.seed
        self.gradual = Gradual(
            problem.model,
            optimizer,
            lambda step: problem.calibration_set(seed + step),
            sparsity,
            end=max(1, round(options.prune_until * self._total)),
            steps=options.steps,
            pruner=self._prune,
            likelihood=problem.loss.likelihood,
            include=list(problem.space.shapes),
            keep_zeros=problem.options.parameters.keep_zeros,
            score=problem.held_out_score,
            decay_off=options.decay_off,
            held_back=self._held_back(),
        )
        rate = cosine_restarts(self.gradual.pruning_steps, self._total)
        scheduler = LambdaLR(optimizer, rate)
        torch.manual_seed(seed)
        session.restore(Parts(problem.model, optimizer, scheduler, {"gradual": self.gradual}))

    def train(self) -> None:
        """Train to the end; the model is then as it is used after it."""
        problem, session = self._problem, self._session
        if session.is_new:
            session.save(0)
        seed = problem.options.inputs.seed
        order = shuffled(self._samples, self._batch_size, seed, session.done)
        batches = stream(problem.calibration, order)
        session.train(batches, self._total, problem.loss.likelihood, self._after)
        self.gradual.remove()
        problem.model.requires_grad_(False)
        session.record["after"] = problem.score(self._objective())
        session.record["loss_after"] = self._loss()
        if problem.options.stage.recalibrate:
            recalibrate(problem.model, self._objective().batches)

    def numbers(self) -> GradualNumbers:
        """What was measured, for the report."""
        record = self._session.record
        steps = (
            PruningStepNumbers(
                step=done.step,
                epoch=done.step / self._epoch,
                sparsity=done.sparsity,
                predicted_increase=done.predicted,
                damping=damping,
                held_out_score_before=done.before,
                held_out_score_after=done.after,
                dampings_tried=tuple(DampingTrial(*trial) for trial in tried),
                predicted_interval=done.predicted_interval,
                predicted_warning=done.predicted_warning,
            )
            for done, damping, tried in zip(
                self.gradual.history, record["dampings"], record["tried"], strict=True
            )
        )
        problem = self._problem
        before, pruned, after = (record[name] for name in SCORES)
        # A run that an older version began has no losses.
        losses = [record.get(f"loss_{name}") for name in SCORES]
        perplexities = [perplexity(loss, self._tokens) for loss in losses]
        return GradualNumbers(
            measure=problem.measure,
            sparsity=self.gradual.sparsity,
            test_samples=problem.test_samples,
            score_before=before,
            standard_error_before=problem.score_error(before),
            score_pruned=pruned,
            standard_error_pruned=problem.score_error(pruned),
            score_after=after,
            standard_error_after=problem.score_error(after),
            seconds=self._session.seconds,
            steps=tuple(steps),
            tokens_per_sample=self._tokens,
            loss_before=losses[0],
            loss_pruned=losses[1],
            loss_after=losses[2],
            perplexity_before=perplexities[0],
            perplexity_pruned=perplexities[1],
            perplexity_after=perplexities[2],
        )

    def _method(self, plan: MethodPlan, sparsity: Targets) -> Method:
        """The method of the plan with the engine of this run."""
        engine = ENGINES[self.engine]
        refit = self._problem.refit(plan.refit_steps or 0, sparsity)
        refit = replace(refit, engine=engine) if refit else None
        sampling = replace(self._problem.sampling(), engine=engine)
        problem = self._problem
        return plan.method(sampling, problem.cost, refit, plan.stages or 1, problem.coupled)

    def _held_back(self) -> Iterable[Batch] | None:
        """Held-out training data that no damping of this method is chosen on."""
        problem = self._problem
        if problem.unchosen is not None or len(self.method.dampings) > 1:
            return problem.unchosen
        held_out = list(Samples.of(problem.held_out or []).in_batches(LEAST_HELD_BACK))
        return problem.held_out if len(held_out) > 1 else None

    def _prune(self, objective: Objective, sparsity: Targets) -> Pruned:
        """One pruning step; the damping that it chose is recorded."""
        result = run(self.method, objective, sparsity, self._problem.validate)
        record = self._session.record
        record["dampings"] = [*record["dampings"], result.damping]
        tried = [list(astuple(trial)) for trial in dampings_tried(result.trials)]
        record["tried"] = [*record["tried"], tried]
        return result.pruned

    def _after(self, step: int) -> None:
        """What is measured and saved after a step of training."""
        if step == self.gradual.pruning_steps[-1]:
            self._session.record["pruned"] = self._problem.score(self._objective())
            self._session.record["loss_pruned"] = self._loss()
        at_a_turn = step % self._epoch == 0 or step in self.gradual.pruning_steps
        if at_a_turn or self._session.is_save_due:
            self._session.save(step)

    def _loss(self) -> float | None:
        """On the calibration set, for the perplexity of a language model; None for others."""
        return None if self._tokens is None else self._objective().loss()

    def _objective(self) -> Objective:
        problem = self._problem
        calibration_set = problem.calibration_set(problem.options.inputs.seed)
        likelihood = problem.loss.likelihood
        return Objective.from_model(problem.model, calibration_set, likelihood, self.gradual.space)


def _trainable(problem: Problem) -> list[nn.Parameter]:
    """What is trainable, which requires a gradient from now on."""
    parameters = dict(problem.model.named_parameters())
    trainable = [parameters[name] for name in problem.trainable]
    for parameter in trainable:
        parameter.requires_grad_()
    return trainable


def _first_record(problem: Problem) -> dict[str, Any]:
    """What is known when a run begins.

    The clock chooses the engine once, as two engines differ in the last bit.
    """
    objective = problem.objective(problem.options.inputs.seed)
    inputs, target = next(Samples.of(objective.batches).in_batches(PROBED_SAMPLES))
    chosen = fastest(objective, inputs, target)
    engine = next(name for name, engine in ENGINES.items() if engine is chosen)
    predicts_tokens = problem.source.predicts_next_tokens
    return {
        "before": problem.dense_score(),
        "loss_before": objective.loss() if predicts_tokens else None,
        "engine": engine,
        "dampings": [],
        "tried": [],
    }


def _line(numbers: GradualNumbers, weights: int) -> str:
    """The result in one line."""
    return (
        f"{percent(numbers.sparsity, 2)} of {weights:,} weights removed: "
        f"{score_label(numbers.measure)} {percent(numbers.score_before, 2)} → "
        f"{percent(numbers.score_pruned, 2)} right after the last pruning step → "
        f"{percent(numbers.score_after, 2)} at the end ({numbers.seconds:.1f} s)."
    )
