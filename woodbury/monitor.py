"""Progress: where long work reports how far it is, and who is told."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

Progress = Callable[[str, int, int], None]
"""progress(what, done, total): called as long work moves on."""

SILENT_SECONDS = 2.0
"""Work that is done sooner shows no line in a terminal."""

SECONDS_BETWEEN_LINES = 0.2
"""A line that changes more often cannot be read."""


@contextmanager
def progress(callback: Progress | None) -> Iterator[None]:
    """Report the long work inside the block to `callback`, and nowhere else.

    Without it, work of more than two seconds shows one line on a terminal's stderr, with the time
    that is left.

    Args:
        callback: Called as `callback(what, done, total)`, such as `("gradients", 64, 1000)`; None
            for silence.

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
    """Say how far some work is; called by the work itself.

    Args:
        what: Its name.
        done: Steps that are finished.
        total: Steps in all.
    """
    callback = _callback.get() or _terminal_line
    callback(what, done, total)


def announce(text: str) -> None:
    """Say once what long work will do, as a line of its own in a terminal.

    Nothing is shown where stderr is no terminal, or where `progress` has another callback.

    Args:
        text: One line.
    """
    if _callback.get() is None and sys.stderr.isatty():
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


@dataclass
class _Work:
    """Work that is under way."""

    began_at: float
    done_then: int
    done: int


class TerminalLine:
    """One line on stderr that is written over: what is done, of how much, and the time left."""

    def __init__(self) -> None:
        self._works: dict[str, _Work] = {}
        self._written_at = 0.0
        self._shown = False

    def __call__(self, what: str, done: int, total: int) -> None:
        """Write the line, unless stderr is no terminal, or it is too early.

        Args:
            what: The work's name.
            done: Steps that are finished.
            total: Steps in all; the line is cleared when they are done.
        """
        if not sys.stderr.isatty():
            return
        if done >= total:
            self._works.pop(what, None)
            self._clear()
            return
        now = time.monotonic()
        work = self._works.get(what)
        if work is None or done < work.done:  # it began, or began again after an error
            work = self._works[what] = _Work(now, done, done)
        work.done = done
        elapsed = now - work.began_at
        if elapsed < SILENT_SECONDS or now - self._written_at < SECONDS_BETWEEN_LINES:
            return
        seconds_left = elapsed * (total - done) / max(done - work.done_then, 1)
        self._write(f"{what}: {done} of {total}, {_clock(seconds_left)} left")
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


def _silence(what: str, done: int, total: int) -> None:
    pass


_terminal_line = TerminalLine()

_callback: ContextVar[Progress | None] = ContextVar("progress", default=None)
"""Whom `report` tells; None for the line in a terminal."""
