"""Arguments of the wrong type: one sentence, read from the annotations that are there anyway."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, TypeVar

from woodbury.errors import WrongType

Function = TypeVar("Function", bound=Callable[..., Any])

SEEN_LATER = ("Optimizer", "ProcessGroup", "Tensor", "Likelihood")
"""Classes whose instances may come wrapped, or as lists, or are explained where they are used."""

WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
"""What a type is called in a sentence."""

SERIES = (collections.abc.Sequence, tuple)
"""Types of what has a length and an order: a list, a tuple, a range, or an array."""


def checks_types(function: Function) -> Function:
    """A decorator: arguments of another type than the annotations say raise one sentence.

    Checked are numbers, flags, texts, functions, classes, and lists of these; a stream, such as
    that of batches, is checked where it is read.

    Args:
        function: Any public function, or the `__init__` of a class.

    Returns:
        The function, of the same signature.

    Example:
        >>> @checks_types
        ... def halved(count: int) -> float:
        ...     return count / 2
        >>> halved("quick")
        Traceback (most recent call last):
        woodbury.errors.WrongType: count is 'quick': halved takes a whole number there.
    """
    signature = inspect.signature(function)
    name = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def checked(*arguments: Any, **named: Any) -> Any:
        bound = signature.bind(*arguments, **named)
        hints = hints_of(function)
        for key, value in bound.arguments.items():
            check_type(value, hints.get(key, Any), key, name)
        return function(*arguments, **named)

    return typing.cast(Function, checked)


def check_fields(record: Any) -> None:
    """Raise unless every field of a dataclass has the type that its annotation says.

    Args:
        record: A dataclass, mostly in its `__post_init__`.

    Raises:
        WrongType: For the first field that has not.
    """
    hints = hints_of(type(record))
    for field in fields(record):
        if field.init:
            value = getattr(record, field.name)
            check_type(value, hints.get(field.name, Any), field.name, type(record).__name__)


@functools.cache
def hints_of(owner: Any) -> dict[str, Any]:
    """The types that the annotations of a function or a class stand for.

    Args:
        owner: A function or a class.

    Returns:
        Name -> type.
    """
    return typing.get_type_hints(owner)


def check_type(value: Any, hint: Any, name: str, owner: str) -> None:
    """Raise unless a value is of a type.

    Args:
        value: What was given.
        hint: The type, as `typing.get_type_hints` gives it.
        name: What the value is called.
        owner: Who takes it.

    Raises:
        WrongType: If it is of another.
    """
    if name in ("memory", "sparsity") or is_of(value, hint):  # these have better sentences
        return
    value, hint, name = _wrong_part(value, hint, name)
    plain = isinstance(value, (str, int, float, type(None)))
    shown = repr(value)[:60] if plain else f"a {type(value).__name__}"
    raise WrongType(f"{name} is {shown}: {owner} takes {_in_words(hint)} there.")


def _wrong_part(value: Any, hint: Any, name: str) -> tuple[Any, Any, str]:
    """Of a list that has a wrong entry that entry, else the value itself."""
    entry_hint = _entry_hint(hint)
    if _is_series(value):
        for index, entry in enumerate(value):
            if not is_of(entry, entry_hint):
                return _wrong_part(entry, entry_hint, f"{name}[{index}]")
    return value, hint, name


def is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; True also for types that only reading the value can tell.

    Args:
        value: Any value.
        hint: A type, such as `int | None` or `Callable[[int], int]`.

    Returns:
        False where it certainly is not. A bool is no number, and NumPy's numbers are numbers.

    Example:
        >>> is_of(2.0, int), is_of(2, float), is_of(None, int | None), is_of(print, Callable)
        (False, True, True, True)
    """
    if hint is Any:
        return True
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(is_of(value, part) for part in typing.get_args(hint))
    kind = origin or hint
    if kind is bool:
        return isinstance(value, bool) or type(value).__name__ == "bool_"
    if kind in (int, float):
        if isinstance(value, bool):
            return False
        return isinstance(value, Integral if kind is int else Real) or _is_scalar(value, kind)
    if kind is collections.abc.Callable:
        return callable(value)
    if kind in (collections.abc.Iterable, collections.abc.Iterator):
        return True
    if kind in SERIES:
        entry_hint = _entry_hint(hint)
        is_series = isinstance(value, (tuple, list)) if kind is tuple else _is_series(value)
        return is_series and all(is_of(entry, entry_hint) for entry in value)
    if not isinstance(kind, type) or kind.__name__ in SEEN_LATER:
        return True
    if getattr(kind, "_is_protocol", False):
        return callable(value) and not isinstance(value, type)
    return isinstance(value, kind)


def _is_series(value: Any) -> bool:
    """Whether a value is a list, a tuple, a range, or an array of at least one dimension."""
    others = (str, bytes, collections.abc.Mapping, collections.abc.Set)
    if isinstance(value, others) or getattr(value, "shape", None) == ():
        return False
    return isinstance(value, collections.abc.Collection)


def _entry_hint(hint: Any) -> Any:
    """The type of all entries of a list, or Any where they are of several or unknown types."""
    arguments = typing.get_args(hint)
    kind = typing.get_origin(hint) or hint
    if kind is tuple and arguments[1:] != (...,):
        return Any
    return arguments[0] if kind in SERIES and arguments else Any


def _is_scalar(value: Any, kind: type) -> bool:
    """Whether a value is an array or a tensor of one number."""
    if kind is int or getattr(value, "shape", None) != ():
        return False
    try:
        float(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return not isinstance(value, complex)


def _in_words(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        parts = dict.fromkeys(map(_in_words, typing.get_args(hint)))
        return " or ".join(parts)
    kind = origin or hint
    if kind is type(None):
        return "None"
    if kind is collections.abc.Callable:
        return "a function"
    if kind is collections.abc.Mapping:
        return "a dict"
    if kind in SERIES:
        return "a list"
    if words := getattr(kind, "as_argument", None):
        return words
    name = getattr(kind, "__name__", str(kind))
    name = "torch.nn.Module" if name == "Module" else name
    return WORDS.get(kind, f"{'an' if name[0] in 'AEIOU' else 'a'} {name}")
