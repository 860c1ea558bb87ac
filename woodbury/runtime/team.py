"""Torch's own threads, which its operators leave waiting: kernels that run in them do not compete.

Threads of another pool would share their cores with them, as OpenMP's threads wait busily.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

Team = Callable[[int, int, int], None]
"""(address of a C function of one pointer, that pointer, threads): each thread calls it."""

_forked: list[bool] = []


def team() -> Team | None:
    """The threads of the OpenMP that torch is linked to.

    Returns:
        What runs a function in all of them and waits for its end; None where torch has no OpenMP,
        or in a process that was forked, whose threads are gone.
    """
    return None if _forked else _of_torch()


@cache
def _of_torch() -> Team | None:
    for library in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")):
        try:
            begin = ctypes.CDLL(str(library)).GOMP_parallel  # of a library that it is linked to
        except (OSError, AttributeError):
            continue
        begin.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        begin.restype = None
        return lambda function, argument, threads: begin(function, argument, threads, 0)
    return None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _forked.append(True))
