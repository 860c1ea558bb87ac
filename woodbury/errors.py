"""What the package raises: one sentence that says what was wrong, where, and what to do."""

from __future__ import annotations


class WoodburyError(ValueError):
    """What was wrong, where, and what to do about it, in one sentence."""


class WrongType(WoodburyError, TypeError):
    """An argument of another type than the one that is needed."""


class MissingDependency(WoodburyError, ImportError):
    """A package that only some users need is not installed; the sentence says how to install it."""


def check_whole_number(value: object, name: str, meaning: str) -> None:
    """Raise unless an argument is a whole number of at least 1.

    Args:
        value: The argument.
        name: Its name.
        meaning: What it counts, for the sentence.

    Raises:
        WrongType: If it is no int.
        WoodburyError: If it is below 1.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if is_whole and value >= 1:
        return
    kind = WoodburyError if is_whole else WrongType
    raise kind(f"{name} is {value!r}: it is {meaning}, a whole number of at least 1.")
