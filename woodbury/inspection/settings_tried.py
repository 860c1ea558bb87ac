"""One setting changed at a time: does the choice of weights change, and the loss after it?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, check_whole_number
from woodbury.estimation.recipes import DAMPING
from woodbury.fisher.base import Fisher
from woodbury.fisher.checks import check_damping
from woodbury.inspection.agreement import rank_correlation, shared_removals
from woodbury.inspection.choices import Choice, Chooser
from woodbury.inspection.curvatures import COUNT, Curvatures
from woodbury.inspection.sensitivity_report import Axis, Sensitivity, Trial
from woodbury.inspection.settings_plans import KnownRows, Plan, Try, kinds_known, plans_of
from woodbury.memory.exhausted import if_memory_runs_out
from woodbury.model.batches import Batch, samples_in
from woodbury.model.objective import Objective
from woodbury.monitor import report

DAMPINGS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""A decade apart, as those that `DampingSearch` tries."""
BLOCKS = (32, 128, 512)
"""Weights of a block, beside the whole matrix."""
BATCHES = (4, 16)
"""Samples that one row averages, beside 1."""


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
        ['damping', 'rows', 'block', 'kind of rows', 'samples per row', 'seed', 'samples']
    """
    check_whole_number(count, "count", "the number of rows")
    for each in (damping, *dampings):
        check_damping(each)
    for size in blocks:
        check_whole_number(size, "blocks", "the number of weights of a block")
    for batch in batches:
        check_whole_number(batch, "batches", "the number of samples of a row", least=2)
    chooser = Chooser.of(objective, held_back, sparsity)
    kinds = kinds_known(objective, count, damping, curvatures, has_labels, seed)
    rows = KnownRows(objective, damping, kinds)
    plans = list(plans_of(rows, dampings, blocks, batches, seed))
    uses = Counter(each.fisher for plan in plans for each in plan.tries)
    made = _Made(chooser, uses, len(uses))
    axes = []
    while plans:  # what an axis holds beside the rows is not held any longer than it takes
        axes.append(_axis(plans.pop(0), made))
    return Sensitivity(
        sparsity=sparsity,
        samples=sum(samples_in(inputs) for inputs, _ in chooser.held_back),
        dense=chooser.dense,
        rows=rows.main.m,
        damping=damping,
        largest_eigenvalue=float(torch.linalg.eigvalsh(rows.main.gram)[-1]),
        dtype_resolution=float(torch.finfo(rows.main.rows.dtype).eps),
        axes=tuple(axes),
    )


@dataclass(eq=False)
class _Made:
    """Choices that were made, with their progress; what several axes ask for is made once.

    Attributes:
        chooser: Which makes them.
        uses: How often each Fisher is still asked for. What is not any more is not held here: it
            may hold rows of its own.
        total: Fishers that choose.
        done: Fishers that have chosen.
        known: The choices of those that are asked for again.
    """

    chooser: Chooser
    uses: Counter[Callable[[], Fisher]]
    total: int
    done: int = 0
    known: dict[Callable[[], Fisher], Choice | str] = field(default_factory=dict)

    def choice(self, trial: Try) -> Choice | str:
        """What a setting chooses, or why it is refused."""
        self.uses[trial.fisher] -= 1
        is_last = not self.uses[trial.fisher]
        if is_last:
            del self.uses[trial.fisher]
        if trial.fisher in self.known:
            return self.known.pop(trial.fisher) if is_last else self.known[trial.fisher]
        try:
            found: Choice | str = self.chooser.choice(trial.fisher())
        except WoodburyError as error:
            found = str(error)
        if not is_last:
            self.known[trial.fisher] = found
        self.done += 1
        report("settings", self.done, self.total)
        return found


def _axis(plan: Plan, made: _Made) -> Axis:
    reference = made.choice(plan.reference)
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
