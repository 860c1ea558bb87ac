"""Real values with normal noise of a known scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError
from woodbury.model.likelihood.base import (
    Likelihood,
    TensorOf,
    check_target,
    random_signs,
    tensor_of,
)
from woodbury.model.likelihood.numbers import checked_numbers, per_output


@checks_types
def normal(scale: float | Sequence[float] | Tensor = 1.0) -> Likelihood:
    """Regression with normal noise of a known scale: ½ Σ ((output − target)/scale)².

    It is summed over a sample's outputs and averaged over the batch; the constant log scale is left
    out. The Hessian by an output is 1/scale²  (eq. 75).

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
    output_of = TensorOf(noise.name)
    return Likelihood(_Loss(noise), _Draw(noise), None, _Directions(noise), output_of)


@dataclass(frozen=True)
class _Noise:
    """Of known scale."""

    scale: tuple[float, ...]

    @property
    def name(self) -> str:
        """What a sentence calls the likelihood."""
        return "squared_error" if self.scale == (1.0,) else "normal(…)"

    def values(self, output: Any) -> Tensor:
        """The tensor of the output."""
        return tensor_of(output, self.name)

    def scale_of(self, values: Tensor) -> Tensor:
        """The scale in a shape that broadcasts with the values."""
        return per_output(self.scale, values, "scale")


@dataclass(frozen=True)
class _Loss:
    noise: _Noise

    def __call__(self, output: Any, target: Tensor) -> Tensor:
        output = self.noise.values(output)
        check_target(target, self.noise.name)
        if output.shape != target.shape:
            raise WoodburyError(
                f"{self.noise.name} got outputs of shape {tuple(output.shape)} and targets of "
                f"shape {tuple(target.shape)}: they must be equal."
            )
        return 0.5 * ((output - target) / self.noise.scale_of(output)).square().sum() / len(target)


@dataclass(frozen=True)
class _Draw:
    noise: _Noise

    def __call__(self, output: Any, target: Any, generator: torch.Generator | None) -> Tensor:
        output = self.noise.values(output)
        drawn = torch.randn(
            output.shape, generator=generator, dtype=output.dtype, device=output.device
        )
        return output + self.noise.scale_of(output) * drawn


@dataclass(frozen=True)
class _Directions:
    """Random signs over the scale: E[ssᵀ] = diag(1/scale²)  (eq. 29)."""

    noise: _Noise

    def __call__(
        self, output: Any, target: Any, mc_samples: int, generator: torch.Generator | None
    ) -> Tensor:
        output = self.noise.values(output)
        scale = self.noise.scale_of(output)
        shape = (len(output), mc_samples, *output.shape[1:])
        signs = random_signs(shape, output, generator)
        if scale.ndim:
            scale = scale.unsqueeze(1)
        return signs / scale / mc_samples**0.5


squared_error = normal()
"""Regression with unit variance: ½ Σ (output − target)², averaged over the batch."""
