"""How the commands speak: results on stdout, remarks, progress and errors on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from woodbury import monitor
from woodbury.cli.names import hint, nearest
from woodbury.errors import WoodburyError
from woodbury.memory.budget import limits_within
from woodbury.memory.exhausted import if_memory_runs_out

out = Console()
err = Console(stderr=True)

USER_ERROR = 2
"""The exit code for everything that the user can put right."""
INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells count it."""


def report_errors(command: Callable[[], Any]) -> int:
    """Run a command; say what went wrong in one sentence, without a traceback.

    Args:
        command: What is run.

    Returns:
        The exit code: 0, 2 for an error of the user, 130 for Ctrl-C.
    """
    try:
        command()
    except CycloptsError as error:
        return _refuse(sentence_of(error))
    except WoodburyError as error:
        return _refuse(str(error))
    except KeyboardInterrupt as interrupt:
        message = str(interrupt) or "Interrupted: nothing was written."
        err.print(escape(message), style="yellow", soft_wrap=True, highlight=False)
        return INTERRUPTED
    return 0


def _refuse(sentence: str) -> int:
    err.print(f"[bold red]Error:[/] {escape(sentence)}", soft_wrap=True, highlight=False)
    return USER_ERROR


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
    err.print(f"[dim]{escape(text)}[/]", soft_wrap=True, highlight=False)


@contextmanager
def progress_bars() -> Iterator[None]:
    """Show the progress of the long work inside the block on stderr, if that is a terminal.

    Each kind of work has one bar with the time left. All are removed at the end, also after an
    error or Ctrl-C.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}
        progress: dict[str, int] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            if done <= progress.get(what, 0):  # the same work again: its time counts from now on
                bars.reset(tasks[what], total=total)
            progress[what] = done
            bars.update(tasks[what], completed=done, total=total)

        with monitor.progress(show):
            yield


@contextmanager
def memory_for(memory: str | None) -> Iterator[None]:
    """The budget of a command, and one sentence where the memory runs out all the same.

    Args:
        memory: What `--memory` says; None for the default.
    """
    advice = "give a smaller --memory, a smaller --count, or fewer parameters with --include"
    with limits_within(memory), if_memory_runs_out(advice):
        yield


def unused_path(path: Path) -> Path:
    """The path, or the first of path-2, path-3, … that does not exist.

    Args:
        path: Where to look.
    """
    number = 2
    candidate = path
    while candidate.exists():
        candidate = path.with_name(f"{path.name}-{number}")
        number += 1
    return candidate
