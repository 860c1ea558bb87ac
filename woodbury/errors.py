"""What the package raises: one sentence that says what was wrong, where, and what to do."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path

ALLOCATOR_WORDS = ("allocate memory", "out of memory", "not enough memory", "bad_alloc")
"""What the messages of torch's allocators have in common."""


NOT_OF_THE_USER = (
    str(Path(__file__).parent),
    *(sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")),
)
"""Where the code lies that is not the user's."""


class WoodburyError(ValueError):
    """What was wrong, where, and what to do about it, in one sentence."""


class WrongType(WoodburyError, TypeError):
    """An argument of another type than the one that is needed."""


class Refused(WoodburyError):
    """The model or its loss failed on a batch; what they raised is the cause."""


class RankError(WoodburyError):
    """Another process of the group failed, has other settings, or did not come."""


class MissingDependency(WoodburyError, ImportError):
    """A package that only some users need is not installed; the sentence says how to install it."""


def check_whole_number(
    value: object, name: str, meaning: str, *, least: int = 1, most: int = 2**62
) -> None:
    """Raise unless an argument is a whole number, mostly of at least 1.

    Args:
        value: The argument.
        name: Its name.
        meaning: What it counts, for the sentence.
        least: The smallest that will do.
        most: The largest.

    Raises:
        WrongType: If it is no whole number.
        WoodburyError: If it is out of range.

    Example:
        >>> check_whole_number(0, "count", "the number of gradient rows")
        Traceback (most recent call last):
        woodbury.errors.WoodburyError: count is 0: it is the number of gradient rows, ...
    """
    kind = WrongType
    if isinstance(value, (int, Integral)) and not isinstance(value, bool):
        if least <= int(value) <= most:
            return
        kind = WoodburyError
    wanted = f"from {least} to {most:,}" if most < 2**62 else f"of at least {least}"
    raise kind(f"{name} is {str(value)[:60]!s}: it is {meaning}, a whole number {wanted}.")


def reason(error: BaseException) -> str:
    r"""Why something failed, in one line: the error's type and what its message says first.

    Args:
        error: Any exception. Those of torch run to a page.

    Returns:
        The type, a colon, and the first line of the message that is not empty.

    Example:
        >>> reason(RuntimeError("shapes differ\n at line 7"))
        'RuntimeError: shapes differ'
    """
    lines = (line.strip() for line in str(error).splitlines())
    message = next((line for line in lines if line), "no message")
    return f"{type(error).__name__}: {message}"


def users_line(error: BaseException) -> str | None:
    """The line of the user's own code that raised an error, or called what raised it.

    Args:
        error: As it was caught.

    Returns:
        Such as "net.py, line 12"; None where no code of the user's had part in it.

    Example:
        >>> try:
        ...     Path("nowhere").read_text()
        ... except OSError as error:
        ...     users_line(error) is None  # this is no file
        True
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((*NOT_OF_THE_USER, "<")):
            return f"{Path(frame.filename).name}, line {frame.lineno}"
    return None


def reason_with_line(error: BaseException) -> str:
    """Why something failed, and at which line of the user's.

    Args:
        error: As it was caught.

    Returns:
        `reason(error)`, and `users_line(error)` where there is one.

    Example:
        >>> reason_with_line(RuntimeError("shapes differ"))
        'RuntimeError: shapes differ'
    """
    line = users_line(error)
    return reason(error) + (f"; {line}" if line else "")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is one of Python's or torch's allocators.

    Args:
        error: Any exception.

    Returns:
        True where the memory ran out.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("CUDA out of memory"))
        (True, True)
    """
    return isinstance(error, MemoryError) or any(words in str(error) for words in ALLOCATOR_WORDS)


@contextmanager
def user_code(sentence: str, *, keeps_refusals: bool = False) -> Iterator[None]:
    """A context for code of the user's: whatever it raises becomes one sentence with the reason.

    Args:
        sentence: What was wrong and what to do about it. The reason follows in brackets, with the
            user's line.
        keeps_refusals: Whether what a context further in has said of the model or its loss is left
            as it is, as this one knows no more.

    Raises:
        WoodburyError: In place of any error that is not one already, nor of an allocator.

    Example:
        >>> with user_code("The model refuses the batch."):
        ...     raise RuntimeError("shapes differ")
        Traceback (most recent call last):
        woodbury.errors.WoodburyError: The model refuses the batch. (RuntimeError: shapes differ)
    """
    try:
        yield
    except Refused as refusal:  # was said by a context further in, which mostly knew less
        if keeps_refusals:
            raise
        cause = refusal.__cause__ or refusal
        raise WoodburyError(f"{sentence} ({reason_with_line(cause)})") from cause
    except WoodburyError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise WoodburyError(f"{sentence} ({reason_with_line(error)})") from error
