"""Answers of yes or no, one or several to a sample: binary and multi-label classification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError
from woodbury.model.likelihood.base import (
    IGNORED,
    Likelihood,
    TensorOf,
    check_drawable,
    check_target,
    random_signs,
    tensor_of,
)
from woodbury.model.likelihood.numbers import checked_numbers, per_output


@checks_types
def binary(pos_weight: float | Sequence[float] | Tensor | None = None) -> Likelihood:
    """Answers of yes or no: logits (b, …), and targets of the same shape from 0 to 1.

    The loss is −w·y log σ(f) − (1 − y) log σ(−f), as of `torch.nn.BCEWithLogitsLoss`. It is summed
    over a sample's answers, which are observations of their own, and averaged over the batch. A
    target of −100 counts for nothing.

    The Hessian by a logit is (w·y + 1 − y)·σ(f)·σ(−f)  (eq. 74). Labels are drawn at a mean
    gradient of zero: yes with the probability σ(f − log w), as what is weighted more is predicted
    too often.

    Args:
        pos_weight: w, of a yes: one number, or one for each label along dimension 1; None for 1.

    Returns:
        The likelihood.

    Raises:
        WoodburyError: If a weight is not positive, or not finite.

    Example:
        >>> binary().loss(torch.zeros(1, 3), torch.tensor([[1, 0, -100]]))  # 2 · log 2
        tensor(1.3863)
    """
    if pos_weight is None:
        pos_weight = 1.0
    cost = _Cost(checked_numbers(pos_weight, "pos_weight", least=0.0, above=True))
    output_of = TensorOf("binary()")
    return Likelihood(_Loss(cost), _Draw(cost), IGNORED, _Directions(cost), output_of)


@dataclass(frozen=True)
class _Cost:
    """What a yes costs more than a no."""

    pos_weight: tuple[float, ...]

    def weight(self, output: Tensor) -> Tensor:
        """w, in a shape that broadcasts with the output."""
        return per_output(self.pos_weight, output, "pos_weight")

    def total(self, output: Tensor, target: Tensor | None) -> Tensor:
        """w·y + 1 − y in the output's shape; without a target, its mean over drawn labels."""
        weight = self.weight(output)
        if target is None:
            yes = (output - weight.log()).sigmoid()
            return weight * yes + (1 - yes)
        y = target.to(output)
        return torch.where(target == IGNORED, 0.0, weight * y + (1 - y))


@dataclass(frozen=True)
class _Loss:
    cost: _Cost

    def __call__(self, output: Any, target: Tensor) -> Tensor:
        output = _logits(output)
        _check_answers(output, target)
        observed = target != IGNORED
        total = nn.functional.binary_cross_entropy_with_logits(
            output,
            torch.where(observed, target, 0).to(output),
            observed.to(output),
            pos_weight=self.cost.weight(output),
            reduction="sum",
        )
        return total / len(target)


@dataclass(frozen=True)
class _Draw:
    cost: _Cost

    def __call__(self, output: Any, target: Any, generator: torch.Generator | None) -> Tensor:
        output = _logits(output)
        check_drawable(output)
        yes = (output - self.cost.weight(output).log()).sigmoid()
        uniform = torch.rand(
            output.shape, generator=generator, dtype=output.dtype, device=output.device
        )
        drawn = (uniform < yes).to(output)
        if target is None:
            return drawn
        _check_answers(output, target)
        return torch.where(target == IGNORED, float(IGNORED), drawn)


@dataclass(frozen=True)
class _Directions:
    """ε √(Hessian), random signs ε  (eq. 29)."""

    cost: _Cost

    def __call__(
        self, output: Any, target: Any, mc_samples: int, generator: torch.Generator | None
    ) -> Tensor:
        output = _logits(output)
        if target is not None:
            _check_answers(output, target)
        variance = output.sigmoid() * (-output).sigmoid()
        root = (self.cost.total(output, target) * variance).sqrt()
        shape = (len(output), mc_samples, *output.shape[1:])
        return random_signs(shape, output, generator) * root.unsqueeze(1) / mc_samples**0.5


def _logits(output: Any) -> Tensor:
    return tensor_of(output, "binary()")


def _check_answers(output: Tensor, target: Any) -> None:
    """Raise unless there is an answer from 0 to 1 for each logit."""
    check_target(target, "binary()")
    if output.shape != target.shape:
        remedy = f"give labels of shape {tuple(output.shape)}"
        if output.shape == (*target.shape, 1):
            remedy = "take likelihood=binary().with_output(lambda output: output[..., 0])"
        raise WoodburyError(
            f"binary() got outputs of shape {tuple(output.shape)} and labels of shape "
            f"{tuple(target.shape)}: {remedy}."
        )
    wrong = ((target < 0) | (target > 1)) & (target != IGNORED)
    try:
        found = bool(wrong.any())
    except RuntimeError:  # torch.func.vmap lets nobody read a value
        return
    if found:
        raise WoodburyError(
            f"binary() got the label {float(target[wrong][0]):g}: give numbers from 0 for no to 1 "
            f"for yes, or {IGNORED} for no observation."
        )
