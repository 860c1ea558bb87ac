"""What the package raises: one sentence that says what was wrong, where, and what to do."""

from __future__ import annotations


class WoodburyError(ValueError):
    """What was wrong, where, and what to do about it, in one sentence."""


class WrongType(WoodburyError, TypeError):
    """An argument of another type than the one that is needed."""


class MissingDependency(WoodburyError, ImportError):
    """A package that only some users need is not installed; the sentence says how to install it."""
