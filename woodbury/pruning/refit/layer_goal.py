"""Layer-wise reconstruction: the outputs of every layer as a second goal of a refit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from woodbury.argument_types import check_fields
from woodbury.errors import WoodburyError
from woodbury.estimation.layer_equations import LayerFit
from woodbury.linalg.cholesky import damped_cholesky
from woodbury.linalg.metric import Metric
from woodbury.model.space import ParameterSpace


class LayerTerms(NamedTuple):
    """The damping term of a refit step: (λ/2) (δ − target)ᵀ M (δ − target).

    Attributes:
        metric: M (d, d), block-diagonal; it replaces the identity in the damping λI.
        target: (d,), the step δ that the layers alone ask for.
    """

    metric: Metric
    target: Tensor


@dataclass(frozen=True)
class Reconstruction:
    """Layer-wise reconstruction as the damping term of a refit  (eq. 64, 65).

    Each output of a linear or convolutional layer is a least-squares problem on the layer's inputs.
    The sum of these problems takes the place of the damping λ‖δ‖².

    Attributes:
        weight: ω, of the layers' outputs relative to the network's own; above 0.
        target_fraction: τ, the fraction of each layer's own least-squares step that the refit aims
            at, in [0, 1]. It is below 1 as all layers move at once, and each would correct what the
            layers before it have corrected already.
        ridge: ρ, added to the second moments of a layer's inputs, as a fraction of their mean;
            above 0.

    Raises:
        WoodburyError: If a field is out of its range; the sentence names it.

    Example:
        >>> import woodbury
        >>> woodbury.Refit(reconstruction=Reconstruction(weight=1e-2)).reconstruction.ridge
        0.01
    """

    weight: float = 1e-3
    target_fraction: float = 0.3
    ridge: float = 1e-2

    def __post_init__(self) -> None:
        check_fields(self)
        for name, value in (("weight", self.weight), ("ridge", self.ridge)):
            if not 0 < value < math.inf:
                raise WoodburyError(f"{name} is {value}: it must be positive and finite.")
        if not 0 <= self.target_fraction <= 1:
            raise WoodburyError(
                f"target_fraction is {self.target_fraction}: it must lie in [0, 1]."
            )

    def __call__(
        self, fits: Mapping[str, LayerFit], space: ParameterSpace, curvature: Tensor, damping: float
    ) -> LayerTerms:
        """The damping term of one refit step.

        Args:
            fits: Parameter name -> its layer's normal equations; a parameter without them keeps the
                plain damping.
            space: The kept weights.
            curvature: (d,), the diagonal of JᵀJ/m of the network's outputs. It brings each layer's
                output to their scale.
            damping: λ of the refit.

        Returns:
            The metric of the damping and its target, both in the dtype of `curvature`.
        """
        target = torch.zeros_like(curvature)
        factors = []
        for row in _output_rows(fits, space):
            fit = fits[row.name]
            size = fit.size
            scale = float(curvature[row.where].sum())
            # A layer without input, or on which no output depends, has no scale: plain damping.
            if not (size > 0 and scale > 0):
                continue
            equations = fit.of(row.output, row.kept)
            factor = damped_cholesky(equations.moments, self.ridge * size)
            step = torch.cholesky_solve(equations.cross_moments[:, None], factor)[:, 0]
            target[row.where] = (self.target_fraction * step).to(target.dtype)
            # ‖L‖² is the trace of LLᵀ: the block's trace becomes weight · scale / damping.
            weight = self.weight / damping * scale / float(factor.square().sum())
            factors.append((row.where, (weight**0.5 * factor).to(target.dtype)))
        return LayerTerms(Metric(tuple(factors)), target)


class _OutputRow(NamedTuple):
    """The kept weights of one output of one layer.

    Attributes:
        name: The parameter.
        output: Index of the output in the layer.
        where: Where its k kept weights lie among the d of the space.
        kept: (k,) int64, the inputs that they multiply.
    """

    name: str
    output: int
    where: slice
    kept: Tensor


def _output_rows(fits: Mapping[str, LayerFit], space: ParameterSpace) -> Iterator[_OutputRow]:
    """Each output with kept weights, of each layer with normal equations."""
    start = 0
    for name, part in space.slices.items():
        outputs = space.shapes[name][0]
        for output, keep in enumerate(space.keep[part].view(outputs, -1)):
            kept = keep.nonzero()[:, 0]
            end = start + len(kept)
            if name in fits and len(kept):
                yield _OutputRow(name, output, slice(start, end), kept)
            start = end
