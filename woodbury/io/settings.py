"""Settings as plain facts: what tells one recipe from another, in a saved run and in a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import FunctionType
from typing import Any

from torch import Tensor

from woodbury.io.fingerprint import checksum


def described(value: Any) -> Any:
    """A recipe as plain facts that JSON holds: names, numbers, and mappings and lists of them.

    Args:
        value: A frozen dataclass such as a Pruner, a function, a tensor, a number or a container of
            these.

    Returns:
        For a dataclass `{"name": its class, field: fact, ...}`, for a function its name, for a
        tensor a checksum.

    Example:
        >>> from woodbury import mfac
        >>> described(mfac(500))["count"]
        500
    """
    if is_dataclass(value) and not isinstance(value, type):
        compared = [field.name for field in fields(value) if field.compare]
        return {
            "name": type(value).__name__,
            **{name: described(getattr(value, name)) for name in compared},
        }
    if isinstance(value, partial):
        return {
            "name": described(value.func),
            **{name: described(keyword) for name, keyword in value.keywords.items()},
        }
    if isinstance(value, FunctionType | type):
        return value.__qualname__
    if isinstance(value, Tensor):
        return f"Tensor {checksum(value):08x}"
    if isinstance(value, Mapping):
        return {str(name): described(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [described(entry) for entry in value]
    if isinstance(value, int | float | str | slice | type(None)):
        return value if not isinstance(value, slice) else str(value)
    return type(value).__name__


def flattened(facts: Mapping[str, Any], lead: str = "") -> dict[str, Any]:
    """Nested facts under dotted names, so that each difference has one name.

    Example:
        >>> flattened({"pruner": {"fisher": {"count": 500}}})
        {'pruner.fisher.count': 500}
    """
    flat = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{lead}{name}.")
        else:
            flat[f"{lead}{name}"] = value
    return flat
