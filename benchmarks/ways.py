"""How a row gets from the dense network to each sparsity: in one step, on one quadratic, stage by
stage, or as `prune` does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from one_shot import Task, batches
from torch import nn

from woodbury.limits import Limits
from woodbury.model.batches import Batch
from woodbury.model.modes import eval_mode
from woodbury.model.objective import Objective
from woodbury.pruning.autoconfig import choose
from woodbury.pruning.damping_search import TRUST, DampingSearch
from woodbury.pruning.presets import Effort
from woodbury.pruning.pruned import Pruned
from woodbury.pruning.pruner import Pruner
from woodbury.pruning.refit.output_fit import Refit, Refitted
from woodbury.pruning.refit.with_refit import WithRefit
from woodbury.pruning.schedule import geometric, stage_count
from woodbury.pruning.staged import inner_stages, run_stages, stages

SAMPLES, GRID = 1000, (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
Reached = Iterator[tuple[float, Pruned]]


@dataclass(frozen=True)
class Setting:
    """A task's table: its sparsities, its blocks, and what the staged rows were given on held-out
    images.

    rank, refitted: Gauss–Newton rows to an image, without and with refits; ratio, finer: what a
    stage keeps, without and with; layered: the refit that sees the outputs of layers too; fresh:
    images of a stage; window: of how many stages a refit, then `among_many`, sees them;
    among_mirrored: the refit where every image comes with its mirror image.
    """

    task: Task
    block: int | None
    damping: float = 1e-4
    rank: int = 2
    ratio: float = 0.8
    fresh: int = 2000
    refitted: int = 2
    window: int = 1
    finer: float = 0.8
    refit: Refit | None = None
    layered: Refit | None = None
    among_many: Refit | None = None
    among_mirrored: Refit | None = None
    rival: Refit | None = None


@dataclass(frozen=True)
class OneStage:
    """From the dense net to each sparsity at once, the damping chosen per cell, and the share of
    the gradient if it has one.

    refit: what follows the one step, if anything does.
    """

    pruner: Pruner
    trust: tuple[float, ...] = TRUST
    refit: Refit | None = None

    def __call__(
        self, setting: Setting, objective: Objective, judge: list[Batch], seed: int
    ) -> Reached:
        recipe = self.pruner
        if recipe.fisher:
            fisher = recipe.fisher(objective)
            recipe = DampingSearch(
                replace(recipe, fisher=lambda _: fisher), judge, GRID, self.trust
            )
        recipe = WithRefit.around(recipe, objective, self.refit) if self.refit else recipe
        for sparsity in setting.task.sparsities.values():
            yield sparsity, recipe(objective, sparsity)


@dataclass(frozen=True)
class OneQuadratic:
    """Through all sparsities on the dense net's own quadratic, scored anew at every stage; each
    sparsity has its damping."""

    pruner: Pruner

    def __call__(
        self, setting: Setting, objective: Objective, judge: list[Batch], seed: int
    ) -> Reached:
        quadratic, wanted = self.pruner.quadratic(objective), list(setting.task.sparsities.values())
        fisher, path = quadratic.curvature("A path"), way([0.0, *wanted], setting.ratio)[1:]
        least: dict[float, tuple[float, Pruned]] = {}
        for damping in GRID:
            damped = replace(quadratic, fisher=fisher.with_damping(damping))
            for goal, pruned in zip(
                path, inner_stages(self.pruner, damped, objective, path), strict=True
            ):
                loss = pruned.objective.loss(judge) if goal in wanted else math.inf
                if loss < least.get(goal, (math.inf,))[0]:  # never a NaN
                    least[goal] = loss, pruned
        yield from ((goal, least[goal][1]) for goal in wanted)


@dataclass(frozen=True)
class Staged:
    """Stage by stage through all sparsities, the same images for all, or `samples` fresh ones
    before those of the last stages.

    dampings: what each stage chooses from on the images that judge; empty for the pruner's own.
    mirrored: every image comes with its mirror image.
    """

    pruner: Pruner
    samples: int = 0
    refit: Refit | None = None
    ratio: float | None = None
    window: int = 1
    dampings: tuple[float, ...] = ()
    mirrored: bool = False

    def __call__(
        self, setting: Setting, objective: Objective, judge: list[Batch], seed: int
    ) -> Reached:
        wanted = list(setting.task.sparsities.values())
        path = way(wanted, self.ratio or setting.ratio)
        fresh = shuffled(setting.task, self.samples, seed, self.window) if self.samples else None
        if self.mirrored:
            batches = list(objective.batches)
            objective = replace(objective, batches=batches + [(x.flip(-1), y) for x, y in batches])
        refit = (
            replace(self.refit, judge=judge) if isinstance(self.refit, Distilled) else self.refit
        )
        recipe = DampingSearch(self.pruner, judge, self.dampings) if self.dampings else self.pruner
        recipe = WithRefit.around(recipe, objective, refit) if refit else recipe
        for goal, pruned in zip(path, stages(recipe, objective, path, fresh), strict=True):
            if goal in wanted:
                yield goal, pruned


@dataclass(frozen=True)
class AsItComes:
    """`woodbury.prune` with an effort's settings, from the dense net to each sparsity by itself.

    rows: bytes that gradient rows may take; None for the default.
    """

    effort: Effort
    rows: int | None = None

    def __call__(
        self, setting: Setting, objective: Objective, judge: list[Batch], seed: int
    ) -> Reached:
        for sparsity in setting.task.sparsities.values():
            with replace(Limits.current(), memory=self.rows):
                choice = choose(objective, sparsity, self.effort)
            yield sparsity, run_stages(choice.recipe, choice.objective, choice.sparsities)


@dataclass(frozen=True)
class Distilled(Refit):
    """A refit's rival: epochs of Adam on the divergence from the dense outputs, the same images in
    batches of 100; of several rates, each stage keeps the one of least loss on the images that
    judge."""

    epochs: int = 100
    lrs: tuple[float, ...] = (1e-3,)
    judge: Sequence[Batch] = ()

    def run(
        self, objective: Objective, dense: Objective, known: Any = None, fisher_of: Any = None
    ) -> Refitted:
        tried = [self._trained(objective, dense, lr) for lr in self.lrs]
        best = (
            tried[0]
            if len(tried) == 1
            else min(tried, key=lambda trained: trained.loss(self.judge))
        )
        return Refitted(best, self.distance(best, dense), None, None)

    def _trained(self, objective: Objective, dense: Objective, lr: float) -> Objective:
        x = torch.cat([inputs for inputs, _ in objective.batches])
        with torch.no_grad(), eval_mode(dense.model):
            told = dense.forward(dense.parameters, x).softmax(1)
        weights = objective.weights.clone().requires_grad_()
        optimizer, generator = (
            torch.optim.Adam([weights], lr),
            torch.Generator().manual_seed(objective.space.d),
        )
        with eval_mode(objective.model):
            for _ in range(self.epochs):
                for part in torch.randperm(len(x), generator=generator).split(100):
                    said = objective.forward(objective.space.unflatten(weights), x[part])
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(said, told[part]).backward()
                    optimizer.step()
        return objective.at(weights.detach())


def way(sparsities: Sequence[float], ratio: float) -> list[float]:
    """Through all the sparsities, by stages that keep at least `ratio` from the first of them
    on."""
    path, start = [sparsities[0]], sparsities[0]
    for sparsity in sparsities[1:]:
        path += cast(list[float], geometric(sparsity, stage_count(sparsity, start, ratio), start))
        start = sparsity
    return path


def shuffled(task: Task, count: int, seed: int, window: int) -> Callable[[int], list[Batch]]:
    """Stage -> its `count` images, the next ones of a shuffle of all that are not held out, and
    those of the stages before."""
    x, y = task.train
    pool = torch.randperm(len(y), generator=torch.Generator().manual_seed(2020))[2000:]
    pool = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(10_000 + seed))]

    def fresh(stage: int) -> list[Batch]:
        recent = range(stage, max(-1, stage - window), -1)
        drawn = pool[
            torch.cat([torch.arange(k * count, (k + 1) * count) for k in recent]) % len(pool)
        ]
        return batches(x[drawn], y[drawn])

    return fresh
