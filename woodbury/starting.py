"""Ctrl-C while the command line is still being imported: one line, not a traceback."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn


def is_command(program: str, words: Sequence[str]) -> bool:
    """Whether this process was started as the command line of woodbury.

    Args:
        program: The first of `sys.argv`, which is "-m" while the package of a module is imported.
        words: How the process was started, as `sys.orig_argv` has it.

    Example:
        >>> is_command("-m", ["python", "-X", "dev", "-m", "woodbury.cli", "demo"])
        True
        >>> is_command("/usr/bin/woodbury", ["python", "/usr/bin/woodbury", "demo"])
        True
        >>> is_command("training.py", ["python", "training.py", "woodbury"])
        False
    """
    if program == "-m" and "-m" in words:
        return words[words.index("-m") + 1 :][:1] == ["woodbury.cli"]
    return Path(program).stem == "woodbury"


def _leave(received: int, _: Any) -> NoReturn:
    os.write(2, b"Interrupted: nothing was written.\n")
    os._exit(128 + received)


_IS_OURS = is_command(sys.argv[0] if sys.argv else "", sys.orig_argv)
if _IS_OURS and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)
