"""plan(): what `prune` will do and take, before it starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import nn

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError
from woodbury.estimation.over_ranks import over_ranks
from woodbury.limits import Limits
from woodbury.linalg.precision import dtype_name
from woodbury.linalg.ranks import Ranks
from woodbury.memory.budget import (
    available_bytes,
    budget_bytes,
    bytes_in_words,
    resident_bytes,
)
from woodbury.memory.exhausted import if_memory_runs_out
from woodbury.memory.machine_rates import MachineRates
from woodbury.model.batches import Batch
from woodbury.model.left_out import left_out_in_words
from woodbury.model.likelihood import Likelihood, cross_entropy
from woodbury.model.objective import Objective
from woodbury.model.profile import ModelProfile
from woodbury.model.prunable import check_prunable
from woodbury.model.random_numbers import random_kept
from woodbury.model.space import ParameterSpace, Patterns
from woodbury.pruning.autoconfig import Choice, choose
from woodbury.pruning.feasibility import kept_count
from woodbury.pruning.forecast import Forecast, Trial, merged
from woodbury.pruning.presets import Effort, standard
from woodbury.pruning.refit.solver_choice import describe_refit
from woodbury.pruning.run_plan import Phase, Plan
from woodbury.pruning.schedule import Targets
from woodbury.pruning.scopes import Scope, global_
from woodbury.pruning.undivided import divided

ROW_SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 64, 1e-9)
"""Shares of the budget for rows that are tried, until a whole run fits; the last leaves no room."""

NO_LIMIT = 2**62
"""Bytes that any choice has room in."""

SPARE = 0.95
"""Share of the available memory that an explicit budget may use at most."""


class Planned(NamedTuple):
    """A choice with its plan.

    Attributes:
        choice: What runs.
        plan: What it will take.
    """

    choice: Choice
    plan: Plan


@checks_types
@random_kept()
def plan(
    model: nn.Module,
    batches: Iterable[Batch],
    sparsity: Targets,
    *,
    effort: Effort = standard,
    likelihood: Likelihood = cross_entropy,
    include: Patterns | None = None,
    exclude: Patterns = (),
    keep_zeros: bool = False,
    memory: int | str | None = None,
    group: object = None,
) -> Plan:
    """What `prune` with the same arguments will do, and the seconds and bytes that it will take.

    A few samples go through the model and are timed. Nothing is changed.

    Args:
        model: The trained network.
        batches: The calibration set, as for `prune`.
        sparsity: As for `prune`.
        effort: As for `prune`.
        likelihood: As for `prune`.
        include: As for `prune`.
        exclude: As for `prune`.
        keep_zeros: As for `prune`.
        memory: What the run may hold, in bytes or as "6GiB"; None for 60 % of what the process may
            still have.
        group: As for `prune`. The plan is the one that fits every rank; it counts neither the work
            nor the rows of a rank as divided.

    Returns:
        The plan; `print` shows it as a table.

    Raises:
        WoodburyError: If no way to prune fits the memory, with the nearest ways that would; or as
            `prune`, for arguments that do not fit the model.

    Example:
        >>> import torch, woodbury
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 2))
        >>> batches = [(torch.randn(64, 8), torch.arange(64) % 2)]
        >>> woodbury.plan(model, batches, sparsity=0.9).stages
        5
        >>> woodbury.plan(model, batches, sparsity=0.75, memory=1000)
        Traceback (most recent call last):
            ...
        woodbury.errors.WoodburyError: ...
    """
    with (
        over_ranks(group, "plan", model, batches, memory, {"sparsity": sparsity}) as own,
        if_memory_runs_out("even a few timed samples have no room: give more"),
    ):
        objective = pruning_objective(model, own.batches, likelihood, include, exclude, keep_zeros)
        return planned(objective, sparsity, effort, own.memory).plan


def pruning_objective(
    model: nn.Module,
    batches: Iterable[Batch],
    likelihood: Likelihood,
    include: Patterns | None,
    exclude: Patterns,
    keep_zeros: bool,
    scope: Scope = global_,
) -> Objective:
    """The loss on the matrices and kernels to prune, seen to take the first batch.

    Args:
        model: As for `prune`; so are the others.
        batches: The calibration set.
        likelihood: The loss.
        include: Patterns of names; None for all but embeddings and heads.
        exclude: Patterns of names.
        keep_zeros: Whether zeros are left out of the space.
        scope: Which weights compete; tensors that its pools do not divide are left out.

    Returns:
        The objective.

    Raises:
        WoodburyError: If the data does not fit the model, or no name matches.
    """
    space = divided(ParameterSpace.for_pruning(model, include, exclude), scope)
    check_prunable(model, space.shapes)
    objective = Objective.from_model(model, batches, likelihood, space)
    objective.probe()
    if not keep_zeros:
        return objective
    nonzero = objective.weights != 0
    return objective.at(objective.weights[nonzero], space.restrict(nonzero))


def planned(
    objective: Objective, sparsity: Targets, effort: Effort, memory: int | str | None
) -> Planned:
    """The best choice that fits the memory, and its plan.

    Args:
        objective: The dense network on the calibration set.
        sparsity: Removed ÷ all weights, or one for each pattern.
        effort: How much time to take.
        memory: As for `plan`.

    Returns:
        The choice and its plan.

    Raises:
        WoodburyError: If nothing fits.
    """
    device = objective.weights.device
    asked = budget_bytes(memory, device)
    ranks = Ranks.current()
    budget = int(ranks.minimum(min(asked, int(SPARE * available_bytes(device)))))
    limits = Limits.current()
    forecast: Forecast | None = None
    resident = resident_bytes()
    retained = 0
    smallest: Plan | None = None
    for share in ROW_SHARES:
        rows = max(1, int(share * budget))
        with replace(limits, memory=min(rows, limits.memory or rows)):
            choice = choose(objective, sparsity, effort)
            if forecast is None:
                forecast = _forecast_of(choice)
                retained = max(0, resident_bytes() - resident)
            made = _plan_of(choice, forecast, budget)
        if ranks.minimum(made.held_bytes <= budget):
            ranks.agree("the plan", {"the plan": choice.settings})
            with replace(limits, memory=NO_LIMIT):
                wished = choose(objective, sparsity, effort)
            better = ""
            if wished.settings != choice.settings:
                better = _in_words(_plan_of(wished, forecast, budget))
            return Planned(choice, replace(made, better=better, retained_bytes=retained))
        if smallest is None or made.held_bytes < smallest.held_bytes:
            smallest = made
    assert smallest is not None
    least = bytes_in_words(smallest.held_bytes)
    more = f"give memory={least!r}"
    if budget < asked:
        more = "free memory, or raise the limit of the process"
    raise WoodburyError(
        f"Pruning {smallest.weights:,} weights takes at least {least} and may hold "
        f"{bytes_in_words(budget)}: {more}, prune fewer tensors at a time with include=…, or take "
        "Pruner(None, magnitude, zero)."
    )


def _in_words(wished: Plan) -> str:
    """What a run without a limit would do, and take."""
    return f"with {bytes_in_words(wished.held_bytes)}: {wished.structure}, refit: {wished.refit}"


@Ranks.apart()
def _forecast_of(choice: Choice) -> Forecast:
    """What the model and the machine take: the same for every choice for them."""
    objective = choice.objective
    return Forecast(
        trial=Trial.of(objective, rows=choice.step.rows > 0 and not choice.step.by_rows),
        rates=MachineRates.measure(objective.weights.device),
        profile=ModelProfile.measure(objective),
        samples=choice.samples,
        n=objective.space.n,
        shapes=tuple(objective.space.shapes.values()),
    )


def _plan_of(choice: Choice, forecast: Forecast, budget: int) -> Plan:
    objective = choice.objective
    return Plan(
        weights=objective.space.n,
        samples=choice.samples,
        rows=0 if choice.step.by_rows else choice.step.rows,
        structure=str(choice.settings["structure"]),
        dtype=dtype_name(objective.weights.dtype),
        stages=len(choice.sparsities),
        refit=describe_refit(choice.refit) if choice.layers is None else choice.layers.in_words(),
        phases=merged(list(_phases(choice, forecast))),
        budget_bytes=budget,
        left_out=left_out_in_words(objective.space.left_out),
    )


def _phases(choice: Choice, forecast: Forecast) -> Iterator[Phase]:
    """The phases of every stage in order."""
    space = choice.objective.space
    kept: Sequence[int] = [int(kept_count(space, target)) for target in choice.sparsities]
    start = space.d
    if choice.sequence is not None:
        yield from forecast.in_turn(choice, choice.sequence)
        start, *kept = kept
    if choice.step.by_rows:
        yield from forecast.by_rows(choice)
        return
    rows_are_reused = choice.refit is not None and choice.refit.iterations is None
    for stage, (before, after) in enumerate(zip([start, *kept], kept, strict=False)):
        if stage and rows_are_reused and choice.refit is not None:
            m = choice.refit.mc_samples * choice.samples
            m = m if choice.step.block else min(m, choice.step.rows)
            yield forecast.curvature(choice.step, m, before, choice.dampings)
        else:
            yield from forecast.rows(choice.step, before, choice.dampings)
        if choice.refit is not None:
            yield forecast.refit(choice.refit, choice.step, after, len(kept))
