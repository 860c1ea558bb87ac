"""Likelihoods: loss, label sampling and GGN directions for classification and regression."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.argument_types import check_fields
from woodbury.errors import WoodburyError, WrongType
from woodbury.io.representation import readable
from woodbury.linalg.precision import at_least_float32
from woodbury.model.pretrained import scores_of

IGNORED = -100
"""The class that means no observation, as in torch and in language models' labels."""


def _identity(output: Any) -> Tensor:
    return output


@dataclass(frozen=True)
class Likelihood:
    """What a model's output says about the target.

    `cross_entropy` and `squared_error` are the two that most models are trained by. A loss alone,
    `Likelihood(loss)`, will do for the empirical Fisher.

    Attributes:
        loss: (output, target) -> scalar, the *mean* negative log-likelihood of the batch's samples.
        sample: (output, generator) -> a target drawn from the model's own distribution, for the
            true Fisher; None if none can be drawn.
        ignored: The label that means no observation, such as padding. Where the data have it, no
            label is drawn.
        directions: (output, mc_samples, generator) -> (b, mc_samples, …) with the other
            dimensions of the output. The sum of their outer products is, at least in expectation,
            the Hessian of the negative log-likelihood by the output  (eq. 29). None if there is
            no such Hessian.
        output_of: output -> the tensor (b, …) that the directions belong to.

    Example:
        >>> absolute = Likelihood(lambda output, target: (output - target).abs().sum(1).mean())
        >>> absolute.loss(torch.zeros(2, 3), torch.ones(2, 3))
        tensor(3.)
    """

    loss: Callable[[Any, Any], Tensor]
    sample: Callable[[Any, torch.Generator | None], Any] | None = None
    ignored: int | None = None
    directions: Callable[[Any, int, torch.Generator | None], Tensor] | None = None
    output_of: Callable[[Any], Tensor] = _identity

    __repr__ = readable

    def __post_init__(self) -> None:
        check_fields(self)

    def checked_loss(self, output: Any, target: Any) -> Tensor:
        """The loss of a batch, seen to be one number.

        Args:
            output: What the model returned.
            target: The labels.

        Returns:
            A scalar tensor.

        Raises:
            WoodburyError: If there are no labels.
            WrongType: If the loss is no scalar tensor.
        """
        if target is None:
            raise WoodburyError(
                "The batches carry no labels (None) and a loss needs them: give labels."
            )
        loss = self.loss(output, target)
        if not isinstance(loss, Tensor) or loss.ndim:
            given = type(loss).__name__
            if isinstance(loss, Tensor):
                given = f"a tensor of shape {tuple(loss.shape)}"
            raise WrongType(
                f"The likelihood's loss gave {given}: it must give the batch's mean loss, a scalar "
                "tensor."
            )
        return loss

    def output_tensor(self, output: Any) -> Tensor:
        """The tensor of an output that the directions belong to.

        Args:
            output: What the model returned.

        Returns:
            (b, …), float32 at least: sums of halves lose their digits.
        """
        return at_least_float32(self.output_of(output))

    def directional(self, output: Any, direction: Tensor) -> Tensor:
        """The inner product of each sample's output with a direction, averaged over the batch.

        Args:
            output: What the model returned.
            direction: (b, …), one direction per sample.

        Returns:
            A scalar, whose gradient is a mean of rows of the Gauss–Newton matrix  (eq. 29).
        """
        return (self.output_tensor(output) * direction).sum() / len(direction)

    def with_output(self, read: Callable[[Any], Any]) -> Likelihood:
        """The same likelihood for a model whose output holds the tensor somewhere inside.

        Args:
            read: output -> the tensor. A function of a module, and no lambda, if the likelihood
                is to be pickled.

        Returns:
            A likelihood of the model's whole output.

        Example:
            >>> logits = cross_entropy.with_output(lambda output: output["logits"])
            >>> logits.loss({"logits": torch.zeros(2, 4)}, torch.tensor([0, 3]))
            tensor(1.3863)
        """
        return replace(
            self,
            loss=_AfterReading(self.loss, read),
            sample=None if self.sample is None else _AfterReading(self.sample, read),
            directions=None if self.directions is None else _AfterReading(self.directions, read),
            output_of=_AfterReading(self.output_of, read),
        )


@dataclass(frozen=True)
class _AfterReading:
    """A function of `read(output)` as a function of the output."""

    function: Callable[..., Any]
    read: Callable[[Any], Any]

    def __call__(self, output: Any, *arguments: Any) -> Any:
        return self.function(self.read(output), *arguments)


def check_likelihood(likelihood: Any) -> None:
    """Raise unless something is a likelihood.

    Args:
        likelihood: What was given as one.

    Raises:
        WrongType: If it is something else, such as a loss.
    """
    if not isinstance(likelihood, Likelihood):
        raise WrongType(
            f"The likelihood is a {type(likelihood).__name__}: wrap a loss as Likelihood(loss)."
        )


def _cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    output = _scores(output, "cross_entropy")
    if not target.is_floating_point():
        _check_classes(output, target)
        target = target.long()
    # Summed over a sample's positions, as they are observations of their own: the mean over T of
    # them has a Hessian T times its Fisher, just as for batch means  (eq. 2).
    total = nn.functional.cross_entropy(output, target, reduction="sum", ignore_index=IGNORED)
    return total / len(target)


def _check_classes(output: Tensor, target: Tensor) -> None:
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
            "likelihood=cross_entropy.with_output(lambda output: output.movedim(-1, 1))"
        )
    raise WoodburyError(
        f"cross_entropy got outputs of shape {tuple(output.shape)} and labels of shape "
        f"{tuple(target.shape)}: {remedy}."
    )


def _sample_classes(output: Tensor, generator: torch.Generator | None) -> Tensor:
    """(b, C, …) logits -> (b, …) classes."""
    output = _scores(output, "cross_entropy")
    if not bool(torch.isfinite(output).all()):
        raise WoodburyError("The model's output is not finite: no label can be drawn from it.")
    logits = output.movedim(1, -1)
    probabilities = logits.softmax(-1).reshape(-1, logits.shape[-1])
    drawn = torch.multinomial(probabilities, 1, generator=generator)
    return drawn.view(logits.shape[:-1])


def _directions_of_classes(
    output: Tensor, mc_samples: int, generator: torch.Generator | None
) -> Tensor:
    """Σ_c ε_c √p_c (e_c − p), random signs ε, per position: E[ssᵀ] = diag(p) − ppᵀ  (eq. 29)."""
    output = _scores(output, "cross_entropy")
    p = output.unsqueeze(1).softmax(2)
    signed = _signs((len(output), mc_samples, *output.shape[1:]), output, generator) * p.sqrt()
    return (signed - p * signed.sum(2, keepdim=True)) / mc_samples**0.5


def _half_squared_error(output: Tensor, target: Tensor) -> Tensor:
    output = _scores(output, "squared_error")
    if output.shape != target.shape:
        raise WoodburyError(
            f"squared_error got outputs of shape {tuple(output.shape)} and targets of shape "
            f"{tuple(target.shape)}: they must be equal."
        )
    return 0.5 * (output - target).square().sum() / len(target)


def _sample_normal(output: Tensor, generator: torch.Generator | None) -> Tensor:
    output = _scores(output, "squared_error")
    noise = torch.randn(output.shape, generator=generator, dtype=output.dtype, device=output.device)
    return output + noise


def _directions_of_values(
    output: Tensor, mc_samples: int, generator: torch.Generator | None
) -> Tensor:
    """Random signs: E[ssᵀ] = I  (eq. 29)."""
    output = _scores(output, "squared_error")
    return _signs((len(output), mc_samples, *output.shape[1:]), output, generator) / mc_samples**0.5


def _signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    bits = torch.randint(0, 2, shape, generator=generator, device=like.device)
    return bits.to(like.dtype) * 2 - 1


def _scores(output: Any, which: str) -> Tensor:
    """The tensor that a model returned, or the logits in an output of transformers."""
    scores = output if isinstance(output, Tensor) else scores_of(output)
    if scores is None:
        raise WrongType(
            f"{which} got a {type(output).__name__} from the model, not a tensor: say where the "
            f"tensor is, such as likelihood={which}.with_output(lambda output: output.logits)."
        )
    return scores


def _output_of_classes(output: Any) -> Tensor:
    return _scores(output, "cross_entropy")


def _output_of_values(output: Any) -> Tensor:
    return _scores(output, "squared_error")


cross_entropy = Likelihood(
    _cross_entropy, _sample_classes, IGNORED, _directions_of_classes, _output_of_classes
)
"""Classes: logits (b, C, …) and int64 targets (b, …).

A model of transformers may return its own output, whose logits are read, of tokens too. The labels
of a causal model are those of the next token: `labels[:, 1:]` and a last column of −100.

The loss is summed over positions and averaged over the batch. A target of −100 counts for nothing,
as in torch.
"""


squared_error = Likelihood(
    _half_squared_error,
    _sample_normal,
    directions=_directions_of_values,
    output_of=_output_of_values,
)
"""Regression with unit variance: ½ Σ (output − target)², averaged over the batch."""
