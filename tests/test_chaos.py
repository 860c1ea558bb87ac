"""Some seconds of `make chaos`: nothing is silently wrong, hangs or is left half-written."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from chaos.calls import subjects
from chaos.damaged_files import damaged
from chaos.tally import HANG, RAW, RIGHT, Tally

TESTS = Path(__file__).parent


def test_a_few_seconds_of_chaos(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "chaos", "3", "0"],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    kinds = {line.split(":")[0].split(",")[0] for line in ended.stdout.splitlines()}
    assert {"kills", "full disks", "damaged files", "calls"} <= kinds
    assert not list(tmp_path.iterdir())


def test_faults_are_counted_and_told() -> None:
    tally = Tally("calls")
    tally.add(RIGHT)
    tally.add(RAW, "a call")
    assert tally.is_zero_where_it_must_be and tally.faults == ["raw error: a call"]
    tally.add(HANG, "another")
    assert not tally.is_zero_where_it_must_be and tally.tried == 3
    assert "3 tried, 1 right, 0 clear sentence, 1 raw error" in tally.line()


def test_every_public_name_is_called() -> None:
    lacking = {subject.name: subject.lacks() for subject in subjects() if subject.lacks()}
    assert not lacking, "give a valid value in chaos/calls.py"


def test_accidents_change_a_file_or_put_back_what_was_there() -> None:
    draw = random.Random(0)
    whole = bytes(range(200))
    contents = {damaged(whole, draw, None)[0] for _ in range(300)}
    assert len(contents) > 200
    for _ in range(100):  # what has no checksum is left as it is
        content, _ = damaged(whole, draw, 50)
        assert content[50:] in (whole[50:], b"") or not whole.startswith(content[:50])
