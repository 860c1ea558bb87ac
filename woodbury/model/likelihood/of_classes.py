"""Classes: cross-entropy, also with class weights and label smoothing."""

from __future__ import annotations

import math
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
from woodbury.model.likelihood.numbers import checked_numbers


@checks_types
def classes(
    weight: Sequence[float] | Tensor | None = None, *, label_smoothing: float = 0.0
) -> Likelihood:
    """Classes: logits (b, C, …) and int64 targets (b, …), or probabilities of the logits' shape.

    The loss is −Σ_c a_c log p_c with a_c = w_c·((1 − α)·[c = y] + α/C). It is summed over a
    sample's positions and averaged over the batch. A target of −100 counts for nothing, as in
    torch. torch divides a weighted loss by the sum of the batch's weights, so that it is no mean
    over samples; this one divides by their number.

    The Hessian by the logits is Σ_c a_c · (diag(p) − ppᵀ)  (eq. 73). Labels are drawn at a mean
    gradient of zero: class c with a probability ∝ p_c/w_c, as what is weighted more is predicted
    too often. With smoothing they are vectors, which are whole classes once they are smoothed.

    Args:
        weight: w, of each class; None for 1.
        label_smoothing: α, from 0 up to but not including 1.

    Returns:
        The likelihood; `cross_entropy` is that of the defaults.

    Raises:
        WoodburyError: If a weight is negative or not finite, all are 0, or α is out of range.

    Example:
        >>> rare = classes(weight=[1, 10])
        >>> rare.loss(torch.zeros(2, 2), torch.tensor([0, 1]))  # (1 + 10)/2 · log 2
        tensor(3.8123)
    """
    if not 0 <= label_smoothing < 1:
        raise WoodburyError(
            f"label_smoothing is {label_smoothing}: it is α, from 0 up to but not including 1."
        )
    weights = None if weight is None else checked_numbers(weight, "weight", least=0.0)
    if weights is not None and not any(weights):
        raise WoodburyError("All class weights are 0: give at least one that is positive.")
    costs = _Costs(weights, float(label_smoothing))
    output_of = TensorOf(costs.name)
    return Likelihood(_Loss(costs), _Draw(costs), IGNORED, _Directions(costs), output_of)


@dataclass(frozen=True)
class _Costs:
    """What a label costs: a, the weights of −log p."""

    weight: tuple[float, ...] | None = None
    label_smoothing: float = 0.0

    @property
    def name(self) -> str:
        """What a sentence calls the likelihood."""
        return "classes(…)" if self.weight or self.label_smoothing else "cross_entropy"

    def logits(self, output: Any) -> Tensor:
        """The tensor of the output."""
        return tensor_of(output, self.name)

    def checked(self, output: Tensor, target: Any) -> Any:
        """The target as the loss takes it, or None, seen to fit the logits."""
        if self.weight is not None and output.ndim > 1 and output.shape[1] != len(self.weight):
            raise WoodburyError(
                f"{len(self.weight)} class weights met an output of shape {tuple(output.shape)}: "
                "give one for each class along dimension 1."
            )
        if target is None:
            return None
        check_target(target, self.name)
        if target.is_floating_point():
            return target
        _check_classes(output, target, self.name)
        return target.long()

    def weights(self, like: Tensor) -> Tensor | None:
        """w, (C,)."""
        return None if self.weight is None else like.new_tensor(self.weight)

    def total(self, output: Tensor, target: Tensor | None) -> Tensor | None:
        """Σ_c a_c of each position, (b, …); None where it is 1 everywhere.

        Without a target, its mean over labels that are drawn.
        """
        weights = self.weights(output)
        if target is None:
            return None if weights is None else 1 / _expected_inverse(output, weights)
        smooth = self.label_smoothing
        if target.is_floating_point():
            shares = (1 - smooth) * target.to(output) + smooth / output.shape[1]
            return (shares if weights is None else _along_classes(weights, shares) * shares).sum(1)
        observed = (target != IGNORED).to(output)
        if weights is None:
            return observed
        index = target.clamp(min=0)
        if int(index.max()) >= len(weights):
            raise WoodburyError(
                f"A label is {int(index.max())} and there are {len(weights)} classes: give labels "
                f"from 0 to {len(weights) - 1}."
            )
        return observed * ((1 - smooth) * weights[index] + smooth * weights.mean())


@dataclass(frozen=True)
class _Loss:
    costs: _Costs

    def __call__(self, output: Any, target: Tensor) -> Tensor:
        output = self.costs.logits(output)
        target = self.costs.checked(output, target)
        # Summed over a sample's positions, as they are observations of their own: the mean over T
        # of them has a Hessian T times its Fisher, just as for batch means  (eq. 2).
        total = nn.functional.cross_entropy(
            output,
            target,
            self.costs.weights(output),
            reduction="sum",
            ignore_index=IGNORED,
            label_smoothing=self.costs.label_smoothing,
        )
        return total / len(target)


@dataclass(frozen=True)
class _Draw:
    """(b, C, …) logits -> (b, …) classes, or (b, C, …) vectors that smoothing makes classes."""

    costs: _Costs

    def __call__(self, output: Any, target: Any, generator: torch.Generator | None) -> Tensor:
        output = self.costs.logits(output)
        target = self.costs.checked(output, target)
        check_drawable(output)
        weights = self.costs.weights(output)
        logits = output
        if weights is not None:  # a class of weight 0 is not learnt, and never drawn
            shift = torch.where(weights > 0, weights.log(), math.inf)
            logits = output - _along_classes(shift, output)
        last = logits.movedim(1, -1)
        probabilities = last.softmax(-1).reshape(-1, last.shape[-1])
        drawn = torch.multinomial(probabilities, 1, generator=generator).view(last.shape[:-1])
        observed = None
        if isinstance(target, Tensor) and not target.is_floating_point():
            observed = target != IGNORED
        if self.costs.label_smoothing:
            return self._before_smoothing(drawn, observed, output)
        return drawn if observed is None else torch.where(observed, drawn, target)

    def _before_smoothing(self, drawn: Tensor, observed: Tensor | None, output: Tensor) -> Tensor:
        """The vector t whose (1 − α)·t + α/C is [c = drawn], or 0 where nothing was observed."""
        smooth = self.costs.label_smoothing
        whole = nn.functional.one_hot(drawn, output.shape[1]).movedim(-1, 1).to(output)
        if observed is not None:
            whole = whole * observed.unsqueeze(1)
        return (whole - smooth / output.shape[1]) / (1 - smooth)


@dataclass(frozen=True)
class _Directions:
    """√(Σ a) Σ_c ε_c √p_c (e_c − p), random signs ε, per position  (eq. 29)."""

    costs: _Costs

    def __call__(
        self, output: Any, target: Any, mc_samples: int, generator: torch.Generator | None
    ) -> Tensor:
        output = self.costs.logits(output)
        target = self.costs.checked(output, target)
        p = output.unsqueeze(1).softmax(2)
        shape = (len(output), mc_samples, *output.shape[1:])
        signed = random_signs(shape, output, generator) * p.sqrt()
        directions = (signed - p * signed.sum(2, keepdim=True)) / mc_samples**0.5
        total = self.costs.total(output, target)
        return directions if total is None else directions * total.sqrt()[:, None, None]


def _expected_inverse(output: Tensor, weights: Tensor) -> Tensor:
    """Σ_c p_c/w_c over the classes of positive weight, as a share of their p: (b, …)."""
    learnt = _along_classes((weights > 0).to(output), output)
    p = output.softmax(1) * learnt
    inverse = _along_classes(torch.where(weights > 0, 1 / weights, 0.0), output)
    return (p * inverse).sum(1) / p.sum(1)


def _along_classes(vector: Tensor, output: Tensor) -> Tensor:
    """A vector (C,) in the shape of an output (b, C, …)."""
    return vector.view(1, -1, *([1] * (output.ndim - 2)))


def _check_classes(output: Tensor, target: Tensor, name: str) -> None:
    """Raise unless there is one class per position of the outputs."""
    expected = output.shape[:1] + output.shape[2:]
    if output.ndim > 1 and target.shape == expected:
        return
    remedy = f"give classes of shape {tuple(expected)}"
    if output.ndim < 2:
        remedy = "keep the samples along dimension 0, also where there is one, without squeeze()"
    elif target.shape == output.shape[:-1]:
        remedy = (
            "the classes of an output lie along dimension 1, so take "
            f"likelihood={name}.with_output(lambda output: output.movedim(-1, 1))"
        )
    raise WoodburyError(
        f"{name} got outputs of shape {tuple(output.shape)} and labels of shape "
        f"{tuple(target.shape)}: {remedy}."
    )


cross_entropy = classes()
"""Classes: logits (b, C, …) and int64 targets (b, …).

A model of transformers may return its own output, whose logits are read, of tokens too. The labels
of a causal model are those of the next token: `labels[:, 1:]` and a last column of −100.

The loss is summed over positions and averaged over the batch. A target of −100 counts for nothing,
as in torch.
"""
