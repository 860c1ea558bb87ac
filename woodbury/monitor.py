"""Progress: where long work reports how far it is, and who hears of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Progress = Callable[[str, int, int], None]
"""progress(what, done, total): called as long work moves on."""

SILENT_SECONDS = 2.0
"""Work that is done sooner shows no line in a terminal."""
SECONDS_BETWEEN_LINES = 0.2


@contextmanager
def progress(callback: Progress | None) -> Iterator[None]:
    """Report the long work inside the block to `callback`, and nowhere else.

    Without it, work of more than two seconds shows one line on a terminal's stderr, with the time
    that is left.

    Args:
        callback: Called as `callback(what, done, total)`, such as `("gradients", 64, 1000)`; None for
            silence.

    Example:
        >>> with progress(print):
        ...     report("gradients", 64, 1000)
        gradients 64 1000
    """
    token = _callback.set(callback or _silence)
    try:
        yield
    finally:
        _callback.reset(token)


def report(what: str, done: int, total: int) -> None:
    """Say that `done` of `total` steps of `what` are finished."""
    _callback.get()(what, done, total)


def _silence(what: str, done: int, total: int) -> None:
    pass


class TerminalLine:
    """One line on stderr that is written over: what is done, of how much, and the time left."""

    def __init__(self) -> None:
        self._begun: dict[str, float] = {}
        self._written_at = 0.0
        self._shown = False

    def __call__(self, what: str, done: int, total: int) -> None:
        """Write the line, unless it was just written or the work is young."""
        if not sys.stderr.isatty():
            return
        now = time.monotonic()
        began = self._begun.setdefault(what, now)
        if done >= total:
            del self._begun[what]
            self._clear()
            return
        young = now - began < SILENT_SECONDS
        if young or now - self._written_at < SECONDS_BETWEEN_LINES:
            return
        left = (now - began) * (total - done) / max(done, 1)
        self._write(f"{what}: {done} of {total}, {_clock(left)} left")
        self._written_at = now

    def _write(self, text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
        self._shown = True

    def _clear(self) -> None:
        if self._shown:
            self._write("")
            self._shown = False


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"


_callback: ContextVar[Progress] = ContextVar("progress", default=TerminalLine())
