"""Updates: how the weights move when some are removed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from woodbury.argument_types import checks_types
from woodbury.pruning.quadratic import Quadratic

Update = Callable[[Quadratic, Tensor], Tensor]
"""(quadratic, keep (d,) bool) -> the step δ (d,), exactly −w where a weight is removed."""


@checks_types
def zero(quadratic: Quadratic, keep: Tensor) -> Tensor:
    """No update: removed weights become zero, kept ones do not move (OBD, magnitude pruning).

    Args:
        quadratic: The model of the loss, of which the weights alone are read.
        keep: (d,) bool, True = kept.

    Returns:
        The step δ (d,).

    Raises:
        WoodburyError: If the mask does not fit, or no weight is kept.

    Example:
        >>> import torch
        >>> zero(Quadratic(torch.tensor([1.0, 2.0])), torch.tensor([True, False]))
        tensor([ 0., -2.])
    """
    return torch.where(quadratic.checked(keep), 0, -quadratic.weights)


@checks_types
def independent(quadratic: Quadratic, keep: Tensor) -> Tensor:
    """The sum of single-weight OBS updates: −F⁻¹ Σ_q e_q w_q/[F⁻¹]_qq  (eq. 19).

    The update of WoodFisher and M-FAC. It is exact for one removed weight, and neglects how several
    removed weights interact. With a gradient w is replaced by w − F⁻¹g, and −F⁻¹g is added.

    Args:
        quadratic: The model of the loss, with a Fisher.
        keep: (d,) bool, True = kept.

    Returns:
        The step δ (d,).

    Raises:
        WoodburyError: If there is no Fisher, the mask does not fit, or no weight is kept.

    Example:
        >>> import torch
        >>> from woodbury.fisher import Dense
        >>> fisher = Dense(torch.tensor([[1.0, 1.0], [1.0, 1.0]]), 1.0)
        >>> independent(Quadratic(torch.tensor([1.0, 2.0]), fisher), torch.tensor([True, False]))
        tensor([ 1., -2.])
    """
    keep = quadratic.checked(keep)
    fisher = quadratic.curvature("The independent update")
    weights = quadratic.weights.to(fisher.dtype)
    if quadratic.gradient is None:
        newton: Tensor | float = 0.0
    else:
        newton = fisher.solve(quadratic.gradient.to(fisher.dtype))
    # 1. Each removed weight pulls with the multiplier that alone would take it to zero.
    multipliers = ((weights - newton) / fisher.inverse_diagonal()).masked_fill(keep, 0)
    # 2. The pulls add up; together they miss zero, so that removed weights are set to it.
    step = -(fisher.solve(multipliers) + newton)
    return torch.where(keep, step, -weights).to(quadratic.weights.dtype)


@checks_types
def joint(quadratic: Quadratic, keep: Tensor) -> Tensor:
    """The exact minimiser with the removed weights at zero: F_KK⁻¹ (F_KQ w_Q − g_K)  (eq. 9, 12).

    Args:
        quadratic: The model of the loss, with a Fisher.
        keep: (d,) bool, True = kept (K), False = removed (Q).

    Returns:
        The step δ (d,).

    Raises:
        WoodburyError: If there is no Fisher, the mask does not fit, or no weight is kept.

    Example:
        >>> import torch
        >>> from woodbury.fisher import Dense
        >>> fisher = Dense(torch.tensor([[1.0, 1.0], [1.0, 1.0]]), 1.0)
        >>> joint(Quadratic(torch.tensor([1.0, 2.0]), fisher), torch.tensor([True, False]))
        tensor([ 1., -2.])
    """
    keep = quadratic.checked(keep)
    fisher = quadratic.curvature("The joint update")
    weights = quadratic.weights.to(fisher.dtype)
    gradient = None if quadratic.gradient is None else quadratic.gradient.to(fisher.dtype)
    step = -weights
    step[keep] = fisher.compensate(keep, weights.masked_fill(keep, 0), gradient)
    return step.to(quadratic.weights.dtype)
