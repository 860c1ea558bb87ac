"""Real values with normal noise of a known scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError, WrongType
from woodbury.model.likelihood.base import Likelihood, check_output, random_signs
from woodbury.model.likelihood.numbers import checked_numbers, per_output


@checks_types
def normal(scale: float | Sequence[float] | Tensor = 1.0) -> Likelihood:
    """Regression with normal noise of a known scale: ½ Σ ((output − target)/scale)².

    It is summed over a sample's outputs and averaged over the batch; the constant log scale is left
    out. The Hessian by an output is 1/scale².

    Args:
        scale: The noise's standard deviation, in the target's unit: one number, or one for each
            output along dimension 1. `torch.nn.MSELoss` of k outputs is that of √(k/2).

    Returns:
        The likelihood; `squared_error` is that of scale 1.

    Raises:
        WoodburyError: If a scale is not positive, or not finite.

    Example:
        >>> metres_and_kilograms = normal(scale=[0.5, 2])
        >>> metres_and_kilograms.loss(torch.zeros(1, 2), torch.ones(1, 2))  # ½ (2² + ½²)
        tensor(2.1250)
    """
    noise = _Noise(checked_numbers(scale, "scale", least=0.0, above=True))
    return Likelihood(_Loss(noise), _Draw(noise), directions=_Directions(noise))


@dataclass(frozen=True)
class _Noise:
    """Of known scale."""

    scale: tuple[float, ...]

    @property
    def name(self) -> str:
        """What a sentence calls the likelihood."""
        return "squared_error" if self.scale == (1.0,) else "normal(…)"

    def checked_scale(self, output: Any) -> Tensor:
        """The scale in a shape that broadcasts with an output, which is seen to be a tensor."""
        check_output(output, self.name)
        return per_output(self.scale, output, "scale")


@dataclass(frozen=True)
class _Loss:
    noise: _Noise

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        scale = self.noise.checked_scale(output)
        if not isinstance(target, Tensor):
            raise WrongType(
                f"{self.noise.name} got targets of type {type(target).__name__}: give a tensor."
            )
        if output.shape != target.shape:
            raise WoodburyError(
                f"{self.noise.name} got outputs of shape {tuple(output.shape)} and targets of "
                f"shape {tuple(target.shape)}: they must be equal."
            )
        return 0.5 * ((output - target) / scale).square().sum() / len(target)


@dataclass(frozen=True)
class _Draw:
    noise: _Noise

    def __call__(self, output: Tensor, target: Any, generator: torch.Generator | None) -> Tensor:
        scale = self.noise.checked_scale(output)
        drawn = torch.randn(
            output.shape, generator=generator, dtype=output.dtype, device=output.device
        )
        return output + scale * drawn


@dataclass(frozen=True)
class _Directions:
    """Random signs over the scale: E[ssᵀ] = diag(1/scale²)  (eq. 29)."""

    noise: _Noise

    def __call__(
        self, output: Tensor, target: Any, mc_samples: int, generator: torch.Generator | None
    ) -> Tensor:
        scale = self.noise.checked_scale(output)
        shape = (len(output), mc_samples, *output.shape[1:])
        signs = random_signs(shape, output, generator)
        if scale.ndim:
            scale = scale.unsqueeze(1)
        return signs / scale / mc_samples**0.5


squared_error = normal()
"""Regression with unit variance: ½ Σ (output − target)², averaged over the batch."""
