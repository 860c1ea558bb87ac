"""How trials ended, counted by kind."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

RIGHT = "right"
SENTENCE = "clear sentence"
RAW = "raw error"
SILENT = "silent wrong"
HANG = "hang"
HALF = "half-written"
ENDINGS = (RIGHT, SENTENCE, RAW, SILENT, HANG, HALF)
FAULTS = (RAW, SILENT, HANG, HALF)
MOST_EXAMPLES = 400
"""Faults of a kind that are kept to be shown."""


@dataclass
class Tally:
    """The trials of one kind."""

    what: str
    endings: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def add(self, ending: str, story: str = "", times: int = 1) -> None:
        """Count trials that ended in one way; the story is told where that is a fault."""
        self.endings[ending] += times
        if ending in FAULTS and len(self.faults) < MOST_EXAMPLES:
            self.faults.append(f"{ending}: {story}")

    @property
    def is_zero_where_it_must_be(self) -> bool:
        """Nothing silently wrong; and no raw error but of calls, which do no harm."""
        harmful = FAULTS if not self.what.startswith("calls") else (SILENT, HANG, HALF)
        return not any(self.endings[fault] for fault in harmful)

    @property
    def tried(self) -> int:
        return sum(self.endings.values())

    def line(self) -> str:
        """For people."""
        counts = ", ".join(f"{self.endings[ending]} {ending}" for ending in ENDINGS)
        return f"{self.what}: {self.tried} tried, {counts}"
