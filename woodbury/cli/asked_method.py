"""A method as the options ask for it, on a network and its data: for prune and compare alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from woodbury.cli.methods import MethodPlan
from woodbury.cli.problem import Problem
from woodbury.evaluation.methods import ByEffort, ComparedMethod, Method, Run
from woodbury.evaluation.metrics import Score
from woodbury.io.settings import described
from woodbury.model.objective import Objective
from woodbury.pruning.presets import standard
from woodbury.pruning.pruned import Pruned
from woodbury.pruning.refit.output_fit import Refit
from woodbury.pruning.schedule import Targets, stage_count


@dataclass(frozen=True)
class AskedMethod(ComparedMethod):
    """A method on a problem; its stages and refits may depend on the sparsity.

    Attributes:
        plan: The method, by `woodbury.cli.methods.plan_pruning`.
        problem: The network and its data, with some held out if the plan chooses a damping.
    """

    plan: MethodPlan
    problem: Problem

    def at(self, sparsity: Targets) -> Method | ByEffort:
        """The method for one sparsity."""
        if self.plan.by_effort:
            return self.by_effort
        stages = self.plan.stages or stage_count(sparsity, 0.0, standard.keep_per_stage)
        return self._method(self._refit(sparsity), stages)

    @property
    def by_effort(self) -> ByEffort:
        """What `woodbury.prune` does."""
        return ByEffort(standard, self.problem.options.resources.memory)

    def check(self, dense: Objective, sparsity: Targets, validate: Score | None) -> None:
        """Raise WoodburyError for what cannot be done, before any gradient."""
        method = self.by_effort if self.plan.by_effort else self._method()
        method.check(dense, sparsity, validate)

    def runs(
        self,
        dense: Objective,
        sparsities: Sequence[Targets],
        validate: Score | None,
        after: Callable[[Pruned], object] | None = None,
    ) -> list[Run]:
        """Prune once to each sparsity; what is the same for all of them is estimated once."""
        methods = [self.at(sparsity) for sparsity in sparsities]
        if all(method == methods[0] for method in methods):
            runs = methods[0].runs(dense, sparsities, validate, after)
        else:
            pairs = zip(methods, sparsities, strict=True)
            runs = [method.runs(dense, [at], validate, after)[0] for method, at in pairs]
        facts = self.plan.facts() if self.plan.by_effort else {}
        return [replace(each, settings={**facts, **each.settings}) for each in runs]

    def recipe(self) -> Mapping[str, Any]:
        """What prunes, as facts."""
        prunes = self.by_effort.effort if self.plan.by_effort else self._method().pruner
        return described(prunes)

    def _method(self, refit: Refit | None = None, stages: int = 1) -> Method:
        problem = self.problem
        sampling = problem.sampling()
        return self.plan.method(sampling, problem.cost, refit, stages, problem.coupled)

    def _refit(self, sparsity: Targets) -> Refit | None:
        steps = self.plan.refit_steps
        if steps is None:
            return self.problem.refit(standard.refits, sparsity, required=False)
        return self.problem.refit(steps, sparsity)
