"""Compiling kernels, and keeping what was compiled."""

from __future__ import annotations

# Numba's decorators say nothing of types, and Numba need not be installed.
# pyright: reportCallIssue=false, reportPrivateImportUsage=false, reportMissingImports=false
import warnings
from typing import Any

import numba
from numba.core.errors import NumbaWarning

OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
"""Of all compiled functions."""


def compiled(*signature: Any) -> Any:
    """A decorator: compile now, or load from the disk what an earlier process compiled.

    Where no folder for compiled code can be written, each process compiles its own.
    """
    return lambda function: _cached(lambda **where: numba.njit(*signature, **where), function)


def callback(*signature: Any) -> Any:
    """The same for a function that C calls."""
    return lambda function: _cached(lambda **where: numba.cfunc(*signature, **where), function)


def _cached(decorator: Any, function: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumbaWarning)
        try:
            return decorator(cache=True, **OPTIONS)(function)
        except (RuntimeError, OSError):  # no folder, or one that cannot be written
            return decorator(**OPTIONS)(function)
