"""Masked training: removed weights that are held at zero while an optimizer steps."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from woodbury.argument_types import checks_types
from woodbury.errors import WoodburyError
from woodbury.model.parameters import (
    Keep,
    check_mask,
    is_dtensor,
    local,
    masks_of,
    optimized_parameters,
    unwrapped,
    wrappers_without_hooks,
)
from woodbury.model.sharded import own_shard, reshard
from woodbury.model.wrappers import bare
from woodbury.training.after_step import AfterStep


class Hold:
    """Removed weights that are held at zero from step to step  (eq. 32).

    Hooks do it, so that any training loop will do:

    1. Gradients are cleared as they arrive, before they are accumulated, clipped or given to the
       optimizer.
    2. Weights and the optimizer's state are cleared after every step, so that neither momentum nor
       weight decay revives a weight. That holds for every torch optimizer that has one of these
       weights, also for one beside or around the one that is given, and for a wrapper that is none,
       such as a Lookahead: its own `step` is followed by this.

    Of parameters that are sharded over ranks (FSDP2), each rank holds its own part; their gradients
    arrive by no hook, and are cleared right before the step.

    `hold_zeros` makes one; `remove` ends it. It is what torch.nn.utils.prune does with a
    parametrization, without new parameter names.

    Args:
        optimizer: What steps; a wrapper of accelerate or Lightning will do.
        model: The pruned model.
        keep: A space or masks, True = kept.

    Attributes:
        optimizer: The torch optimizer inside the wrappers.
        removed: Parameter -> bool, of the shape of what this rank holds of it; True = held at zero.

    Raises:
        WoodburyError: If a mask does not fit, or the optimizer has none of the model's parameters.
        WrongType: If there is no torch optimizer.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> hold = Hold(optimizer, model, {"weight": torch.tensor([[True, False]])})
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> float(model.weight[0, 1].detach()), float(model.weight.grad[0, 1])
        (0.0, 0.0)
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module, keep: Keep) -> None:
        self.optimizer = unwrapped(optimizer)
        self.removed: dict[nn.Parameter, Tensor] = {}
        reshard(bare(model))
        named = (*model.named_parameters(), *bare(model).named_parameters())
        self._parameters = dict(named)  # also by the names of a wrapper
        optimized_parameters(self.optimizer, model)  # raises if there are none
        self.tighten(keep)
        after_step = self.optimizer.register_step_post_hook(lambda *_: self.clear())
        # A weak reference: what is hooked into torch itself must not keep the model in memory.
        after_others = partial(_clear_after, weakref.ref(self))
        handles = (after_step, register_optimizer_step_post_hook(after_others))
        self._handles: list[RemovableHandle | AfterStep] = list(handles)
        for wrapper in wrappers_without_hooks(optimizer):
            if callable(getattr(wrapper, "step", None)):
                self._handles.append(AfterStep(wrapper, self.clear))
        if any(is_dtensor(parameter) for parameter in self.removed):
            before_step = self.optimizer.register_step_pre_hook(lambda *_: self._clear_sharded())
            self._handles.append(before_step)
        for parameter in self.removed:
            if parameter.requires_grad and not is_dtensor(parameter):
                hook = partial(self._cleared, parameter)
                self._handles.append(parameter.register_hook(hook))

    def tighten(self, keep: Keep) -> None:
        """Hold by other masks from now on, and clear what they remove.

        Args:
            keep: A space or masks, True = kept. Parameters without a mask are held as before.

        Raises:
            WoodburyError: If a mask does not fit; nothing has changed then.
        """
        masks = masks_of(keep)
        for name, mask in masks.items():
            _check_mask(name, mask, self._parameters.get(name))
        for name, mask in masks.items():
            parameter = self._parameters[name]
            self.removed[parameter] = own_shard(~mask.to(parameter.device), parameter)
        for parameter, removed in self.removed.items():
            if parameter.grad is not None and not is_dtensor(parameter):
                parameter.grad = _without(parameter.grad, removed)
        self._clear_sharded()
        self.clear()

    @torch.no_grad()
    def clear(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Set the removed weights, and an optimizer's state of them, to zero.

        Args:
            optimizer: Whose state; None for the one that is held.
        """
        states = (optimizer or self.optimizer).state
        # Filled, not multiplied: 0 · NaN is NaN, and 0 · −1 is −0, which a sparse file would store.
        for parameter, removed in self.removed.items():
            state = states.get(parameter, {}).values()
            per_weight = [entry for entry in state if _is_per_weight(entry, parameter)]
            for tensor in (parameter, *per_weight):
                own = local(tensor)
                own.masked_fill_(removed.to(own.device), 0)

    @torch.no_grad()
    def _clear_sharded(self) -> None:
        """Set the gradients of removed weights to zero where they are parts of sharded tensors."""
        for parameter, removed in self.removed.items():
            if parameter.grad is not None and is_dtensor(parameter):
                local(parameter.grad).masked_fill_(removed, 0)

    def remove(self) -> None:
        """Remove the hooks: the next step may revive the removed weights."""
        for handle in self._handles:
            handle.remove()

    def has_weights_of(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether an optimizer has a parameter that is held.

        Args:
            optimizer: Any.

        Returns:
            True if it has.
        """
        return any(p in self.removed for group in optimizer.param_groups for p in group["params"])

    def _cleared(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        return _without(gradient, self.removed[parameter].to(gradient.device))


def _clear_after(
    reference: weakref.ref[Hold], optimizer: torch.optim.Optimizer, *_: object
) -> None:
    """The hook after every step of any optimizer: clear what it may have revived."""
    hold = reference()
    if hold is not None and optimizer is not hold.optimizer and hold.has_weights_of(optimizer):
        hold.clear(optimizer)


@checks_types
def hold_zeros(
    optimizer: torch.optim.Optimizer, model: nn.Module, keep: Keep | None = None
) -> Hold:
    """Hold removed weights at zero in any loop that calls `optimizer.step()`  (eq. 32).

    Args:
        optimizer: What steps; a wrapper of accelerate or Lightning will do.
        model: The pruned model, before or after it is sharded.
        keep: A space, such as `pruned.objective.space`, or name -> bool mask, True = kept. None
            takes what is zero now in matrices and kernels.

    Returns:
        The hold; its `remove()` ends it.

    Raises:
        WoodburyError: If a mask does not fit, the optimizer has none of the model's parameters, or
            no mask is given and the model is sharded.
        WrongType: If there is no torch optimizer.

    Example:
        >>> import woodbury
        >>> model = nn.Linear(3, 2)
        >>> batches = [(torch.randn(20, 3), torch.arange(20) % 2)]
        >>> pruned = woodbury.prune(model, batches, sparsity=0.5)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        >>> hold = hold_zeros(optimizer, model)
        >>> model(torch.ones(1, 3)).sum().backward()
        >>> optimizer.step()
        >>> int((model.weight == 0).sum())
        3
    """
    if keep is None:
        for name, parameter in model.named_parameters():
            if is_dtensor(parameter):
                raise WoodburyError(
                    f"Parameter {name!r} is sharded, and this rank sees no zeros of other parts: "
                    "give keep, such as pruned.objective.space."
                )
        keep = {
            name: parameter != 0
            for name, parameter in model.named_parameters()
            if parameter.ndim >= 2 and bool((parameter == 0).any())
        }
    return Hold(optimizer, model, keep)


def _without(gradient: Tensor, removed: Tensor) -> Tensor:
    """A gradient with zeros at the removed weights; of an embedding's also where it is sparse."""
    if not gradient.is_sparse:
        return gradient.masked_fill(removed, 0)
    gradient = gradient.coalesce()
    rows = removed[gradient.indices()[0]]
    values = gradient.values().masked_fill(rows, 0)
    return torch.sparse_coo_tensor(
        gradient.indices(),
        values,
        gradient.shape,
        is_coalesced=True,
        check_invariants=True,
    )


def _is_per_weight(entry: Any, parameter: nn.Parameter) -> bool:
    """Whether an entry of the optimizer's state holds a number for each weight.

    The codes of 8-bit optimizers have the weights' shape and are no numbers.
    """
    if not isinstance(entry, Tensor):
        return False
    return entry.shape == parameter.shape and entry.is_floating_point()


def _check_mask(name: str, mask: Tensor, parameter: nn.Parameter | None) -> None:
    if parameter is None:
        raise WoodburyError(
            f"keep has a mask for {name!r}, which the model lacks: is it of another network?"
        )
    check_mask(mask, parameter, repr(name))
