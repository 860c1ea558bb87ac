"""The memory budget: how many bytes a run may hold, from what the process may still have."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from woodbury.errors import WoodburyError
from woodbury.limits import Limits

DEFAULT_SHARE = 0.6
"""Share of the available memory that a run may use by default."""
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
BINARY_UNITS = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
BYTES_PER_WEIGHT = 40
"""Weights before and after, the update, saliencies and their order: what no pruning is without."""
BYTES_BESIDE_SUMS = 28
"""Of a weight, beside sums and a few rows; the other vectors of a step take the rows' place."""
NO_LIMIT = 2**60
"""A limit from which on a control group counts as unlimited."""


def parse_bytes(size: int | float | str) -> int:
    """A size in bytes, from a number or from text such as "6GiB".

    Args:
        size: Bytes, or a number with a unit: kB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB
            (powers of 1024); upper and lower case alike.

    Returns:
        The bytes, at least 1.

    Raises:
        WoodburyError: For text that is no size, and for nothing or less.

    Example:
        >>> parse_bytes("1.5 GiB"), parse_bytes(1000)
        (1610612736, 1000)
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]?i?)b?\s*", str(size).lower())
    units = UNITS | BINARY_UNITS
    try:
        result = int(float(match[1]) * units[match[2]]) if match else 0
    except (ValueError, KeyError):
        result = 0
    if result < 1:
        raise WoodburyError(f"The memory is {size!r}: give bytes or a size such as 6GiB.")
    return result


def bytes_in_words(count: int) -> str:
    """A size for people, in three digits, rounded up; `parse_bytes` reads it.

    Args:
        count: Bytes.

    Returns:
        For example "9.12 GB".

    Example:
        >>> bytes_in_words(9_111_000_000), bytes_in_words(12)
        ('9.12 GB', '12 B')
    """
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            decimals = 2 if count < 10 * size else 1 if count < 100 * size else 0
            steps = -(-count * 10**decimals // size)
            return f"{steps / 10**decimals:.{decimals}f} {unit}"
    return f"{count} B"


def budget_bytes(
    memory: int | float | str | None = None, device: torch.device | str = "cpu"
) -> int:
    """What a run may hold on a device: as asked for, else 60 % of what is available.

    Args:
        memory: The budget, as for `parse_bytes`; None for the default.
        device: Where the run computes.

    Returns:
        Bytes.

    Example:
        >>> budget_bytes("2GiB")
        2147483648
        >>> 0 < budget_bytes() < available_bytes()
        True
    """
    if memory is not None:
        return parse_bytes(memory)
    return max(1, int(DEFAULT_SHARE * available_bytes(device)))


def rows_share(budget: int) -> int:
    """The part of a budget that is for the gradient rows: half of it.

    Args:
        budget: Bytes that the whole run may hold.

    Returns:
        Bytes, at least 1.

    Example:
        >>> rows_share(1000)
        500
    """
    return max(1, budget // 2)


def check_holds(memory: int | float | str | None, weights: int) -> None:
    """Raise unless a budget has room for the vectors that no pruning is without.

    Args:
        memory: The budget, as for `parse_bytes`; None for the default, which is not looked at.
        weights: How many weights are pruned.

    Raises:
        WoodburyError: If there is no room, or the budget is no size.

    Example:
        >>> check_holds("1GiB", 1000)
    """
    if memory is None:
        return
    least = BYTES_PER_WEIGHT * weights
    if least > parse_bytes(memory):
        raise WoodburyError(
            f"Pruning {weights:,} weights takes at least {bytes_in_words(least)}, and the memory "
            f"is {memory!r}: give more, or leave parameters out."
        )


def limits_within(memory: int | float | str | None) -> Limits:
    """The present limits, with gradient rows that leave the rest of a budget to all else.

    Args:
        memory: What the whole run may hold, as for `parse_bytes`; None leaves the limits as they
            are. Of what the process cannot have, nothing is counted on.

    Returns:
        A context.

    Raises:
        WoodburyError: For text that is no size, and for nothing or less.

    Example:
        >>> with limits_within("2kB"):
        ...     row_bytes()
        1000
    """
    limits = Limits.current()
    if memory is None:
        return limits
    return replace(limits, memory=rows_share(min(budget_bytes(memory), available_bytes())))


def row_bytes() -> int:
    """What the gradient rows of a run may take.

    `Limits.memory` if it is set. Else half of the default budget: factors, whitened rows and blocks
    take as much again beside them.

    Returns:
        Bytes.

    Example:
        >>> with Limits(memory=1000):
        ...     row_bytes()
        1000
    """
    memory = Limits.current().memory
    return rows_share(budget_bytes()) if memory is None else int(memory)


def sums_bytes(weights: int) -> int:
    """What sums over gradient rows, as WoodFisher's blocks, may take with rows to be added to them.

    Nothing of their size is made beside them, so that they may take all but a few vectors.

    Args:
        weights: How many weights are pruned.

    Returns:
        Bytes, `row_bytes()` at least.

    Example:
        >>> with Limits(memory=1000):
        ...     sums_bytes(10), sums_bytes(100)
        (1720, 1000)
    """
    return max(row_bytes(), 2 * row_bytes() - BYTES_BESIDE_SUMS * weights)


def available_bytes(device: torch.device | str = "cpu") -> int:
    """What this process may still have on a device.

    On the CPU the least of the system's available memory, what the control groups (v1 and v2) of
    the process leave, and what its own limits (RLIMIT_AS, RLIMIT_DATA) leave. On CUDA the device's
    free memory.

    Args:
        device: Where memory is wanted.

    Returns:
        Bytes, at least 1.

    Example:
        >>> available_bytes() > 2**20
        True
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return max(1, free)
    return max(1, min([*_system(), *_control_groups(), *_process_limits()], default=2**32))


def _system() -> Iterator[int]:
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield 1024 * int(line.split()[1])
                return
    with suppress(ValueError, OSError, AttributeError):  # macOS and others: all that is there
        yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _control_groups(root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """What each group on the way from the process's own to the root leaves."""
    own: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            own[controllers] = path
    unified = own.get("", "/")
    yield from _left(root, unified, "memory.max", "memory.current")
    memory = next((path for names, path in own.items() if "memory" in names.split(",")), "/")
    version_1 = "memory.limit_in_bytes", "memory.usage_in_bytes"
    yield from _left(root / "memory", memory, *version_1)


def _left(root: Path, path: str, limit: str, usage: str) -> Iterator[int]:
    folder = root / path.lstrip("/")
    for group in (folder, *folder.parents):
        with suppress(OSError, ValueError):  # "max" is no number
            bound = int((group / limit).read_text())
            if bound < NO_LIMIT:
                yield bound - int((group / usage).read_text())
        if group == root:
            return


def _process_limits() -> Iterator[int]:
    try:
        import resource  # not there on Windows
    except ImportError:
        return
    used = {resource.RLIMIT_AS: "VmSize:", resource.RLIMIT_DATA: "VmData:"}
    for kind, field in used.items():
        bound, _ = resource.getrlimit(kind)
        if bound != resource.RLIM_INFINITY:
            yield bound - _own_bytes(field)


def _own_bytes(field: str) -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return 1024 * int(line.split()[1])
    return 0


def resident_bytes() -> int:
    """The memory that the process holds now, where the system says it in /proc; else 0.

    Returns:
        Bytes of resident pages, at least 0.

    Example:
        >>> resident_bytes() >= 0
        True
    """
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0
