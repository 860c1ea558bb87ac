"""woodbury prune --epochs: pruning in steps with fine-tuning between them, resumable at any moment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from woodbury.cli.choices import ENGINES, Plan
from woodbury.cli.common import Options, note, progress_bars, resumable
from woodbury.cli.data import stream
from woodbury.cli.problem import SCORES, Problem, pose
from woodbury.cli.results import show_results, write_results
from woodbury.cli.training import Training
from woodbury.estimation.gradients import fastest
from woodbury.evaluation.comparison import run
from woodbury.io.fingerprint import check_same, facts_of
from woodbury.io.run_folder import RunFolder
from woodbury.model.batches import regrouped
from woodbury.model.batchnorm import recalibrate
from woodbury.model.objective import Objective
from woodbury.pruning.pruner import Pruned
from woodbury.pruning.schedule import Targets
from woodbury.reporting.files import versions
from woodbury.reporting.per_layer import summarize_tensors
from woodbury.reporting.tables import Grid, percent
from woodbury.training.finetuning import batches_in, finetune, shuffled
from woodbury.training.gradual import Gradual
from woodbury.training.learning_rate import cosine_restarts

SAVE_EVERY = 60.0
"""Seconds after which the state is saved, also between pruning steps and the ends of epochs."""


def gradually(
    model: str,
    data: str,
    sparsity: Targets,
    out: Path,
    plan: Plan,
    training: Training,
    options: Options,
) -> None:
    """Prune and fine-tune; write the results. Raises WoodburyError; stopped in any other way, `--resume` goes on."""
    settings = {
        "model": model,
        "data": data,
        "sparsity": sparsity,
        "method": plan.name,
        "update": plan.update,
    }
    asked = asdict(options) | {
        name: value for name, value in asdict(training).items() if name != "resume"
    }
    asked = {
        name: value if isinstance(value, (int, float, list, type(None))) else str(value)
        for name, value in asked.items()
    }
    with resumable(out, training.resume) as folder:
        if folder.saved:
            check_same(folder.saved["settings"], settings | asked, f"The run in {out}")
        with progress_bars():
            problem = pose(model, data, options, choosing=True)
            session = Session(problem, sparsity, plan, training, folder, settings | asked)
            session.train()
        space = session.gradual.space
        stays = summarize_tensors(space, problem.flops())
        numbers = session.numbers()
        line = _line(problem, numbers, space.n)
        grids = (_table(problem.measure, numbers["steps"]),)
        with folder.finishing() as results:
            title = f"{Path(model).name} at {percent(space.sparsity, 2)}"
            every = (
                settings
                | problem.settings()
                | asked
                | {"engine": session.record["engine"], "lr": training.rate}
            )
            write_results(
                results,
                problem.model,
                stays,
                title=title,
                line=line,
                settings=every,
                numbers=numbers,
                grids=grids,
            )
    show_results(stays, line, out, grids)


class Session:
    """A run in progress: model, optimizer, schedules, and the record of what has happened, all of which are saved."""

    def __init__(
        self,
        problem: Problem,
        sparsity: Targets,
        plan: Plan,
        training: Training,
        folder: RunFolder,
        settings: Mapping[str, Any],
    ) -> None:
        self.problem, self.folder, self.training, self.settings = (
            problem,
            folder,
            training,
            settings,
        )
        self.samples = len(problem.calibration)  # type: ignore[arg-type]
        self.facts = facts_of(problem.model, self.samples)
        saved = folder.saved
        if saved:
            check_same(saved["facts"], self.facts, "The unfinished run")
        self.record: dict[str, Any] = dict(saved["record"]) if saved else _new_record(problem)
        self.epoch = batches_in(self.samples, training.batch_size)
        self.total = (training.epochs or 0) * self.epoch
        self.optimizer = training.optimizer_of(problem)
        engine = ENGINES[self.record["engine"]]
        refit = problem.refit(plan.refits, sparsity)
        refit = replace(refit, engine=engine) if refit else None
        method = plan.method(replace(problem.sampling(), engine=engine), problem.flops(), refit)

        def prune(objective: Objective, sparsity: Targets) -> Pruned:
            result = run(method, objective, sparsity, problem.validate)
            self.record["dampings"] = [*self.record["dampings"], result.damping]
            return result.pruned

        self.gradual = Gradual(
            problem.model,
            self.optimizer,
            lambda step: problem.drawn(problem.options.seed + step),
            sparsity,
            end=max(1, round(training.prune_until * self.total)),
            steps=training.steps,
            pruner=prune,
            likelihood=problem.likelihood,
            include=list(problem.space.shapes),
            keep_zeros=problem.options.keep_zeros,
            score=lambda objective: SCORES[problem.measure](
                problem.recalibrated(objective), problem.held_out or []
            ),
            decay_off=training.decay_off,
        )
        self.scheduler = LambdaLR(
            self.optimizer, cosine_restarts(self.gradual.pruning_steps, self.total)
        )
        torch.manual_seed(problem.options.seed)
        if saved:
            self._load(saved)
        self.began = self.saved_at = time.monotonic()

    def train(self) -> None:
        """Train to the end, from wherever the run is; the model is as it will be used after it."""
        problem, done = self.problem, self.gradual.step
        if not self.folder.saved:
            self._save()
        order = shuffled(self.samples, self.training.batch_size, problem.options.seed, done)
        finetune(
            problem.model,
            self.optimizer,
            stream(problem.calibration, order),
            range(done + 1, self.total + 1),
            likelihood=problem.likelihood,
            scheduler=self.scheduler,
            after=self._after,
        )
        self.gradual.remove()
        problem.model.requires_grad_(False)
        self.record["after"] = problem.score(self._objective())
        if problem.options.recalibrate:
            recalibrate(problem.model, self._objective().batches)

    def numbers(self) -> dict[str, Any]:
        """What happened, for the report."""
        measure, steps = self.problem.measure, []
        for done, damping in zip(self.gradual.history, self.record["dampings"], strict=True):
            steps.append(
                {
                    "step": done.step,
                    "epoch": done.step / self.epoch,
                    "sparsity": done.sparsity,
                    "predicted increase": done.predicted,
                    "damping": damping,
                    f"held-out {measure} before": done.before,
                    f"held-out {measure} after": done.after,
                }
            )
        return {
            "sparsity reached": self.gradual.sparsity,
            f"{measure} before": self.record["before"],
            f"{measure} after the last pruning step": self.record["pruned"],
            f"{measure} after": self.record["after"],
            "seconds": self._seconds(),
            "steps": steps,
        }

    def _after(self, step: int) -> None:
        """Called after each step of training: what is measured and saved then."""
        if step == self.gradual.pruning_steps[-1]:
            self.record["pruned"] = self.problem.score(self._objective())
        due = step % self.epoch == 0 or step in self.gradual.pruning_steps
        if due or time.monotonic() - self.saved_at > SAVE_EVERY:
            self._save()

    def _objective(self) -> Objective:
        problem = self.problem
        drawn = problem.drawn(problem.options.seed)
        return Objective.from_model(problem.model, drawn, problem.likelihood, self.gradual.space)

    def _save(self) -> None:
        state = {name: part.state_dict() for name, part in self._parts().items()}
        record = self.record | {"seconds": self._seconds()}
        self.folder.save(
            {
                "settings": dict(self.settings),
                "facts": self.facts,
                "record": record,
                "rng": torch.get_rng_state(),
                **state,
            }
        )
        self.saved_at = time.monotonic()

    def _load(self, saved: Mapping[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(saved[name])
        torch.set_rng_state(saved["rng"])
        for what, now in versions().items():
            if (began := self.record["made"].get(what)) != now:
                note(
                    f"The run began with {what} {began} and goes on with {now}: its last bits may differ from then on."
                )

    def _parts(self) -> dict[str, Any]:
        own = {"model": self.problem.model, "optimizer": self.optimizer}
        return own | {"scheduler": self.scheduler, "gradual": self.gradual}

    def _seconds(self) -> float:
        return self.record["seconds"] + time.monotonic() - self.began


def _new_record(problem: Problem) -> dict[str, Any]:
    """What is known when a run begins; the clock chooses the engine once, as two engines differ in the last bit."""
    objective = problem.objective(problem.options.seed)
    inputs, target = next(regrouped(objective.batches, 64))
    chosen = fastest(objective, inputs, target)
    engine = next(name for name, engine in ENGINES.items() if engine is chosen)
    return {
        "before": problem.dense(),
        "engine": engine,
        "dampings": [],
        "seconds": 0.0,
        "made": versions(),
    }


def _table(measure: str, steps: list[dict[str, Any]]) -> Grid:
    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.3g}"

    rows = (
        (
            f"{step['epoch']:.2f}",
            percent(step["sparsity"], 2),
            number(step["damping"]),
            number(step["predicted increase"]),
            f"{100 * step[f'held-out {measure} before']:.2f} %",
            f"{100 * step[f'held-out {measure} after']:.2f} %",
        )
        for step in steps
    )
    header = (
        "epoch",
        "sparsity",
        "damping",
        "predicted increase",
        f"{measure} before",
        f"{measure} after",
    )
    return Grid(
        "Pruning steps",
        header,
        tuple(rows),
        note="On held-out training data, right before and after each step.",
    )


def _line(problem: Problem, numbers: Mapping[str, Any], weights: int) -> str:
    """The result in one line."""
    measure = problem.measure
    dense, pruned, after = (
        f"{100 * numbers[f'{measure} {when}']:.2f} %"
        for when in ("before", "after the last pruning step", "after")
    )
    return (
        f"{percent(numbers['sparsity reached'], 2)} of {weights:,} weights removed: {measure} {dense} → {pruned} right after "
        f"the last pruning step → {after} at the end ({numbers['seconds']:.1f} s)."
    )
