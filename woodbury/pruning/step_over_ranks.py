"""The same step where each rank has only its own columns: no vector of all weights is made."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from woodbury.fisher.own_columns import OwnColumns
from woodbury.fisher.sharded import Sharded
from woodbury.linalg.order_over_ranks import SortedParts, lowest_over_ranks
from woodbury.model.space import ParameterSpace
from woodbury.pruning.budget import Budget, check_finite_scores
from woodbury.pruning.pruned import Quantiles
from woodbury.pruning.quadratic import Quadratic, double_dot
from woodbury.pruning.saliencies import magnitude, obd, obs, woodtaylor
from woodbury.pruning.selections.greedy_selection import greedy
from woodbury.pruning.step import Step, StepRules, damping_share, moved
from woodbury.pruning.updates import independent, joint, zero

SALIENCIES = (magnitude, obd, obs, woodtaylor)
"""Those that score a weight by numbers of its own column."""

UPDATES = (zero, independent, joint)
"""Those that are products and solves of the operator."""


def can_be_divided(rules: StepRules, quadratic: Quadratic, budget: Budget) -> bool:
    """Whether a step needs no vector of all weights.

    Args:
        rules: How it is taken.
        quadratic: Whose operator must be spread over ranks.
        budget: Of single weights of one cost that all compete, without a limit for each tensor.

    Returns:
        The same on all ranks.
    """
    return (
        isinstance(quadratic.fisher, Sharded)
        and rules.selection is greedy
        and any(rules.saliency is known for known in SALIENCIES)
        and any(rules.update is known for known in UPDATES)
        and budget.lowest_count is not None
    )


def divided_step(
    rules: StepRules, quadratic: Quadratic, budget: Budget, space: ParameterSpace
) -> Step:
    """The step by this rank's columns; what all ranks keep is gathered piece by piece at the end.

    Args:
        rules: How it is taken, such that `can_be_divided`.
        quadratic: On the d kept weights of the space.
        budget: How much to remove.
        space: Before the step.

    Returns:
        The step, with the same bits on every rank.

    Raises:
        WoodburyError: If a saliency or a kept weight is not finite.
    """
    own = own_quadratic(quadratic)
    part = own.fisher
    assert isinstance(part, OwnColumns) and budget.lowest_count is not None
    scores = rules.saliency(own, None).cpu()
    check_finite_scores(scores, part.own.start)
    ordered = SortedParts.of(scores, _own_sizes(space, part), part.ranks)
    keep = ~lowest_over_ranks(scores, ordered, budget.lowest_count)
    quantiles = _quantiles(ordered, space)
    del scores, ordered
    keep = keep.to(own.weights.device)
    delta = rules.update(own, keep)
    kept = moved(own.weights, delta, keep)
    predicted = _increase(own, part, delta)
    squares = _total(part, float(torch.linalg.vector_norm(delta, dtype=torch.float64)) ** 2)
    del delta
    widths = [stop - start for start, stop in zip(part.bounds, part.bounds[1:], strict=False)]
    return Step(
        keep=part.ranks.all_gather_parts(keep, widths),
        weights=part.ranks.all_gather_parts(kept, part.counts(keep)),
        predicted=predicted,
        damping_share=damping_share(quadratic, squares**0.5, predicted),
        saliencies=quantiles,
    )


def own_quadratic(quadratic: Quadratic) -> Quadratic:
    """The quadratic on a rank's own columns.

    Args:
        quadratic: Whose operator is `Sharded`.

    Returns:
        Parts of its vectors, which are not copied.
    """
    assert isinstance(quadratic.fisher, Sharded)
    part = quadratic.fisher.part
    gradient = None if quadratic.gradient is None else quadratic.gradient[part.own]
    return replace(quadratic, weights=quadratic.weights[part.own], fisher=part, gradient=gradient)


def _own_sizes(space: ParameterSpace, part: OwnColumns) -> list[int]:
    """How many kept weights of each tensor are this rank's."""
    sizes = []
    start = 0
    for kept in space.kept_sizes:
        first, last = max(start, part.own.start), min(start + kept, part.own.stop)
        sizes.append(max(last - first, 0))
        start += kept
    return sizes


def _quantiles(ordered: SortedParts, space: ParameterSpace) -> dict[str, Quantiles]:
    """The quantiles of each tensor's scores."""
    places = [Quantiles.places(kept) if kept else () for kept in space.kept_sizes]
    found = zip(space.shapes, ordered.at_each(places), strict=True)
    return {name: Quantiles(*values) for name, values in found if values}


def _increase(own: Quadratic, part: OwnColumns, delta: Tensor) -> float:
    """The predicted increase, gᵀδ + ½ δᵀFδ over all ranks."""
    curved = 0.5 * part.quadratic_form(delta.to(part.dtype))
    if own.gradient is None:
        return curved
    return _total(part, double_dot(delta, own.gradient)) + curved


def _total(part: OwnColumns, value: float) -> float:
    """The sum of a number over all ranks."""
    return float(part.ranks.sum(torch.tensor([value], dtype=torch.float64))[0])
