"""Likelihood: what a model's output says about its target, and the two that most models are trained by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError

IGNORED = -100
"""The class that means no observation, as in torch and in language models' labels."""


def _itself(output: Any) -> Tensor:
    return output


@dataclass(frozen=True)
class Likelihood:
    """What the model's output says about the target.

    loss: (output, target) -> scalar, the *mean* negative log-likelihood over the batch. sample: (output, generator) ->
    a target drawn from the model's own distribution, for the true Fisher; None if it cannot be drawn. directions: (output,
    mc_samples, generator) -> (b, mc_samples, *output's other dimensions), whose outer products add up to the Hessian of the negative
    log-likelihood by the output, at least in expectation; read: output -> the tensor that the directions are of. ignored: the
    label that means no observation, such as padding; where the data have it, no label is drawn.
    """

    loss: Callable[[Any, Any], Tensor]
    sample: Callable[[Any, torch.Generator | None], Any] | None = None
    ignored: int | None = None
    directions: Callable[[Any, int, torch.Generator | None], Tensor] | None = None
    read: Callable[[Any], Tensor] = _itself

    def output_tensor(self, output: Any) -> Tensor:
        """What the output holds, in float32 at least: what is summed in halves says little."""
        found = self.read(output)
        return found.to(torch.promote_types(found.dtype, torch.float32))

    def directional(self, output: Any, direction: Tensor) -> Tensor:
        """The inner product of what the output holds with a direction (b, …), averaged over the batch: a scalar."""
        return (self.output_tensor(output) * direction).sum() / len(direction)

    def with_output(self, read: Callable[[Any], Any]) -> Likelihood:
        """The same likelihood of what `read` takes from the model's output, such as `lambda output: output.logits`."""
        loss, sample, directions, inner = self.loss, self.sample, self.directions, self.read
        return replace(
            self,
            loss=lambda output, target: loss(read(output), target),
            sample=None
            if sample is None
            else lambda output, generator: sample(read(output), generator),
            directions=None
            if directions is None
            else lambda output, mc_samples, generator: directions(
                read(output), mc_samples, generator
            ),
            read=lambda output: inner(read(output)),
        )


def _sample_classes(output: Tensor, generator: torch.Generator | None) -> Tensor:
    _check_tensor(output, "cross_entropy")
    if not bool(torch.isfinite(output).all()):
        raise WoodburyError("The model's output is not finite: no label can be drawn from it.")
    classes = output.movedim(1, -1)
    drawn = torch.multinomial(
        classes.softmax(-1).reshape(-1, classes.shape[-1]), 1, generator=generator
    )
    return drawn.view(classes.shape[:-1])


def _sample_normal(output: Tensor, generator: torch.Generator | None) -> Tensor:
    _check_tensor(output, "squared_error")
    return output + torch.randn(
        output.shape, generator=generator, dtype=output.dtype, device=output.device
    )


def _directions_of_classes(
    output: Tensor, mc_samples: int, generator: torch.Generator | None
) -> Tensor:
    """Σ_c ε_c √p_c (e_c − p) with random signs ε, at every position: E[ssᵀ] = diag(p) − ppᵀ  (eq. 29)."""
    _check_tensor(output, "cross_entropy")
    chance = output.unsqueeze(1).softmax(2)
    signed = _signs((len(output), mc_samples, *output.shape[1:]), output, generator) * chance.sqrt()
    return (signed - chance * signed.sum(2, keepdim=True)) / mc_samples**0.5


def _directions_of_values(
    output: Tensor, mc_samples: int, generator: torch.Generator | None
) -> Tensor:
    """Random signs: E[ssᵀ] = I  (eq. 29)."""
    _check_tensor(output, "squared_error")
    return _signs((len(output), mc_samples, *output.shape[1:]), output, generator) / mc_samples**0.5


def _signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    return (
        torch.randint(0, 2, shape, generator=generator, device=like.device).to(like.dtype) * 2 - 1
    )


def _half_squared_error(output: Tensor, target: Tensor) -> Tensor:
    _check_tensor(output, "squared_error")
    if output.shape != target.shape:
        raise WoodburyError(
            f"squared_error got outputs of shape {tuple(output.shape)} and targets of shape {tuple(target.shape)}: "
            "they must be equal."
        )
    return 0.5 * (output - target).square().sum() / len(target)


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    _check_tensor(output, "cross_entropy")
    # Summed over a sample's positions, as they are observations of their own: the mean over T of them has a Hessian T
    # times its Fisher, just as for batch means  (eq. 2).
    return nn.functional.cross_entropy(output, target, reduction="sum", ignore_index=IGNORED) / len(
        target
    )


def _check_tensor(output: Any, which: str) -> None:
    if not isinstance(output, Tensor):
        raise WoodburyError(
            f"{which} got a {type(output).__name__} from the model, not a tensor: say where the tensor is, such as "
            f"likelihood={which}.with_output(lambda output: output.logits)."
        )


cross_entropy = Likelihood(_cross_entropy, _sample_classes, IGNORED, _directions_of_classes)
"""Classes: logits (b, C, …) and int64 targets (b, …), summed over the positions … and averaged over the batch.

A target of −100 counts for nothing, as in torch.
"""


squared_error = Likelihood(_half_squared_error, _sample_normal, directions=_directions_of_values)
"""Regression with unit variance: ½ Σ (output − target)², averaged over the batch."""
