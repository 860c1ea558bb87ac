"""Many trials in a child, which is replaced where one crashes or hangs."""

from __future__ import annotations

import json
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from chaos.forked import Child
from chaos.tally import HANG, RAW, Tally

Tell = Callable[[str, str, str], None]
"""Called as (kind, "", story) before a trial and as (kind, ending, story) after it."""
Trials = Callable[[int, Tell], None]
"""Makes trials without end from a seed, and tells of each."""

MEMORY = 4 * 2**30
"""Bytes that a child may ask for."""
LONGEST = 20.0
"""Seconds after which one trial counts as hanging."""


def many(seconds: float, trials: Trials, folder: Path, seed: int = 0) -> list[Tally]:
    """Run trials for so long, the first child with a seed, the next with the next."""
    tallies: dict[str, Tally] = {}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with tempfile.TemporaryDirectory(prefix="chaos-") as place:
            log = Path(place, "log")
            child = Child(
                lambda seed=seed, log=log: _work(trials, seed, log, deadline),
                folder,
                {resource.RLIMIT_DATA: MEMORY},
            )
            hung = False
            while (ended := child.ended_within(0.5)) is None:
                last = log.stat().st_mtime if log.exists() else time.time()
                if time.time() - last > LONGEST and not hung:
                    hung = True
                    child.send(signal.SIGKILL)
            lines = log.read_text().splitlines() if log.exists() else []
        story = ""
        for line in lines:
            kind, ending, story = json.loads(line)
            if ending:
                tallies.setdefault(kind, Tally(kind)).add(ending, story)
        unfinished = bool(lines) and not ending
        if unfinished and (hung or ended.code != 0):
            crash = f"the interpreter ends with {ended.code}: {story}"
            tallies[kind] = tallies.get(kind) or Tally(kind)
            tallies[kind].add(HANG if hung else RAW, story if hung else crash)
        elif ended.code != 0 and not hung:  # a busy machine may stop a child between two trials
            raise RuntimeError(f"The worker ended with {ended.code}: {ended.output[-3000:]}")
        seed += 1
    return list(tallies.values())


def _work(trials: Trials, seed: int, log: Path, deadline: float) -> int:
    import torch

    torch.set_num_threads(1)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(*told: str) -> None:
        os.write(descriptor, json.dumps(told).encode() + b"\n")
        if told[1] and time.monotonic() > deadline:
            os._exit(0)

    trials(seed, tell)
    return 0
