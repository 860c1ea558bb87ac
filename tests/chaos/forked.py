"""Children of a process that has imported everything, so that starting one takes no second."""

from __future__ import annotations

import fcntl
import gc
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PATIENCE = 90.0
"""Seconds after which a child counts as hanging; the machine may be busy with other things."""
F_SETPIPE_SZ = 1031
PIPE_BYTES = 2**20


def warm() -> None:
    """Import what commands import when they need it; nothing that starts a thread."""
    import torch

    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.ones(2)
    torch.optim.SGD([weight], 0.1, momentum=0.9).step()  # imports the compiler
    gc.collect()
    gc.freeze()


class Ended(NamedTuple):
    """How a child ended: minus the signal, or the exit code; None for one that hung."""

    code: int | None
    output: str


class Child:
    """A child process with its stdout and stderr in one pipe."""

    def __init__(
        self, work: Callable[[], int], folder: Path, limits: dict[int, int] | None = None
    ) -> None:
        self._reading, writing = os.pipe()
        if sys.platform == "linux":
            fcntl.fcntl(writing, F_SETPIPE_SZ, PIPE_BYTES)
        os.set_blocking(self._reading, False)
        sys.stdout.flush()
        # A signal that comes before the child is itself would run the parent's code in it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self.pid = os.fork()
        if self.pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            os.close(writing)
            return
        code = 70
        try:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            os.chdir(folder)
            for kind, bound in (limits or {}).items():
                resource.setrlimit(kind, (bound, resource.getrlimit(kind)[1]))
            code = work()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def send(self, number: int) -> None:
        os.kill(self.pid, number)  # it is not waited for yet, so the number is still its own

    def ended_within(self, seconds: float) -> Ended | None:
        """How it ended; None while it runs."""
        deadline = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return Ended(os.waitstatus_to_exitcode(status), self._output())
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.003)

    def end(self, patience: float = PATIENCE) -> Ended:
        """How it ended; one that hangs is killed."""
        ended = self.ended_within(patience)
        if ended is None:
            self.send(signal.SIGKILL)
            os.waitpid(self.pid, 0)
            return Ended(None, self._output())
        return ended

    def _output(self) -> str:
        parts = []
        try:
            while part := os.read(self._reading, PIPE_BYTES):
                parts.append(part)
        except BlockingIOError:
            pass
        os.close(self._reading)
        return b"".join(parts).decode("utf-8", "replace")
