"""Recipes in print: the expression that makes them, with functions by their names."""

from __future__ import annotations

from dataclasses import fields
from types import FunctionType
from typing import Any


def readable(self: Any) -> str:
    """A frozen dataclass as the expression that makes it; for `__repr__ = readable` in its class.

    The repr that dataclasses write shows a function by its address, which differs in every process.

    Args:
        self: An instance of a dataclass.

    Returns:
        `Class(field=value, ...)`, a function or class among the values by its name.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Loss:
        ...     of: object
        ...     __repr__ = readable
        >>> Loss(readable)
        Loss(of=readable)
    """
    shown = [field.name for field in fields(self) if field.repr]
    settings = ", ".join(f"{name}={_named(getattr(self, name))}" for name in shown)
    return f"{type(self).__name__}({settings})"


def _named(value: Any) -> str:
    return value.__qualname__ if isinstance(value, FunctionType | type) else repr(value)
