"""Kills at random moments, and disks that are full."""

from __future__ import annotations

import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos.commands import JOBS, NET, Job
from chaos.forked import Child, Ended
from chaos.tally import HALF, HANG, RAW, RIGHT, SENTENCE, SILENT, Tally

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ROOM = 2**26
"""Bytes that are enough for every job."""
MOST_KILLS = 8
"""Of one run before it is let go on to its end."""


class Undisturbed:
    """A job that was let run: what it gives, how long it takes, the largest file that it writes."""

    def __init__(self, job: Job) -> None:
        with workplace() as folder:
            began = time.monotonic()
            ended = Child(lambda: job.work(False), folder).end()
            self.seconds = time.monotonic() - began
            assert ended.code == 0, f"{job.name}: {ended.output}"
            self.result = job.result(folder)
            files = [path for path in folder.rglob("*") if path.is_file()]
            sizes = [path.stat().st_size for path in files if path.suffix != ".py"]
            self.largest, self.total = max(sizes), sum(sizes)
        self.job = job


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder with a user's net.py."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    (folder / "net.py").write_text(NET)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class SmallDisk:
    """A workplace on a tmpfs of its own, for whom the system lets mount one.

    Args:
        size: Bytes beside the user's net.py; the system rounds to pages.
    """

    def __init__(self, size: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        self.is_mounted = self._mount(f"size={size + resource.getpagesize()}")
        (self.folder / "net.py").write_text(NET)

    def __enter__(self) -> SmallDisk:
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def make_room(self) -> None:
        """Let it hold all that a job writes."""
        if self.is_mounted:
            assert self._mount(f"remount,size={ROOM}")

    def _mount(self, options: str) -> bool:
        words = ["mount", "-t", "tmpfs", "-o", options, "chaos", str(self.folder)]
        try:
            return subprocess.run(words, capture_output=True, check=False).returncode == 0
        except OSError:  # there is no such command
            return False


def kill(truth: Undisturbed, draw: random.Random, tally: Tally) -> None:
    """Start a job, kill it once or more, let it end, and compare."""
    job = truth.job
    with workplace() as folder:
        sent: list[str] = []
        for attempt in range(draw.randint(1, MOST_KILLS)):
            child = Child(lambda again=attempt > 0: job.work(again), folder)
            time.sleep(draw.uniform(0, truth.seconds))
            ended = child.ended_within(0)
            if ended is None:
                number = draw.choice(SIGNALS)
                child.send(number)
                sent.append(number.name)
                ended = child.end()
            if _refuses_a_finished_run(truth, folder, ended):
                break
            if fault := _fault_of(ended, sent) or _half_written(truth, folder):
                tally.add(fault, f"{job.name} after {sent}: {ended.output[-1500:]}", len(sent) or 1)
                return
            if ended.code == 0:
                break
        ending, story = _end_of(truth, folder)
        tally.add(ending, f"{job.name} after {sent}: {story}", len(sent))


def fill_disk(truth: Undisturbed, draw: random.Random, tally: Tally) -> None:
    """Run a job on a disk that is full, then with room, and compare.

    The disk is a tmpfs where one can be mounted, in every second trial; else no file may grow
    beyond some size.
    """
    job = truth.job
    share = draw.choice([0, 0.03, draw.random(), 1.1 * draw.random()])
    small = draw.random() < 0.5
    with SmallDisk(round(share * truth.total) if small else ROOM) as disk:
        folder = disk.folder
        is_full = small and disk.is_mounted
        bound = round(share * (truth.total if is_full else truth.largest))
        limits = {} if is_full else {resource.RLIMIT_FSIZE: bound}
        ended = Child(lambda: job.work(False), folder, limits).end()
        disk.make_room()
        said = ended.code == 2 and "Error: " in ended.output and "Traceback" not in ended.output
        if job.name.startswith("Gradual"):
            said = ended.code == 70  # the user's own loop raises what torch.save raises
        if ended.code != 0 and not said:
            fault = HANG if ended.code is None else RAW
            tally.add(fault, f"{job.name} within {bound} bytes: {ended.output[-1500:]}")
            return
        if _remains(folder) or _half_written(truth, folder):
            names = sorted(str(path) for path in folder.rglob("*"))
            tally.add(HALF, f"{job.name} within {bound} bytes leaves {names}")
            return
        ending, story = _end_of(truth, folder)
        if ending == RIGHT and ended.code:
            ending = SENTENCE
        tally.add(ending, f"{job.name} within {bound} bytes, and then: {story}")


def _fault_of(ended: Ended, sent: list[str]) -> str:
    if ended.code is None:
        return HANG
    allowed = {0} | {code for number in SIGNALS for code in (-number, 128 + number)}
    return "" if ended.code in allowed and "Traceback" not in ended.output else RAW


def _refuses_a_finished_run(truth: Undisturbed, folder: Path, ended: Ended) -> bool:
    """Whether one sentence says that the folder is filled, by a run that was killed at its end."""
    said = ended.code == 2 and ended.output.count("Error: ") == 1
    if not said or "Traceback" in ended.output or not truth.job.is_whole_or_nothing:
        return False
    return (folder / "out").exists() and not _half_written(truth, folder)


def _half_written(truth: Undisturbed, folder: Path) -> str:
    """A result that is there before the end is the whole result."""
    if not truth.job.is_whole_or_nothing or not (folder / "out").exists():
        return ""
    try:
        return "" if truth.job.result(folder) == truth.result else SILENT
    except (OSError, ValueError, KeyError):
        return HALF


def _remains(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix in (".partial", ".lock")]


def _end_of(truth: Undisturbed, folder: Path) -> tuple[str, str]:
    """Let a job go on, or begin again, to its end."""
    job = truth.job
    if job.is_whole_or_nothing:
        shutil.rmtree(folder / "out", ignore_errors=True)  # where it was done already
    ended = Child(lambda: job.work(True), folder).end()
    if ended.code != 0:
        return (HANG if ended.code is None else RAW), f"it ends with {ended}"
    if remains := _remains(folder):
        return HALF, f"it leaves {remains}"
    if job.result(folder) != truth.result:
        return SILENT, "it ends with another result"
    return RIGHT, ""


def disturb(seconds: float, draw: random.Random, jobs: tuple[Job, ...] = JOBS) -> Iterator[Tally]:
    """Kills and full disks for about so many seconds; a tally for each job and kind."""
    truths = [Undisturbed(job) for job in jobs]
    for act, what, share in ((kill, "kills", 0.85), (fill_disk, "full disks", 0.15)):
        for truth in truths:
            tally = Tally(f"{what}, {truth.job.name}")
            deadline = time.monotonic() + share * seconds / len(truths)
            while True:
                act(truth, draw, tally)
                if time.monotonic() >= deadline:
                    break
            yield tally
