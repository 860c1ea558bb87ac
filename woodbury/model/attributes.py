"""What the user's own code stores on a model's modules: put back after a forward pass."""

from __future__ import annotations

import copy
import functools
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy
from torch import Tensor, nn

from woodbury.errors import NOT_OF_THE_USER, WoodburyError

CONTAINERS = (list, dict, set, deque)
"""Attributes of these types may be changed without being assigned."""

NO_STATE = (type, FunctionType, MethodType, ModuleType)
"""Objects of the user's that a forward pass stores nothing on."""

OWN_ATTRIBUTES = frozenset(vars(nn.Module())) - {"training"}
"""What torch itself keeps on a module: parameters, buffers, submodules, hooks."""

MOST_ENTRIES = 1000
"""Of a container whose entries are looked into: a vocabulary holds no features."""

MOST_NUMBERS = 2**22
"""Of a tensor that is copied, as it may be an average or a queue: a larger one is data."""


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """A context after which every attribute of a model's modules is what it was before.

    A forward pass may store features, masks or a history on its modules, also in containers and
    objects of its own that are there, or move an average in place. Under `torch.func` the stored
    tensors would be such that cannot live outside. Inside the context, tensors and arrays of up to
    4 million numbers are copies.

    Args:
        model: The model. Parameters, buffers and submodules are not looked at, but for buffers that
            were added.

    Raises:
        WoodburyError: At the end, if a larger tensor was written to.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> with attributes_kept(model):
        ...     model.features = 3
        >>> hasattr(model, "features")
        False
    """
    buffers = [(module._buffers, set(module._buffers)) for module in model.modules()]
    kept = _Kept()
    try:
        for module in model.modules():
            kept.attributes_of(module)
        yield
    finally:
        kept.put_back()
        for now, before in buffers:
            for name in now.keys() - before:
                del now[name]
    kept.check_large_tensors()


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy of a model, also where a forward pass has left a tensor with its graph on it.

    Args:
        model: The model.

    Returns:
        The copy, on which such tensors have no graph.

    Example:
        >>> import torch
        >>> layer = nn.Linear(1, 1)
        >>> layer.features = layer(torch.ones(1))
        >>> copy_of(layer).features.requires_grad
        False
    """
    stored = _Stored()
    for module in model.modules():
        stored.look_at(_attributes(module))
    with_graph = (tensor for tensor in stored.tensors if tensor.grad_fn is not None)
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in with_graph})


@dataclass
class _Kept:
    """What was stored on modules, and how to put it back.

    Attributes:
        undo: Functions, each of which puts something back.
        seen: Identity -> a value and what stands for it in the meantime.
        large: Tensors that are not copied, and how often each had been written to.
    """

    undo: list[Callable[[], None]] = field(default_factory=list)
    seen: dict[int, tuple[Any, Any]] = field(default_factory=dict)
    large: list[tuple[Tensor, int]] = field(default_factory=list)

    def put_back(self) -> None:
        for undo in reversed(self.undo):
            undo()

    def check_large_tensors(self) -> None:
        """Raise if one of the tensors that were not copied was written to."""
        for tensor, version in self.large:
            if tensor._version != version:
                raise WoodburyError(
                    f"A forward pass writes to a tensor of shape {tuple(tensor.shape)} that the "
                    "model keeps as a plain attribute, too large to be put back: make it a buffer "
                    "with register_buffer."
                )

    def attributes_of(self, owner: Any) -> None:
        """Remember the attributes of a module or an object; copies stand for the tensors."""
        before = _attributes(owner)
        now = vars(owner)
        is_module = isinstance(owner, nn.Module)

        def restore() -> None:
            for name in now.keys() - before.keys() - (OWN_ATTRIBUTES if is_module else set()):
                del now[name]
            now.update(before)

        self.undo.append(restore)
        for name, value in before.items():
            if (other := self.stand_in(value)) is not value:
                now[name] = other

    def stand_in(self, value: Any) -> Any:
        """What stands for a value in the meantime: a copy of a tensor or an array, else itself."""
        if isinstance(value, (str, int, float, bool, type(None))):
            return value
        if id(value) not in self.seen:
            self.seen[id(value)] = (value, value)  # also where it contains itself
            self.seen[id(value)] = (value, self._stand_in(value))
        return self.seen[id(value)][1]

    def _stand_in(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            is_plain = type(value) is Tensor and not value.requires_grad
            if is_plain and value.numel() <= MOST_NUMBERS:
                return value.clone()
            if is_plain and not value.is_inference():  # which count no writes
                self.large.append((value, value._version))
            return value
        if isinstance(value, numpy.ndarray):
            return value.copy() if value.size <= MOST_NUMBERS else value
        if isinstance(value, CONTAINERS):
            self._content_of(value)
        elif isinstance(value, tuple):
            return self._tuple(value)
        elif _holds_state(value):
            self.attributes_of(value)
        return value

    def _tuple(self, value: Any) -> Any:
        is_named = hasattr(value, "_fields")
        if len(value) > MOST_ENTRIES or not (type(value) is tuple or is_named):
            return value
        others = [self.stand_in(entry) for entry in value]
        if all(a is b for a, b in zip(value, others, strict=True)):
            return value
        return type(value)(*others) if is_named else tuple(others)

    def _content_of(self, container: Any) -> None:
        """Remember what a container holds; copies stand for the tensors in it."""
        before = container.copy()
        self.undo.append(lambda: _refill(container, before))
        if len(container) > MOST_ENTRIES:
            return
        if isinstance(container, set):
            for value in before:
                self.stand_in(value)  # its own attributes alone, as it is found by its identity
            return
        items = before.items() if isinstance(before, dict) else enumerate(before)
        for key, value in items:
            if (other := self.stand_in(value)) is not value:
                container[key] = other


@dataclass
class _Stored:
    """The tensors in some attributes, at any depth."""

    tensors: list[Tensor] = field(default_factory=list)
    seen: dict[int, Any] = field(default_factory=dict)

    def look_at(self, value: Any) -> None:
        if id(value) in self.seen:
            return
        self.seen[id(value)] = value
        if isinstance(value, Tensor):
            self.tensors.append(value)
        elif isinstance(value, dict):
            self.look_at(list(value.values()))
        elif isinstance(value, (*CONTAINERS, tuple)) and len(value) <= MOST_ENTRIES:
            for entry in value:
                self.look_at(entry)
        elif _holds_state(value):
            self.look_at(list(vars(value).values()))


def _attributes(owner: Any) -> dict[str, Any]:
    """What the user's own code keeps on a module, or on an object of its own."""
    if not isinstance(owner, nn.Module):
        return dict(vars(owner))
    return {name: value for name, value in vars(owner).items() if name not in OWN_ATTRIBUTES}


def _holds_state(value: Any) -> bool:
    """Whether a value is an object of the user's own, or a namespace, that has attributes.

    What a library made keeps itself in order: a trainer that hangs on a module, a configuration.
    """
    if isinstance(value, (nn.Module, *NO_STATE)):
        return False
    return isinstance(getattr(value, "__dict__", None), dict) and _is_of_user(type(value))


@functools.cache
def _is_of_user(kind: type) -> bool:
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None) or ""
    is_script = kind.__module__ == "__main__"
    is_own = is_script or (bool(file) and not file.startswith(NOT_OF_THE_USER))
    return issubclass(kind, SimpleNamespace) or is_own


def _refill(container: Any, content: Any) -> None:
    """Give a container its old content, unless it has it."""
    if len(container) == len(content) and _identities(container) == _identities(content):
        return
    container.clear()
    if isinstance(container, (list, deque)):
        container.extend(content)
    else:
        container.update(content)


def _identities(container: Any) -> list[int]:
    if isinstance(container, dict):
        return [id(part) for item in container.items() for part in item]
    return [id(value) for value in container]
