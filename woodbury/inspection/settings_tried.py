"""One setting changed at a time: does the choice of weights change, and the loss after it?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, check_whole_number
from woodbury.estimation.ggn import gauss_newton_rows
from woodbury.estimation.gradients import gradient_rows, sampled
from woodbury.estimation.recipes import DAMPING, mfac
from woodbury.fisher.base import Fisher
from woodbury.fisher.checks import check_damping
from woodbury.fisher.lowrank import LowRank
from woodbury.inspection.agreement import rank_correlation, shared_removals
from woodbury.inspection.choices import Choice, Chooser, largest_eigenvalue, mean_rows
from woodbury.inspection.curvatures import COUNT, Curvatures
from woodbury.inspection.sensitivity_report import Axis, Sensitivity, Trial
from woodbury.linalg.conversion import seeded
from woodbury.memory.exhausted import if_memory_runs_out
from woodbury.model.batches import Batch, samples_in
from woodbury.model.objective import Objective
from woodbury.monitor import report

DAMPINGS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""A decade apart, as those that `DampingSearch` tries."""
BLOCKS = (32, 128, 512)
"""Weights of a block, beside the whole matrix."""
SHARES_OF_ROWS = (1 / 8, 1 / 4, 1 / 2)
"""Of the rows, beside all of them."""
BATCHES = (4, 16)
"""Samples that one row averages, beside 1."""
FEWEST_ROWS = 4
"""That a Fisher is tried with."""


class _Try(NamedTuple):
    """A setting, and how its Fisher is made."""

    value: str
    fisher: Callable[[], Fisher]


class _Plan(NamedTuple):
    """An axis: its reference and the other settings."""

    name: str
    reference: _Try
    others: tuple[_Try, ...]


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows at the dense weights, and what is made of them."""

    objective: Objective
    damping: float

    def whole(self, rows: Tensor) -> Fisher:
        return LowRank(rows, self.damping)

    def blocks(self, rows: Tensor, size: int) -> Fisher:
        recipe = mfac(len(rows), self.damping, block=size)
        return recipe.of_rows(rows, self.objective.space)


@checks_types
@if_memory_runs_out("give a smaller count")
def sensitivity(
    objective: Objective,
    held_back: Iterable[Batch],
    sparsity: float = 0.5,
    *,
    count: int = COUNT,
    damping: float = DAMPING,
    dampings: Sequence[float] = DAMPINGS,
    blocks: Sequence[int] = BLOCKS,
    batches: Sequence[int] = BATCHES,
    curvatures: Curvatures | None = None,
    has_labels: bool = True,
    seed: int = 0,
) -> Sensitivity:
    """Prune in one step with one setting changed at a time  (eq. 16, 12).

    The settings are the damping, the number of rows, the size of the blocks, the samples that one
    row averages, what the rows are of (Gauss–Newton, the data's labels, drawn labels), the seed of
    the random directions, and the samples themselves, one half against the other. All but drawn
    labels and another seed need no new gradients.

    Args:
        objective: The network on its calibration set.
        held_back: Other samples, with labels, that the loss is measured on.
        sparsity: Removed ÷ all weights.
        count: Rows.
        damping: Where it is not changed.
        dampings: The others that are tried.
        blocks: Sizes of blocks that are tried beside the whole matrix.
        batches: Samples of a row that are tried beside 1.
        curvatures: What `estimate_curvatures` gave for the same objective, whose rows are then
            used; None takes them anew.
        has_labels: Whether the labels are those of the data, and not drawn from the model.
        seed: Of the directions and the drawn labels.

    Returns:
        The numbers and a verdict for each setting. The model is untouched.

    Raises:
        WoodburyError: If the sparsity cannot be reached, the data gives fewer samples, or there
            are no rows.

    Example:
        >>> batches = [(torch.randn(32, 4), torch.arange(32) % 3)]
        >>> objective = Objective.from_model(torch.nn.Linear(4, 3), batches)
        >>> found = sensitivity(objective, batches, count=32, damping=1e-3, blocks=[5])
        >>> [axis.name for axis in found.axes]
        ['damping', 'rows', 'block', 'rows of', 'samples per row', 'seed', 'samples']
    """
    check_whole_number(count, "count", "the number of rows")
    for each in (damping, *dampings):
        check_damping(each)
    for size in blocks:
        check_whole_number(size, "blocks", "the number of weights of a block")
    for batch in batches:
        check_whole_number(batch, "batches", "the number of samples of a row", least=2)
    chooser = Chooser.of(objective, held_back, sparsity)
    rows = _rows_of(objective, count, curvatures, has_labels, seed)
    plans = list(_plans(objective, rows, damping, dampings, blocks, batches, seed))
    references = {plan.reference.fisher for plan in plans}
    total = len(references) + sum(len(plan.others) for plan in plans)
    made = _Made(chooser, total)
    axes = tuple(_axis(plan, made) for plan in plans)
    main = next(iter(rows.values()))
    return Sensitivity(
        sparsity=sparsity,
        samples=sum(samples_in(inputs) for inputs, _ in chooser.held_back),
        dense=chooser.dense,
        rows=len(main),
        damping=damping,
        largest_eigenvalue=largest_eigenvalue(main),
        dtype_resolution=float(torch.finfo(main.dtype).eps),
        axes=axes,
    )


@dataclass(eq=False)
class _Made:
    """Choices that were made, with their progress; the reference of several axes is made once."""

    chooser: Chooser
    total: int
    done: int = 0
    references: dict[Any, Choice | str] = field(default_factory=dict)

    def reference(self, trial: _Try) -> Choice | str:
        """What a setting chooses that others are compared with."""
        if trial.fisher not in self.references:
            self.references[trial.fisher] = self.choice(trial)
        return self.references[trial.fisher]

    def choice(self, trial: _Try) -> Choice | str:
        """What a setting chooses, or why it is refused."""
        try:
            found: Choice | str = self.chooser.choice(trial.fisher())
        except WoodburyError as error:
            found = str(error)
        self.done += 1
        report("settings", self.done, self.total)
        return found


def _axis(plan: _Plan, made: _Made) -> Axis:
    reference = made.reference(plan.reference)
    trials = [_trial(plan.reference.value, reference, reference)]
    trials += [_trial(each.value, made.choice(each), reference) for each in plan.others]
    return Axis(plan.name, plan.reference.value, tuple(trials))


def _trial(value: str, found: Choice | str, reference: Choice | str) -> Trial:
    if isinstance(found, str):
        return Trial(value, refused=found)
    if isinstance(reference, str):
        return Trial(value, increase=found.increase)
    return Trial(
        value,
        rank_correlation=rank_correlation(found.scores, reference.scores),
        shared=shared_removals(found.keep, reference.keep),
        increase=found.increase,
    )


def _rows_of(
    objective: Objective,
    count: int,
    curvatures: Curvatures | None,
    has_labels: bool,
    seed: int,
) -> dict[str, Tensor]:
    """Name -> rows (m, d), the first of them what prune goes by."""
    known: Mapping[str, Fisher] = {} if curvatures is None else curvatures.fishers
    found: dict[str, Tensor] = {}
    for name in ("gauss_newton", "empirical"):
        fisher = known.get(name)
        if isinstance(fisher, LowRank) and isinstance(fisher.rows, Tensor):
            found[name] = fisher.rows
    if found:
        return found
    if objective.likelihood.directions is not None:
        found["gauss_newton"] = _directed(objective, count, seed)
    if has_labels:
        found["empirical"] = gradient_rows(objective, count)
    if not found:
        raise WoodburyError(
            "There are neither labels nor directions of the output: give one of them, as no "
            "gradient rows can be taken without."
        )
    return found


def _plans(
    objective: Objective,
    rows: Mapping[str, Tensor],
    damping: float,
    dampings: Sequence[float],
    blocks: Sequence[int],
    batches: Sequence[int],
    seed: int,
) -> Iterator[_Plan]:
    """The axes in the order in which they are tried."""
    made = _Rows(objective, damping)
    main = next(iter(rows.values()))
    labelled = rows.get("empirical", main)
    shared = LowRank(main, damping)  # whose Gram matrix is computed once
    base = _Try(f"{damping:g}", lambda: shared)
    yield _Plan("damping", base, tuple(_at(shared, each) for each in dampings if each != damping))
    yield _Plan("rows", base._replace(value=f"{len(main)}"), tuple(_fewer(made, main)))
    sizes = sorted({size for size in blocks if size < objective.space.d})
    cut = tuple(_Try(f"{size}", lambda size=size: made.blocks(main, size)) for size in sizes)
    yield _Plan("block", base._replace(value="whole"), cut)
    yield _Plan("rows of", base._replace(value=_KINDS[next(iter(rows))]), _kinds(made, rows, seed))
    means = tuple(
        _Try(f"{batch}", lambda batch=batch: made.whole(mean_rows(labelled, batch)))
        for batch in sorted(set(batches))
        if len(labelled) // batch >= FEWEST_ROWS
    )
    single = base.fisher if labelled is main else lambda: made.whole(labelled)
    yield _Plan("samples per row", _Try("1", single), means)
    if next(iter(rows)) == "gauss_newton":
        count, other_seed = len(main), seed + 1
        anew = _Try(f"{other_seed}", lambda: made.whole(_directed(objective, count, other_seed)))
        yield _Plan("seed", base._replace(value=f"{seed}"), (anew,))
    half = len(main) // 2
    if half >= FEWEST_ROWS:
        other = _Try("the other half", lambda: made.whole(main[half : 2 * half]))
        yield _Plan("samples", _Try("one half", lambda: made.whole(main[:half])), (other,))


_KINDS = {"gauss_newton": "Gauss–Newton", "empirical": "observed labels"}
"""What rows are of."""


def _at(fisher: LowRank, damping: float) -> _Try:
    return _Try(f"{damping:g}", lambda: fisher.with_damping(damping))


def _fewer(made: _Rows, rows: Tensor) -> Iterator[_Try]:
    for share in SHARES_OF_ROWS:
        count = round(share * len(rows))
        if count >= FEWEST_ROWS:
            yield _Try(f"{count}", lambda count=count: made.whole(rows[:count]))


def _kinds(made: _Rows, rows: Mapping[str, Tensor], seed: int) -> tuple[_Try, ...]:
    """Rows of another kind than the first."""
    objective = made.objective
    first, *others = rows
    count = len(rows[first])
    found = [_Try(_KINDS[name], lambda name=name: made.whole(rows[name])) for name in others]
    if objective.likelihood.sample is not None:
        found.append(_Try("drawn labels", lambda: made.whole(_drawn(objective, count, seed))))
    return tuple(found)


def _directed(objective: Objective, count: int, seed: int) -> Tensor:
    """Gauss–Newton rows, one random direction for each sample."""
    return gradient_rows(gauss_newton_rows(objective, 1, seed), count)


def _drawn(objective: Objective, count: int, seed: int) -> Tensor:
    generator = seeded(seed, objective.weights.device)
    return gradient_rows(objective, count, labels=sampled, generator=generator)
