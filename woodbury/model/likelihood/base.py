"""What a likelihood is: a loss, label sampling and GGN directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from woodbury.argument_types import check_fields
from woodbury.errors import (
    Refused,
    WoodburyError,
    WrongType,
    is_out_of_memory,
    reason_with_line,
)
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

    `woodbury.likelihoods` has those that most models are trained by. A loss alone,
    `Likelihood(loss)`, will do for the empirical Fisher.

    Attributes:
        loss: (output, target) -> scalar, the *mean* negative log-likelihood of the batch's samples.
        sample: (output, target, generator) -> a target drawn from the model's own distribution, for
            the true Fisher; None if none can be drawn. The data's target, which may be None, is
            read only where it marks positions without an observation, which stay so.
        ignored: The label that means no observation, such as padding; None if there is none.
        directions: (output, target, mc_samples, generator) -> (b, mc_samples, …) with the other
            dimensions of the output. The sum of their outer products is, at least in expectation,
            the Hessian of the negative log-likelihood by the output  (eq. 29): at the target, or,
            where that is None, its mean over the model's own distribution. None if there is no
            such Hessian.
        output_of: output -> the tensor (b, …) that the directions belong to.

    Example:
        >>> absolute = Likelihood(lambda output, target: (output - target).abs().sum(1).mean())
        >>> absolute.loss(torch.zeros(2, 3), torch.ones(2, 3))
        tensor(3.)
    """

    loss: Callable[[Any, Any], Tensor]
    sample: Callable[[Any, Any, torch.Generator | None], Any] | None = None
    ignored: int | None = None
    directions: Callable[[Any, Any, int, torch.Generator | None], Tensor] | None = None
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
            WoodburyError: If there are no labels, or the loss refuses them.
            WrongType: If the loss is no scalar tensor.
        """
        if target is None:
            raise WoodburyError(
                "The batches carry no labels (None) and a loss needs them: give labels."
            )
        try:
            loss = self.loss(output, target)
        except WoodburyError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise Refused(
                "The loss refuses these outputs and labels: look at their shapes and types. "
                f"({reason_with_line(error)})"
            ) from error
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
            >>> from woodbury import cross_entropy
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


def random_signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Independent signs of mean zero, of which directions are made.

    Args:
        shape: Of the result.
        like: Of its dtype and on its device.
        generator: Of the signs, on that device; None for torch's own.

    Returns:
        1 and −1.
    """
    bits = torch.randint(0, 2, shape, generator=generator, device=like.device)
    return bits.to(like.dtype) * 2 - 1


def tensor_of(output: Any, name: str) -> Tensor:
    """The tensor that a likelihood reads in a model's output.

    Args:
        output: What the model returned.
        name: What the likelihood is called.

    Returns:
        (b, …): the output itself, or the logits in one of transformers.

    Raises:
        WrongType: If it is no tensor.
    """
    scores = output if isinstance(output, Tensor) else scores_of(output)
    if scores is None:
        raise WrongType(
            f"{name} got a {type(output).__name__} from the model, not a tensor: say where the "
            f"tensor is, such as likelihood={name}.with_output(lambda output: output.logits)."
        )
    return scores


@dataclass(frozen=True)
class TensorOf:
    """`tensor_of` as an `output_of`.

    Attributes:
        name: What the likelihood is called.
    """

    name: str

    def __call__(self, output: Any) -> Tensor:
        """Read the tensor of an output."""
        return tensor_of(output, self.name)


def check_target(target: Any, name: str) -> None:
    """Raise unless labels are a tensor.

    Args:
        target: The labels.
        name: What the likelihood is called.

    Raises:
        WrongType: If they are something else.
    """
    if not isinstance(target, Tensor):
        raise WrongType(
            f"{name} got labels that are a {type(target).__name__}: give a tensor, or a "
            "Likelihood of your own, whose loss reads them."
        )


def check_drawable(output: Tensor) -> None:
    """Raise unless labels can be drawn from an output.

    Args:
        output: The tensor that the model returned.

    Raises:
        WoodburyError: If it is not finite.
    """
    if not bool(torch.isfinite(output).all()):
        raise WoodburyError("The model's output is not finite: no label can be drawn from it.")
