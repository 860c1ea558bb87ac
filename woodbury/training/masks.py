"""Zeros that stay zero while an optimizer steps."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from woodbury.errors import WoodburyError
from woodbury.model.parameters import (
    Keep,
    check_mask,
    is_dtensor,
    masks_of,
    optimized_parameters,
    unwrapped,
)


class Hold:
    """Removed weights held at zero, with their gradients and the optimizer's memory of them, from step to step  (eq. 32).

    Gradients are cleared as they come, before they are accumulated, clipped, or seen by the optimizer; weights and state
    after every step, so that neither momentum nor weight decay revives a weight. `remove` lets go.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module, keep: Keep) -> None:
        self.optimizer = unwrapped(optimizer)
        self._parameters = dict(model.named_parameters())
        optimized_parameters(self.optimizer, model)
        self.gone: dict[nn.Parameter, Tensor] = {}
        self.tighten(keep)
        self._handles: list[Any] = [self.optimizer.register_step_post_hook(lambda *_: self.clear())]
        for parameter in self.gone:
            if parameter.requires_grad:
                self._handles.append(parameter.register_hook(partial(self._cleared, parameter)))

    def tighten(self, keep: Keep) -> None:
        """Hold by another `keep` from now on. Raises WoodburyError, and changes nothing, unless it fits the model."""
        masks = masks_of(keep)
        for name, mask in masks.items():
            _check_mask(name, mask, self._parameters.get(name))
        self.gone |= {
            self._parameters[name]: ~mask.to(self._parameters[name].device)
            for name, mask in masks.items()
        }
        for parameter, gone in self.gone.items():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(gone, 0)
        self.clear()

    @torch.no_grad()
    def clear(self) -> None:
        """Set the removed weights, and what the optimizer remembers of them, to zero."""
        # Filled, not multiplied: 0 · NaN is NaN, and 0 · −1 is −0, which a sparse file would store.
        for parameter, gone in self.gone.items():
            memory = self.optimizer.state.get(parameter, {}).values()
            for tensor in (parameter, *(part for part in memory if _alike(part, parameter))):
                tensor.masked_fill_(gone.to(tensor.device), 0)

    def remove(self) -> None:
        """Take the hooks away: the next step may revive what was removed."""
        for handle in self._handles:
            handle.remove()

    def _cleared(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        return gradient.masked_fill(self.gone[parameter].to(gradient.device), 0)


def hold_zeros(
    optimizer: torch.optim.Optimizer, model: nn.Module, keep: Keep | None = None
) -> Hold:
    """Hold removed weights at zero from now on, whatever loop calls `optimizer.step()`  (eq. 32).

    keep: a ParameterSpace or name -> bool mask, True = stays; None: what is zero now in matrices and kernels goes on to
    be. Raises WoodburyError for masks that do not fit and for an optimizer of another model.
    """
    if keep is None:
        keep = {
            name: (p != 0)
            for name, p in model.named_parameters()
            if p.ndim >= 2 and bool((p == 0).any())
        }
    return Hold(optimizer, model, keep)


def _alike(part: Any, parameter: nn.Parameter) -> bool:
    """Whether an entry of the optimizer's state holds a number for each weight; codes of 8-bit optimizers are none."""
    return isinstance(part, Tensor) and part.shape == parameter.shape and part.is_floating_point()


def _check_mask(name: str, mask: Tensor, parameter: nn.Parameter | None) -> None:
    if parameter is None:
        raise WoodburyError(
            f"keep has a mask for {name!r}, which the model lacks: is it of another network?"
        )
    if is_dtensor(parameter):
        raise WoodburyError(
            f"Parameter {name!r} is a DTensor: hold zeros before the model is sharded."
        )
    check_mask(mask, parameter, repr(name))
