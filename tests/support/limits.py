"""The type of the `limited` fixture."""

from __future__ import annotations

from typing import Protocol


class Limited(Protocol):
    """`limited(memory=1000)`: other limits from here to the end of the test."""

    def __call__(self, **fields: float) -> None: ...
