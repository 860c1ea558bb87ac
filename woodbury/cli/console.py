"""How the commands speak: results on stdout, remarks, progress and errors on stderr."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from cyclopts import CycloptsError
from cyclopts.exceptions import (
    CoercionError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from woodbury import monitor
from woodbury.cli.names import hint, nearest
from woodbury.errors import WoodburyError, reason, users_line
from woodbury.memory.budget import limits_within
from woodbury.memory.exhausted import if_memory_runs_out
from woodbury.memory.row_store import scratch_in


class OutputLost(Exception):
    """Nothing more can be written to stdout, as its disk is full or its reader has left."""


class _Stdout(Console):
    """Results; that they are lost is said in one sentence."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich does.

        Raises:
            OutputLost: If nobody can get it.
        """
        try:
            super().print(*objects, **options)
        except OSError as error:
            _drop_stdout()
            raise OutputLost(reason(error)) from error

    def on_broken_pipe(self) -> None:
        """Raise, where rich would end the process without a word."""
        _drop_stdout()
        raise OutputLost("nobody reads it any more")


class _Stderr(Console):
    """Remarks; no work ends because they cannot be shown."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich does."""
        with suppress(OSError):
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Go on without a word."""


def _drop_stdout() -> None:
    """Let the interpreter's own flush at the end not fail once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


out = _Stdout()
err = _Stderr(stderr=True)

USER_ERROR = 2
"""The exit code for everything that the user can put right."""
OWN_FAULT = 1
"""The exit code for what woodbury itself did wrong."""
INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells count it."""
SECONDS_TO_FIRST_LINE = 2.0
"""Before the first line of progress that is no bar."""
MOST_SECONDS_BETWEEN_LINES = 60.0
"""Between two such lines of a long command."""


def report_errors(command: Callable[[], Any], signals: Sequence[int] = ()) -> int:
    """Run a command; say what went wrong in one sentence, without a traceback.

    Args:
        command: What is run.
        signals: The signals to end that have come so far: what fails after one has failed because
            of it, also where a half-done import says that a package is missing.

    Returns:
        The exit code: 0, 2 for an error of the user, 1 for one of ours, 130 for Ctrl-C, and 128
        more than the number of any other signal.
    """
    try:
        command()
    except KeyboardInterrupt as interrupt:
        return _interrupted(str(interrupt))
    except Exception as error:
        if signals:
            is_ctrl_c = signals[-1] == signal.SIGINT
            return _interrupted() if is_ctrl_c else 128 + signals[-1]
        return _said(error)
    return 0


def _said(error: Exception) -> int:
    """Say in one sentence what an error is."""
    if isinstance(error, CycloptsError):
        return _refuse(sentence_of(error))
    if isinstance(error, WoodburyError):
        return _refuse(str(error))
    if isinstance(error, OutputLost):
        return _refuse(f"The output cannot be shown ({error}): what is in files was written.")
    if sys.flags.dev_mode:
        raise error
    return explain(error)


def _interrupted(message: str = "") -> int:
    message = message or "Interrupted: nothing was written."
    err.print(escape(message), style="yellow", soft_wrap=True, highlight=False)
    return INTERRUPTED


def _refuse(sentence: str) -> int:
    err.print(f"[bold red]Error:[/] {escape(sentence)}", soft_wrap=True, highlight=False)
    return USER_ERROR


def explain(error: BaseException) -> int:
    """Say what no other place has explained: where it arose, the user's own line if one had part.

    `python -X dev -m woodbury.cli …` shows the traceback.

    Args:
        error: Anything that was raised.

    Returns:
        The exit code: 2 where the user's own code had part in it, else 1.
    """
    if isinstance(error, OSError) and error.filename:
        return _refuse(f"{error.filename} cannot be read or written ({reason(error)}): look at it.")
    if line := users_line(error):
        return _refuse(f"{line} failed: {reason(error)}.")
    frames = traceback.extract_tb(error.__traceback__)
    at = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else "no line"
    _refuse(f"woodbury failed ({at}: {reason(error)}): please report it with the command line.")
    return OWN_FAULT


def sentence_of(error: CycloptsError) -> str:
    """What was wrong with the words of a command line, where, and what to do, in one sentence."""
    if isinstance(error.__cause__, WoodburyError):  # one of our converters
        return str(error.__cause__)
    help_line = f"see {' '.join(['woodbury', *(error.command_chain or ())])} --help."
    if isinstance(error, UnknownOptionError):
        option = (error.token.keyword or error.token.value).partition("=")[0]
        names = [name for each in error.argument_collection for name in each.names]
        near = nearest(option, names)
        return f"There is no option {option}: {f'did you mean {near}?' if near else help_line}"
    if isinstance(error, UnknownCommandError) and error.unused_tokens and error.app:
        names = [name for name in error.app if not name.startswith("-")]
        word = error.unused_tokens[0]
        return f"There is no command {word!r}: {hint(word, names)}"
    if isinstance(error, MissingArgumentError) and error.argument:
        wanted = error.argument.name
        unused = [word for word in error.unused_tokens or () if word.startswith("--")]
        unknown = [word for word in unused if word not in error.argument.names]
        if typed := nearest(wanted, unknown):
            return f"There is no option {typed}: did you mean {wanted}?"
        return f"{error.keyword or error.argument.name} is missing or has no value: {help_line}"
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"{error.unused_tokens[0]!r} belongs to no option: {help_line}"
    if isinstance(error, RepeatArgumentError):
        return f"{error.token.keyword} is given more than once: give it once."
    if isinstance(error, CoercionError) and error.token and error.argument:
        name = error.token.keyword or error.argument.name
        return f"{name} is {error.token.value!r}: {_expected(error.token.value, error.target_type)}"
    return str(error)


def _expected(value: str, kind: Any) -> str:
    """What to give in place of a value of another kind."""
    choices = [choice for each in (kind, *get_args(kind)) for choice in _choices(each)]
    if choices:
        return hint(value, choices)
    return "give a number." if kind is float or float in get_args(kind) else "give another value."


def _choices(kind: Any) -> tuple[str, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def print_result(what: RenderableType) -> None:
    """A result on stdout."""
    out.print(what, soft_wrap=isinstance(what, str), highlight=True)


def print_plain(text: str) -> None:
    """A text on stdout without colours and line breaks, to be copied."""
    out.print(text, soft_wrap=True, highlight=False, markup=False)


def print_note(text: str) -> None:
    """A remark on what was decided for the user, on stderr."""
    held = _held_notes.get()
    if held is not None:
        held.append(text)
        return
    err.print(f"[dim]{escape(text)}[/]", soft_wrap=True, highlight=False)


def print_place(folder: Path) -> None:
    """A remark on a folder that was not asked for."""
    print_note(f"The results will be in {folder}: --out names another folder.")


_held_notes: ContextVar[list[str] | None] = ContextVar("held_notes", default=None)
"""Remarks that are not shown yet; None outside of `notes_after_checks`."""


@contextmanager
def notes_after_checks() -> Iterator[None]:
    """Show the remarks of the block when it has ended well: what is refused has none before it."""
    notes: list[str] = []
    token = _held_notes.set(notes)
    try:
        yield
    finally:
        _held_notes.reset(token)
    for note in notes:
        print_note(note)


@contextmanager
def progress_bars() -> Iterator[None]:
    """Show the progress of the long work inside the block on stderr.

    On a terminal as bars: one for all of the work, with its time left, and one for what is done at
    the moment. All are removed at the end, also after an error or Ctrl-C. Elsewhere as lines, the
    first after two seconds, and ever fewer of them.
    """
    if not err.is_terminal:
        with monitor.progress(_Lines()):
            yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), _Count(), _TimeLeft())
    with Progress(*columns, console=err, transient=True) as bars, monitor.progress(_Bars(bars)):
        yield


class _Bars:
    """Bars on a terminal."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        overall = monitor.outermost()
        if overall is not None:
            self._show(overall.what, overall.done, overall.total, overall)
            for other, task in self._tasks.items():
                self._bars.update(task, visible=other in (what, overall.what))
        if overall is None or what != overall.what:
            self._show(what, done, total, overall)

    def _show(self, what: str, done: int, total: int, overall: monitor.Whole | None) -> None:
        is_whole = overall is not None and what == overall.what
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        elif not is_whole and done <= self._done.get(what, 0):
            # The same work again: its time counts from now on.
            self._bars.reset(self._tasks[what], total=total)
        self._done[what] = done
        self._bars.update(
            self._tasks[what],
            completed=done,
            total=total,
            description=overall.present if is_whole and overall else what,
            left=overall if is_whole else "" if overall else None,
        )


class _Count(MofNCompleteColumn):
    """Steps that are done, of how many; the name of a part says it by itself."""

    def render(self, task: Task) -> Text:
        is_whole = isinstance(task.fields.get("left"), monitor.Whole)
        return Text("") if is_whole else super().render(task)


class _TimeLeft(TimeRemainingColumn):
    """The time left: of work in parts, of all of them; none for what is done inside a part."""

    max_refresh = None  # a part may take long: its time goes on meanwhile

    def render(self, task: Task) -> Text:
        left = task.fields.get("left")
        if left is None:
            return super().render(task)
        if isinstance(left, monitor.Whole):
            left = left.time_left() or f"{left.elapsed:.0f} s so far"
        return Text(str(left), style="progress.remaining")


class _Lines:
    """Lines in a file or a pipe."""

    def __init__(self) -> None:
        self._narrator = monitor.Narrator()
        self._began_at = time.monotonic()
        self._next = SECONDS_TO_FIRST_LINE

    def __call__(self, what: str, done: int, total: int) -> None:
        text, _ = self._narrator.line(what, done, total)
        elapsed = time.monotonic() - self._began_at
        if text and elapsed >= self._next:
            self._next = min(2 * elapsed, elapsed + MOST_SECONDS_BETWEEN_LINES)
            print_note(text)


@contextmanager
def memory_for(memory: str | None, scratch: Path | None = None) -> Iterator[None]:
    """The budget of a command, and one sentence where the memory runs out all the same.

    Args:
        memory: What `--memory` says; None for the default.
        scratch: What `--scratch` says; None for the default.
    """
    advice = "give a smaller --memory, a smaller --count, or fewer parameters with --include"
    with limits_within(memory), scratch_in(scratch), if_memory_runs_out(advice):
        yield
