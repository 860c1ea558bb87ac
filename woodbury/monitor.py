"""Progress: where long work reports how far it is, and who is told."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

from woodbury.argument_types import checks_types

Progress = Callable[[str, int, int], None]
"""progress(what, done, total): called as long work moves on."""

SILENT_SECONDS = 2.0
"""Work that is done sooner shows no line in a terminal."""

SECONDS_BETWEEN_LINES = 0.2
"""A line that changes more often cannot be read."""


@contextmanager
@checks_types
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
    for each in _wholes.get():
        each.hear(what, done, total)
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


class TimeLeft(NamedTuple):
    """How long work still takes.

    Attributes:
        seconds: The time.
        is_least: Whether it may well take longer: no part of the work was done to the end yet.
    """

    seconds: float
    is_least: bool

    def __str__(self) -> str:
        """For people, such as "0:18 left"."""
        minutes, seconds = divmod(round(self.seconds), 60)
        return f"{'at least ' if self.is_least else ''}{minutes}:{seconds:02d} left"


@dataclass
class _Work:
    """Work that is under way."""

    what: str
    began_at: float
    done_then: int
    done: int
    total: int

    def moved(self, what: str, done: int, total: int) -> _Work:
        """This work further on; other work, or the same begun again, has a time of its own."""
        if what != self.what or done < self.done:
            return _Work(what, time.monotonic(), done, done, total)
        self.done, self.total = done, total
        return self

    def seconds_left(self) -> float | None:
        """At the rate so far; None before the first step."""
        moved = self.done - self.done_then
        if not moved:
            return None
        return (time.monotonic() - self.began_at) * (self.total - self.done) / moved


class Whole:
    """Work in parts of about the same length, inside which other work reports.

    Attributes:
        part: The name of one part, such as "stage".
        what: What its reports are called.
        total: Parts in all.
        expected: Seconds that all of it was predicted to take; None without a prediction.
        done: Parts that are finished.
    """

    def __init__(self, part: str, what: str, total: int, expected: float | None = None) -> None:
        self.part = part
        self.what = what
        self.total = total
        self.expected = expected
        self.done = 0
        self._began_at = self._done_at = time.monotonic()
        self._inner: _Work | None = None

    def advance(self) -> None:
        """One part more is finished."""
        self.done += 1
        self._done_at = time.monotonic()
        self._inner = None
        report(self.what, self.done, self.total)

    def hear(self, what: str, done: int, total: int) -> None:
        """Other work inside the present part has moved on.

        Args:
            what: Its name.
            done: Steps that are finished.
            total: Steps in all.
        """
        if what != self.what:
            inner = self._inner or _Work(what, time.monotonic(), done, done, total)
            self._inner = inner.moved(what, done, total)

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began_at

    def time_left(self) -> TimeLeft | None:
        """Until all parts are finished: at the rate of those that are.

        It is the least where the present part takes longer than those did.

        Before the first one is, what was predicted, as long as that is not over. Else at least the
        rest of the work inside it, and as much again for all other parts; None before that work
        has moved.
        """
        now = time.monotonic()
        if self.done:
            length = (self._done_at - self._began_at) / self.done
            present = length - (now - self._done_at) if self.done < self.total else 0.0
            inner = self._inner.seconds_left() if self._inner and present < 0 else None
            rest = max(present, inner or 0.0) + length * max(self.total - self.done - 1, 0)
            return TimeLeft(rest, present < 0)
        if self.expected is not None and self.elapsed < self.expected:
            return TimeLeft(self.expected - self.elapsed, False)
        rest = self._inner.seconds_left() if self._inner else None
        if rest is None:
            return None
        return TimeLeft(rest + (self.elapsed + rest) * (self.total - 1), True)

    @property
    def present(self) -> str:
        """The part that is under way, such as "stage 2 of 7"."""
        return f"{self.part} {min(self.done + 1, self.total)} of {self.total}"

    def __str__(self) -> str:
        """Where it is, such as "stage 2 of 7, 0:18 left"."""
        left = self.time_left()
        return self.present if left is None else f"{self.present}, {left}"


@contextmanager
def whole(part: str, what: str, total: int, expected: float | None = None) -> Iterator[Whole]:
    """Work in parts: the time left is that of all of them, whatever is reported inside one.

    Args:
        part: The name of one part.
        what: What its reports are called.
        total: Parts in all.
        expected: Seconds that all of it is predicted to take; None without a prediction.

    Yields:
        What to call `advance` on after each part.

    Example:
        >>> with progress(print), whole("stage", "stages", 2) as stages:
        ...     report("gradients", 64, 64)
        ...     stages.advance()
        gradients 64 64
        stages 1 2
    """
    outer = _wholes.get()
    token = _wholes.set((*outer, Whole(part, what, total, expected)))
    try:
        yield _wholes.get()[-1]
    finally:
        _wholes.reset(token)
        if not outer and _callback.get() is None:
            _terminal_line.clear()


def outermost() -> Whole | None:
    """The work that all other is a part of; None where there is none."""
    wholes = _wholes.get()
    return wholes[0] if wholes else None


class Narrator:
    """Puts what is reported into a line: what is done, of how much, and the time left of it all."""

    def __init__(self) -> None:
        self._works: dict[str, _Work] = {}

    def line(self, what: str, done: int, total: int) -> tuple[str, float]:
        """A line, and the seconds since its work began.

        Args:
            what: The work's name.
            done: Steps that are finished.
            total: Steps in all.

        Returns:
            The line, empty where the work is finished and no other is known of.
        """
        overall = outermost()
        if overall is not None:
            within = "" if what == overall.what or done >= total else f": {what} {done} of {total}"
            return f"{overall}{within}", overall.elapsed
        if done >= total:
            self._works.pop(what, None)
            return "", 0.0
        work = self._works.get(what) or _Work(what, time.monotonic(), done, done, total)
        work = self._works[what] = work.moved(what, done, total)
        elapsed = time.monotonic() - work.began_at
        left = TimeLeft(elapsed * (total - done) / max(done - work.done_then, 1), False)
        return f"{what}: {done} of {total}, {left}", elapsed


class TerminalLine:
    """One line on stderr that is written over, after two seconds."""

    def __init__(self) -> None:
        self._narrator = Narrator()
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
        text, elapsed = self._narrator.line(what, done, total)
        if not text:
            self.clear()
            return
        now = time.monotonic()
        if elapsed < SILENT_SECONDS or now - self._written_at < SECONDS_BETWEEN_LINES:
            return
        self._written_at = now
        self._write(text)

    def clear(self) -> None:
        """Leave nothing on the line."""
        if self._shown:
            self._write("")
            self._shown = False

    def _write(self, text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
        self._shown = True


def _silence(what: str, done: int, total: int) -> None:
    pass


_terminal_line = TerminalLine()

_callback: ContextVar[Progress | None] = ContextVar("progress", default=None)
"""Whom `report` tells; None for the line in a terminal."""

_wholes: ContextVar[tuple[Whole, ...]] = ContextVar("wholes", default=())
"""The work in parts that is under way, the outermost first."""
