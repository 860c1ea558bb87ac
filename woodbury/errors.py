"""The one exception that users of the library need to catch."""

from __future__ import annotations


class WoodburyError(ValueError):
    """What was wrong, where, and what to do about it, in one sentence."""
