"""Which of the names that there are was meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

NAMES_SHOWN = 8
"""In a sentence, at most."""


def nearest(name: str, names: Iterable[str]) -> str:
    """The one of the names that was meant, as the end of a sentence.

    Args:
        name: What was written.
        names: What there is.

    Returns:
        `did you mean …?`, or `there are …` with some of them.

    Example:
        >>> nearest("labl", ["text", "label"]), nearest("x", ["text", "label"])
        ('did you mean label?', 'there are text, label.')
    """
    known = list(dict.fromkeys(names))
    found = get_close_matches(name, known, 1)
    if found:
        return f"did you mean {found[0]}?"
    more = len(known) - NAMES_SHOWN
    listed = ", ".join(known[:NAMES_SHOWN]) or "none"
    return f"there are {listed}{f' and {more} more' if more > 0 else ''}."
