"""The optimizers by their names, each with its usual settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.fisher.checks import check_damping
from woodbury.optim.optimizer import MFAC

FineTunerName = Literal["sgd", "adam", "adamw", "mfac"]
OptimizerName = Literal["sgd", "adam", "adamw", "mfac", "kfac"]


@dataclass(frozen=True)
class OptimizerSettings:
    """What an optimizer is made with.

    Attributes:
        lr: The learning rate at first, positive.
        momentum: The momentum, or Adam's first beta, in [0, 1).
        weight_decay: At least 0.
        window: Gradients that mfac remembers; None for an optimizer without a window.
        damping: Of the Fisher; None for an optimizer without one.
        memory: What the optimizer may hold; None for 60 % of what is available.

    Raises:
        WoodburyError: If a number is out of its range.

    Example:
        >>> OptimizerSettings(lr=0.0, momentum=0.9, weight_decay=0.0)
        Traceback (most recent call last):
        woodbury.errors.WoodburyError: --lr is 0.0: give a positive number.
    """

    lr: float
    momentum: float
    weight_decay: float
    window: int | None = None
    damping: float | None = None
    memory: str | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that are out of their range."""
        if not 0 < self.lr < float("inf"):
            raise WoodburyError(f"--lr is {self.lr}: give a positive number.")
        if not 0 <= self.momentum < 1:
            raise WoodburyError(f"--momentum is {self.momentum}: it must lie in [0, 1).")
        if not 0 <= self.weight_decay < float("inf"):
            raise WoodburyError(
                f"--weight-decay is {self.weight_decay}: it must be at least 0 and finite."
            )
        if self.damping is not None:
            check_damping(self.damping)


@dataclass(frozen=True)
class NamedOptimizer:
    """An optimizer's name on the command line, and its usual settings.

    Attributes:
        make: (weights, settings) -> the optimizer.
        lr: The usual learning rate.
        window: The usual window; None for an optimizer without one.
        damping: The usual damping; None for an optimizer without a Fisher.
    """

    make: Callable[[Sequence[Tensor], OptimizerSettings], torch.optim.Optimizer]
    lr: float
    window: int | None = None
    damping: float | None = None


def _sgd(weights: Sequence[Tensor], settings: OptimizerSettings) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        weights, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def _adam(weights: Sequence[Tensor], settings: OptimizerSettings) -> torch.optim.Optimizer:
    betas = (settings.momentum, 0.999)
    return torch.optim.Adam(weights, settings.lr, betas, weight_decay=settings.weight_decay)


def _adamw(weights: Sequence[Tensor], settings: OptimizerSettings) -> torch.optim.Optimizer:
    betas = (settings.momentum, 0.999)
    return torch.optim.AdamW(weights, settings.lr, betas, weight_decay=settings.weight_decay)


def _mfac(weights: Sequence[Tensor], settings: OptimizerSettings) -> torch.optim.Optimizer:
    assert settings.window is not None and settings.damping is not None  # OPTIMIZERS has both
    return MFAC(
        weights,
        settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        window=settings.window,
        damping=settings.damping,
        memory=settings.memory,
    )


OPTIMIZERS: Mapping[OptimizerName, NamedOptimizer] = {
    "sgd": NamedOptimizer(_sgd, lr=1e-2),
    "adam": NamedOptimizer(_adam, lr=1e-3),
    "adamw": NamedOptimizer(_adamw, lr=1e-3),
    "mfac": NamedOptimizer(_mfac, lr=3e-3, window=128, damping=1e-2),
    "kfac": NamedOptimizer(_sgd, lr=3e-2, damping=3e-2),
}
"""kfac is sgd behind a `Preconditioner`, which has the damping."""


def optimizer_settings(
    name: OptimizerName,
    *,
    lr: float | None,
    momentum: float,
    weight_decay: float,
    window: int | None = None,
    damping: float | None = None,
    memory: str | None = None,
) -> OptimizerSettings:
    """The settings of an optimizer: those asked for, and its usual ones for None.

    Args:
        name: The optimizer.
        lr: The learning rate.
        momentum: The momentum.
        weight_decay: The weight decay.
        window: The window of mfac.
        damping: The damping of mfac and kfac.
        memory: What the optimizer may hold.

    Raises:
        WoodburyError: If a number is out of its range, or the optimizer has no such setting.

    Example:
        >>> optimizer_settings("mfac", lr=None, momentum=0.9, weight_decay=0.0).window
        128
    """
    chosen = OPTIMIZERS[name]
    if window is not None and chosen.window is None:
        raise WoodburyError(f"--window is for mfac: {name} has none.")
    if damping is not None and chosen.damping is None:
        raise WoodburyError(f"--damping is for mfac and kfac: {name} has none.")
    return OptimizerSettings(
        lr=chosen.lr if lr is None else lr,
        momentum=momentum,
        weight_decay=weight_decay,
        window=chosen.window if window is None else window,
        damping=chosen.damping if damping is None else damping,
        memory=memory,
    )


def make_optimizer(
    name: OptimizerName, weights: Sequence[nn.Parameter], settings: OptimizerSettings
) -> torch.optim.Optimizer:
    """The optimizer of some weights.

    Args:
        name: The optimizer.
        weights: The parameters that require a gradient.
        settings: What it is made with.

    Raises:
        WoodburyError: If there are no weights.
    """
    if not weights:
        raise WoodburyError(
            "None of the model's parameters requires a gradient: return it with some that do."
        )
    return OPTIMIZERS[name].make(weights, settings)
