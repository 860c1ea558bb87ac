"""Saliencies: the predicted increase of the loss when each unit is removed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from woodbury.argument_types import checks_types
from woodbury.fisher.checks import check_groups
from woodbury.limits import Limits
from woodbury.linalg.cholesky import damped_cholesky
from woodbury.pruning.quadratic import Quadratic

Saliency = Callable[[Quadratic, Tensor | None], Tensor]
"""(quadratic, groups (g, s) int64, or None for single weights) -> scores (g,), or (d,).

Units of low score are removed first.
"""


@checks_types
def magnitude(quadratic: Quadratic, groups: Tensor | None = None) -> Tensor:
    """Magnitude pruning: w², summed over a unit; no curvature.

    Args:
        quadratic: The model of the loss, of which the weights alone are read.
        groups: (g, s) int64, the weights of each unit; None for single weights.

    Returns:
        (g,) scores in float64, (d,) for single weights.

    Raises:
        WoodburyError: If the groups do not fit.

    Example:
        >>> import torch
        >>> magnitude(Quadratic(torch.tensor([1.0, -2.0])))
        tensor([1., 4.], dtype=torch.float64)
    """
    return _summed(quadratic.weights.double().square(), groups)


@checks_types
def obd(quadratic: Quadratic, groups: Tensor | None = None) -> Tensor:
    """Optimal Brain Damage: ½ F_qq w_q², summed over a unit  (eq. 15).

    The loss of setting weight q to zero while all others stay (LeCun et al., NeurIPS 1989).

    Args:
        quadratic: The model of the loss, with a Fisher.
        groups: (g, s) int64, the weights of each unit; None for single weights.

    Returns:
        (g,) scores in the dtype of the Fisher, (d,) for single weights.

    Raises:
        WoodburyError: If there is no Fisher, or the groups do not fit.

    Example:
        >>> import torch
        >>> from woodbury.fisher import Diagonal
        >>> obd(Quadratic(torch.tensor([1.0, 2.0]), Diagonal(torch.tensor([3.0, 1.0]), 1.0)))
        tensor([2., 4.])
    """
    fisher = quadratic.curvature("obd")
    return _summed(0.5 * fisher.diagonal() * quadratic.weights.to(fisher.dtype).square(), groups)


@checks_types
def obs(quadratic: Quadratic, groups: Tensor | None = None) -> Tensor:
    """Optimal Brain Surgeon: w_q² / (2 [F⁻¹]_qq), for a unit ½ wᵀ [F⁻¹_QQ]⁻¹ w  (eq. 16).

    The loss of setting the weights of the unit to zero while all others move to their optimum
    (Hassibi & Stork, NeurIPS 1992; units: Kurtic et al., EMNLP 2022).

    Args:
        quadratic: The model of the loss, with a Fisher; its gradient is not read.
        groups: (g, s) int64, the weights of each unit; None for single weights.

    Returns:
        (g,) scores in the dtype of the Fisher for single weights, in float64 for units.

    Raises:
        WoodburyError: If there is no Fisher, or the groups do not fit.

    Example:
        >>> import torch
        >>> from woodbury.fisher import Diagonal
        >>> quadratic = Quadratic(torch.tensor([1.0, 2.0]), Diagonal(torch.tensor([3.0, 1.0]), 1.0))
        >>> obs(quadratic)
        tensor([2., 4.])
        >>> obs(quadratic, torch.tensor([[0, 1]]))
        tensor([6.0000], dtype=torch.float64)
    """
    fisher = quadratic.curvature("obs")
    return _surgeon_scores(quadratic, quadratic.weights.to(fisher.dtype), groups)


@checks_types
def woodtaylor(quadratic: Quadratic, groups: Tensor | None = None) -> Tensor:
    """WoodTaylor: (w_q − [F⁻¹g]_q)² / (2 [F⁻¹]_qq), OBS with the first-order term  (eq. 17).

    For networks that are not converged (Singh & Alistarh, NeurIPS 2020, S9). It needs a large
    damping, as F⁻¹g is a full Newton step.

    Args:
        quadratic: The model of the loss, with a Fisher and a gradient.
        groups: (g, s) int64, the weights of each unit; None for single weights.

    Returns:
        (g,) scores in the dtype of the Fisher for single weights, in float64 for units.

    Raises:
        WoodburyError: If there is no Fisher or no gradient, or the groups do not fit.

    Example:
        >>> import torch
        >>> from woodbury.fisher import Diagonal
        >>> fisher = Diagonal(torch.tensor([3.0, 1.0]), 1.0)
        >>> woodtaylor(Quadratic(torch.tensor([1.0, 2.0]), fisher, torch.tensor([4.0, 0.0])))
        tensor([0., 4.])
    """
    quadratic.curvature("woodtaylor")
    quadratic.slope("woodtaylor")
    return _surgeon_scores(quadratic, quadratic.from_minimum, groups)


def _surgeon_scores(quadratic: Quadratic, distance: Tensor, groups: Tensor | None) -> Tensor:
    """½ x_Qᵀ [F⁻¹_QQ]⁻¹ x_Q of every unit for x = distance (d,): (g,)."""
    fisher = quadratic.curvature("obs")
    if groups is None:
        return distance.square().mul_(0.5).div_(fisher.inverse_diagonal())
    groups = check_groups(groups, len(distance))
    if not groups.numel():
        return distance.new_zeros(len(groups), dtype=torch.float64)
    stiffness = fisher.diagonal().double()
    block_elements = max(1, groups.shape[1] ** 2)
    units_at_once = max(1, Limits.current().temporary // block_elements)
    scores = [
        joint_cost(distance[units], fisher.inverse_blocks(units), stiffness[units])
        for units in groups.split(units_at_once)
    ]
    return torch.cat(scores)


def joint_cost(values: Tensor, inverse: Tensor, stiffness: Tensor) -> Tensor:
    """The joint cost of units, ½ xᵀB⁻¹x, in float64 and never negative  (eq. 52).

    As B ⪰ F_QQ⁻¹, no eigenvalue of B lies below 1/tr F_QQ. What rounding has left below it is
    raised to it.

    Args:
        values: x (…, s), the weights of each unit, or their distance from the free minimum.
        inverse: B = [F⁻¹]_QQ (…, s, s).
        stiffness: diag(F)_Q (…, s).

    Returns:
        (…), in the unit of the loss.
    """
    floor = float(1 / stiffness.sum(-1).max())
    eye = torch.eye(values.shape[-1], dtype=torch.float64, device=values.device)
    # Where B − floor·I is indefinite by rounding, damped_cholesky raises eigenvalues to the floor.
    factor = damped_cholesky(inverse.double() - floor * eye, floor)
    half = torch.linalg.solve_triangular(factor, values.double()[..., None], upper=False)
    return 0.5 * half.square().sum((-1, -2))


def _summed(scores: Tensor, groups: Tensor | None) -> Tensor:
    """Scores (d,) summed over the units: (g,)."""
    return scores if groups is None else scores[check_groups(groups, len(scores))].sum(1)
