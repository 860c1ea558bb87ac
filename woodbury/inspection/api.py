"""inspect(): how good the curvature of a network is, in one call."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from woodbury.argument_types import checks_types
from woodbury.inspection.curvatures import COUNT
from woodbury.inspection.findings import DAMPING, Inspection, Settings
from woodbury.inspection.forecast_calibration import SPARSITIES
from woodbury.inspection.questions import HELD_BACK, answers, prepared
from woodbury.memory.budget import check_holds, limits_within
from woodbury.memory.exhausted import if_memory_runs_out
from woodbury.model.batches import Batch
from woodbury.model.likelihood import Likelihood, cross_entropy
from woodbury.model.random_numbers import random_kept
from woodbury.model.space import Patterns
from woodbury.pruning.planning import pruning_objective

IF_MEMORY_RUNS_OUT = "give inspect a smaller memory or count, or fewer parameters with include"


@checks_types
@random_kept()
def inspect(
    model: nn.Module,
    batches: Iterable[Batch],
    sparsity: float = 0.5,
    *,
    held_back: Iterable[Batch] | float = HELD_BACK,
    count: int = COUNT,
    damping: float = DAMPING,
    sparsities: tuple[float, ...] = SPARSITIES,
    likelihood: Likelihood = cross_entropy,
    include: Patterns | None = None,
    exclude: Patterns = (),
    keep_zeros: bool = False,
    memory: int | str | None = None,
    seed: int = 0,
) -> Inspection:
    """Ask how good the curvature of a network is, and when to trust what it predicts.

    Four questions: how near the estimates are to the exact Hessian (eq. 77, 79), what the loss does
    along a pruning step (eq. 78), what the settings change, and up to which sparsity the forecast
    of the loss holds (eq. 80). The model is not changed.

    Args:
        model: The trained network, as for `prune`.
        batches: Training data, as for `prune`; without labels the model draws them.
        sparsity: Removed ÷ all weights, in (0, 1), of the step that is looked along.
        held_back: The share of the samples that only measures the loss, in (0, 1), or re-iterable
            batches of other training data.
        count: Samples that each curvature is estimated from, at most; fewer where the data or the
            memory has fewer.
        damping: Added to the diagonal.
        sparsities: Where the forecast is tried.
        likelihood: As for `prune`.
        include: As for `prune`.
        exclude: As for `prune`.
        keep_zeros: As for `prune`.
        memory: What the run may hold, as for `prune`.
        seed: Of all that is drawn.

    Returns:
        All numbers, with a verdict for each question. What a model does not have, such as second
        derivatives, is named in `left_out`.

    Raises:
        WoodburyError: Where `prune` refuses the model or the data; if a number is out of range, or
            the data or the memory holds too few samples.

    Example:
        >>> import torch, woodbury
        >>> from torch.nn import Linear, Sequential, Tanh
        >>> model = Sequential(Linear(6, 8), Tanh(), Linear(8, 3))
        >>> batches = [(torch.randn(64, 6), torch.arange(64) % 3)]
        >>> found = woodbury.inspect(model, batches)
        >>> found.count, list(found.verdicts)[2:5]
        (32, ['Hessian', 'damping', 'rows'])
    """
    asked = Settings(sparsity, count, damping, sparsities, seed)
    with limits_within(memory), if_memory_runs_out(IF_MEMORY_RUNS_OUT):
        objective = pruning_objective(model, batches, likelihood, include, exclude, keep_zeros)
        check_holds(memory, objective.space.n)
        *_, last = answers(prepared(objective, asked, held_back), asked)
    return last
