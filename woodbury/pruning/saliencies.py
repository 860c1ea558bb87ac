"""Saliencies: the predicted loss of removing each unit; small goes first."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from woodbury.limits import Limits
from woodbury.linalg.cholesky import damped_cholesky
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
    quadratic.curvature("woodtaylor")
    quadratic.slope("woodtaylor")
    return _surgeon(quadratic, quadratic.from_minimum, groups)


def _surgeon(quadratic: Quadratic, distance: Tensor, groups: Tensor | None) -> Tensor:
    fisher = quadratic.curvature("obs")
    if groups is None:
        return 0.5 * distance.square() / fisher.inverse_diagonal()
    if not len(groups):
        return distance.new_zeros(0)
    stiffness = fisher.diagonal().double()
    at_once = max(1, Limits.current().temporary // max(1, groups.shape[1] ** 2))
    pieces = groups.split(at_once)
    return torch.cat(
        [joint_cost(distance[q], fisher.inverse_blocks(q), stiffness[q]) for q in pieces]
    )


def joint_cost(values: Tensor, inverse: Tensor, stiffness: Tensor) -> Tensor:
    """½ xᵀ B⁻¹ x in float64, never negative: values x (…, s), inverse B = [F⁻¹]_QQ (…, s, s), stiffness diag(F)_Q (…, s).

    Rounding may have cost B its small eigenvalues: none of them lies below 1/tr F_QQ  (eq. 52).
    """
    floor = float(1 / stiffness.sum(-1).max())
    eye = torch.eye(values.shape[-1], dtype=torch.float64, device=values.device)
    factor = damped_cholesky(inverse.double() - floor * eye, floor)
    half = torch.linalg.solve_triangular(factor, values.double()[..., None], upper=False)
    return 0.5 * half.square().sum((-1, -2))


def _summed(scores: Tensor, groups: Tensor | None) -> Tensor:
    return scores if groups is None else scores[groups].sum(1)
