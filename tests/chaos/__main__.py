"""The command: `python -m chaos [SECONDS]`."""

from __future__ import annotations

import random
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from chaos.calls import calls
from chaos.commands import JOBS, QUICK
from chaos.damaged_files import files_in, trial
from chaos.disturbances import disturb
from chaos.forked import warm
from chaos.tally import Tally
from chaos.workers import Tell, many

SECONDS = 600.0
LONG = 60.0
"""Seconds from which on the slow commands are disturbed too."""
SHARES = {"disturb": 0.65, "files": 0.1, "calls": 0.25}
KINDS = ("kills", "full disks", "damaged files", "calls")


def damage(seed: int, tell: Tell) -> None:
    """Trials on files of every kind in turn."""
    draw = random.Random(seed)
    files = files_in(Path.cwd() / f"files-{seed}")
    while True:
        for kind, truth, whole in files:
            tell(f"damaged files, {kind.name}", "", kind.name)
            tell(f"damaged files, {kind.name}", *trial(kind, truth, whole, draw))


def tallies(seconds: float, seed: int) -> Iterator[Tally]:
    jobs = JOBS if seconds >= LONG else QUICK
    yield from disturb(SHARES["disturb"] * seconds, random.Random(seed), jobs)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        yield from many(SHARES["files"] * seconds, damage, Path(folder), seed)
        yield from many(SHARES["calls"] * seconds, calls, Path(folder), seed)


def main() -> int:
    """Print a line for each kind, the faults, and the sums.

    Returns:
        1 where a fault does harm or a kind was not tried.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    warm()
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6)
    print(f"{seconds:g} seconds, seed {seed}", flush=True)
    sums: dict[str, Tally] = {}
    for tally in tallies(seconds, seed):
        print(tally.line(), flush=True)
        for story in tally.faults:
            print("   ", story.replace("\n", "\n      "), flush=True)
        total = sums.setdefault(tally.what.split(",")[0], Tally(tally.what.split(",")[0]))
        total.endings += tally.endings
    print("In all:")
    for total in sums.values():
        print(total.line())
    untried = [kind for kind in KINDS if not any(what.startswith(kind) for what in sums)]
    if untried:
        print("Not tried, for want of time:", ", ".join(untried))
    return int(bool(untried) or not all(total.is_zero_where_it_must_be for total in sums.values()))


if __name__ == "__main__":
    sys.exit(main())
