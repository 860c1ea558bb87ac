"""Saliencies: the predicted loss of removing each unit; small goes first."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from woodbury.pruning.quadratic import Quadratic

Saliency = Callable[[Quadratic, Tensor | None], Tensor]
"""(quadratic, groups (g, s) int64 or None for single weights) -> scores (g,)."""


def magnitude(quadratic: Quadratic, groups: Tensor | None = None) -> Tensor:
    """w², summed over a unit (magnitude pruning): no curvature."""
    return _summed(quadratic.weights.double().square(), groups)


def obd(quadratic: Quadratic, groups: Tensor | None = None) -> Tensor:
    """½ F_qq w_q², summed over a unit (Optimal Brain Damage, LeCun et al. 1989)  (eq. 15)."""
    fisher = quadratic.curvature("obd")
    return _summed(0.5 * fisher.diagonal() * quadratic.weights.to(fisher.dtype).square(), groups)


def obs(quadratic: Quadratic, groups: Tensor | None = None) -> Tensor:
    """w_q² / (2 [F⁻¹]_qq), for a unit ½ wᵀ [F⁻¹_QQ]⁻¹ w (Optimal Brain Surgeon, Hassibi & Stork 1992)  (eq. 16)."""
    fisher = quadratic.curvature("obs")
    return _surgeon(quadratic, quadratic.weights.to(fisher.dtype), groups)


def woodtaylor(quadratic: Quadratic, groups: Tensor | None = None) -> Tensor:
    """(w_q − [F⁻¹g]_q)² / (2 [F⁻¹]_qq): OBS with the first-order term (Singh & Alistarh 2020, S9)  (eq. 17)."""
    fisher = quadratic.curvature("woodtaylor")
    newton = fisher.solve(quadratic.slope("woodtaylor").to(fisher.dtype))
    return _surgeon(quadratic, quadratic.weights.to(fisher.dtype) - newton, groups)


def _surgeon(quadratic: Quadratic, distance: Tensor, groups: Tensor | None) -> Tensor:
    fisher = quadratic.curvature("obs")
    if groups is None:
        return 0.5 * distance.square() / fisher.inverse_diagonal()
    values = distance[groups].double()[..., None]
    blocks = fisher.inverse_blocks(groups).double()
    return 0.5 * (values * torch.linalg.solve(blocks, values)).sum((1, 2))


def _summed(scores: Tensor, groups: Tensor | None) -> Tensor:
    return scores if groups is None else scores[groups].sum(1)
