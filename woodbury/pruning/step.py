"""What one pruning step does to the weights: which are kept, how they move, what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from woodbury.errors import WoodburyError, user_code
from woodbury.linalg.conversion import as_tensor
from woodbury.linalg.ranks import Ranks
from woodbury.model.space import ParameterSpace
from woodbury.pruning.budget import Budget
from woodbury.pruning.pruned import Quantiles
from woodbury.pruning.quadratic import Quadratic
from woodbury.pruning.saliencies import Saliency
from woodbury.pruning.selections.greedy_selection import Selection
from woodbury.pruning.updates import Update


class StepRules(NamedTuple):
    """How a step is taken.

    Attributes:
        saliency: What the removal of each unit costs.
        selection: How saliencies become the kept weights.
        update: How the kept weights move.
    """

    saliency: Saliency
    selection: Selection
    update: Update


class Step(NamedTuple):
    """A step that was taken.

    Attributes:
        keep: (d,) bool, True = kept.
        weights: (k,), the kept weights after it.
        predicted: The increase of the loss by the quadratic; None without a Fisher.
        damping_share: Share of it that is the damping's; None where that is not known.
        saliencies: Tensor name -> quantiles of the saliencies of its units.
    """

    keep: Tensor
    weights: Tensor
    predicted: float | None
    damping_share: float | None
    saliencies: Mapping[str, Quantiles]


def whole_step(
    rules: StepRules, quadratic: Quadratic, budget: Budget, space: ParameterSpace
) -> Step:
    """The step by vectors of all weights, which are whole on every rank.

    Args:
        rules: How it is taken.
        quadratic: On the d kept weights of the space.
        budget: Which units compete, and how much of each pool to remove.
        space: Before the step.

    Returns:
        The step.

    Raises:
        WoodburyError: If the user's functions fail or do not fit, too few units can be removed, or
            the update is not finite.
    """
    recorded: list[Tensor] = []
    saliency = _recording(rules.saliency, budget, recorded)
    with user_code("The saliency or the selection fails on this quadratic."):
        keep = as_tensor(rules.selection(quadratic, budget, saliency), "What the selection gave")
    keep = Ranks.current().broadcast(keep.to(quadratic.weights.device))
    with user_code("The update fails on this quadratic."):
        delta = as_tensor(rules.update(quadratic, keep), "What the update gave")
    kept = moved(quadratic.weights, delta, keep)
    predicted = None if quadratic.fisher is None else quadratic.increase(delta)
    length = float(torch.linalg.vector_norm(delta, dtype=torch.float64))
    return Step(
        keep=keep,
        weights=kept,
        predicted=predicted,
        damping_share=damping_share(quadratic, length, predicted),
        saliencies=_quantiles(recorded, budget, space),
    )


def moved(weights: Tensor, delta: Tensor, keep: Tensor) -> Tensor:
    """The kept weights after a step.

    Args:
        weights: (d,), before it.
        delta: (d,), the step.
        keep: (d,) bool, True = kept.

    Returns:
        (k,).

    Raises:
        WoodburyError: If one is not finite.
    """
    kept = (weights + delta)[keep]
    if not bool(torch.isfinite(kept).all()):
        raise WoodburyError("The update gave weights that are not finite: raise the damping.")
    return kept


def damping_share(quadratic: Quadratic, length: float, predicted: float | None) -> float | None:
    """½ λ‖δ‖² ÷ the predicted increase.

    Args:
        quadratic: That of the step.
        length: ‖δ‖.
        predicted: The increase.

    Returns:
        A share; None where the increase is not a sum of this and of a square.
    """
    if quadratic.fisher is None or quadratic.gradient is not None or not predicted:
        return None
    return 0.5 * quadratic.fisher.damping * length**2 / predicted


def _recording(saliency: Saliency, budget: Budget, recorded: list[Tensor]) -> Saliency:
    """The saliency, whose scores of all units, when first asked for, are appended to `recorded`."""
    calls = 1 if budget.groups is None else len(budget.groups)

    def and_record(quadratic: Quadratic, groups: Tensor | None) -> Tensor:
        scores = as_tensor(saliency(quadratic, groups), "What the saliency gave")
        if len(recorded) < calls:
            recorded.append(scores.cpu())
        return scores

    return and_record


def _quantiles(
    recorded: Sequence[Tensor], budget: Budget, space: ParameterSpace
) -> dict[str, Quantiles]:
    """The quantiles of each tensor's scores; none if those of other units were asked for."""
    if sum(map(len, recorded)) != len(budget.costs):
        return {}
    scores = recorded[0] if len(recorded) == 1 else torch.cat(list(recorded))
    if budget.layers is None:  # single weights are by tensor already
        sizes = list(space.kept_sizes)
    else:
        sizes = torch.bincount(budget.layers, minlength=len(space.shapes)).tolist()
        if budget.groups is not None:  # by size of unit
            scores = scores[budget.layers.argsort(stable=True)]
    return {
        name: Quantiles.of(layer_scores)
        for name, layer_scores in zip(space.shapes, scores.split(sizes), strict=True)
        if len(layer_scores)
    }
