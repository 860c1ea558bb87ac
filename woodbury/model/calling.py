"""Calling the user's model: other parameters for one call, and nothing of it left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import checkpoint
from torch.utils._pytree import tree_map

from woodbury.model.attributes import attributes_kept
from woodbury.model.layers import memory_of


def call_model(
    model: nn.Module, inputs: Any, parameters: Mapping[str, Tensor] | None = None
) -> Any:
    """A model's output for a batch's inputs; the model and the inputs are left as they were.

    Args:
        model: The model.
        inputs: A tensor, a tuple or list of positional, or a mapping of keyword arguments. The
            model is given copies, as it may normalise in place.
        parameters: Name -> tensor, in place of parameters of the model; None for its own. The
            buffers are copies too, but for those of BatchNorm, which only `recalibrate` moves.

    Returns:
        Whatever the model returns.

    Example:
        >>> import torch
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> call_model(layer, torch.tensor([3.0]), {"weight": torch.tensor([[2.0]])})
        tensor([6.])
    """
    with attributes_kept(model):
        return run_model(model, inputs, parameters or {})


def run_model(model: nn.Module, inputs: Any, parameters: Mapping[str, Tensor] | None = None) -> Any:
    """The same, but for attributes that the forward pass stores: `attributes_kept` is around it.

    Args:
        model: As for `call_model`.
        inputs: As for `call_model`.
        parameters: As for `call_model`; None to train the model, with all of its own.

    Returns:
        Whatever the model returns.
    """
    copies = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)
    keywords: dict[str, Any] = {}
    if isinstance(copies, Mapping):
        keywords = dict(copies)
        positional = ()
    else:
        positional = tuple(copies) if isinstance(copies, (tuple, list)) else (copies,)
    if parameters is None:
        return model(*positional, **keywords)
    without_gradients = not torch.is_grad_enabled()
    if without_gradients:
        own = {name: parameter.detach() for name, parameter in model.named_parameters()}
        parameters = {**own, **parameters}
    tensors = _in_every_place(model, parameters)
    # 1. Each tensor is named once for each module that has it: torch's own tie_weights would swap
    #    the tensor of a module that has two names twice, and put the wrong one back.
    # 2. A model may differentiate by its inputs, such as forces by positions. Without a parameter
    #    that asks for a gradient nothing else makes a graph.
    with checkpointing_off(), torch.enable_grad() if without_gradients else nullcontext():
        output = functional_call(model, tensors, positional, keywords, tie_weights=False)
    return tree_map(_detached, output) if without_gradients else output


def _detached(leaf: Any) -> Any:
    """A tensor without its graph, if it has one: also forward derivatives would be lost."""
    return leaf.detach() if isinstance(leaf, Tensor) and leaf.requires_grad else leaf


@contextmanager
def checkpointing_off() -> Iterator[None]:
    """A context in which `torch.utils.checkpoint` runs its function and keeps what it computes.

    It would run it again in the backward pass, when the model has its own parameters back: those
    would give other activations in silence, and with `use_reentrant=True` an error.

    Example:
        >>> with checkpointing_off():
        ...     checkpoint.checkpoint(lambda x: x + 1, torch.zeros(1), use_reentrant=True)
        tensor([1.])
    """
    reentrant = checkpoint.CheckpointFunction
    other = checkpoint._checkpoint_without_reentrant_generator
    checkpoint.CheckpointFunction = _Once
    checkpoint._checkpoint_without_reentrant_generator = _nothing_before_or_after
    try:
        yield
    finally:
        checkpoint.CheckpointFunction = reentrant
        checkpoint._checkpoint_without_reentrant_generator = other


class _Once:
    """What `CheckpointFunction` is without checkpoints."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_random_state: bool, *arguments: Any) -> Any:
        return function(*arguments)


def _nothing_before_or_after(*_: Any) -> Iterator[None]:
    yield


def _in_every_place(model: nn.Module, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The given parameters under one name for each module that has them, and copies of buffers."""
    by_memory = {
        memory_of(parameter): given[name]
        for name, parameter in model.named_parameters()
        if name in given
    }
    tensors = {}
    copied: dict[int, Tensor] = {}
    for path, module in model.named_modules():
        lead = f"{path}." if path else ""
        for name, parameter in module._parameters.items():
            if parameter is not None and memory_of(parameter) in by_memory:
                tensors[lead + name] = by_memory[memory_of(parameter)]
        if isinstance(module, _BatchNorm):
            continue  # in eval mode it writes to none of them
        for name, buffer in module._buffers.items():
            if buffer is not None:
                tensors[lead + name] = copied.setdefault(id(buffer), buffer.clone())
    return tensors
