"""Reconstruction: every layer's outputs as a second aim of a refit, beside those of the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from woodbury.errors import WoodburyError
from woodbury.estimation.layer_equations import LayerFit
from woodbury.linalg.cholesky import damped_cholesky
from woodbury.linalg.metric import Metric
from woodbury.model.space import ParameterSpace


@dataclass(frozen=True)
class Reconstruction:
    """What the layers by themselves ask of a step, and what it costs to do otherwise  (eq. 64, 65).

    weight: of the layers' outputs beside the network's own. share: how much of each layer's own least-squares step is
    aimed at, as all layers move at once and each would mend what those before it have mended already. ridge: added to the
    inputs' second moments, as a share of their mean.
    """

    weight: float = 1e-3
    share: float = 0.3
    ridge: float = 1e-2

    def __post_init__(self) -> None:
        if not (
            0 < self.weight < float("inf")
            and 0 <= self.share <= 1
            and 0 < self.ridge < float("inf")
        ):
            raise WoodburyError(
                f"{self} cannot be: give a weight and a ridge above 0, and a share from 0 to 1."
            )

    def __call__(
        self, fits: Mapping[str, LayerFit], space: ParameterSpace, curvature: Tensor, damping: float
    ) -> tuple[Metric, Tensor]:
        """The metric of the damping, and the target (d,) from which a step is measured.

        curvature: (d,), the diagonal of what the network's outputs say, which sets each layer's output in their scale.
        """
        target, factors = torch.zeros_like(curvature), []
        for name, output, where, kept in _rows(fits, space):
            size, scale = fits[name].size, float(curvature[where].sum())
            if not (size > 0 and scale > 0):  # nothing ever came in, or nothing depends on it
                continue
            moments, missed = fits[name].of(output, kept)
            own = damped_cholesky(moments, self.ridge * size)
            target[where] = (self.share * torch.cholesky_solve(missed[:, None], own)[:, 0]).to(
                target.dtype
            )
            weight = self.weight / damping * scale / float(own.square().sum())
            factors.append((where, (weight**0.5 * own).to(target.dtype)))
        return Metric(tuple(factors)), target


def _rows(
    fits: Mapping[str, LayerFit], space: ParameterSpace
) -> Iterator[tuple[str, int, slice, Tensor]]:
    """Each output of each layer that has kept weights: its layer, its index, where they lie in d, and which inputs they take."""
    start = 0
    for name, part in space.slices.items():
        outputs = space.shapes[name][0]
        for output, keep in enumerate(space.keep[part].view(outputs, -1)):
            kept = keep.nonzero()[:, 0]
            if name in fits and len(kept):
                yield name, output, slice(start, start + len(kept)), kept
            start += len(kept)
